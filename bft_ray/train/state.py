"""The state of a training without its layout: the fp32 weight and the AdamW moments of each trained parameter, whole.

DeepSpeed's own checkpoints are flat parts of one ZeRO stage and one number of ranks, as pickles. This one is

    engine/state-RANK.safetensors    weight/NAME, exp_avg/NAME, exp_avg_sq/NAME: fp32, in the parameter's shape
    engine/state.json                optimizer steps, number of files, and what the loop keeps

so a run resumes with any number of ranks, and any stage. Parameters are dealt out over ranks, of which each writes its
own; every rank reads all. Frozen weights are not in it: they are those of `model.path`. 12 bytes a trained parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bft_ray.errors import BadInput, first_line
from bft_ray.places.kept import read_kept, write_kept

MOMENTS = ("exp_avg", "exp_avg_sq")
_FILE, _NEEDS = "state.json", ("num_files", "num_steps", "loop")


class TrainingState:
    """Reads and sets fp32 weights and moments, wherever DeepSpeed keeps them.

    Args:
        module: the model that is trained.
        optimizer: of DeepSpeed's engine: its ZeRO optimizer, or AdamW itself (stage 0).
        stage: of ZeRO.
        rank, world_size: of this process.
    """

    def __init__(self, module: torch.nn.Module, optimizer: Any, stage: int, rank: int, world_size: int):
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._optimizer, self._adamw = optimizer, optimizer.optimizer if stage else optimizer
        self._stage, self._rank, self._world_size = stage, rank, world_size

    def write(self, folder: Path, loop: dict[str, Any]) -> None:
        """Write this rank's part below `folder`; a collective.

        Args:
            loop: state of the loop, as JSON has it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        mine: dict[str, Tensor] = {}
        begun = bool(self._adamw.state)
        self._link()
        for place, (name, parameter) in enumerate(self._parameters.items()):
            for kind in ("weight", *MOMENTS) if begun else ("weight",):
                whole = self._get(parameter, kind)
                if place % self._world_size == self._rank:
                    mine[f"{kind}/{name}"] = whole.detach().float().cpu().contiguous().clone()
        save_file(mine, folder / f"state-{self._rank:05d}.safetensors")
        if self._rank == 0:
            steps = [int(state["step"]) for state in self._adamw.state.values() if state]
            write_kept(
                folder / _FILE, {"num_files": self._world_size, "num_steps": max(steps, default=0), "loop": loop}
            )

    def read(self, folder: Path) -> dict[str, Any]:
        """Set weights and moments from what any number of ranks wrote; returns the state of the loop. A collective.

        Raises:
            BadInput: a state of other parameters, a damaged one, or one of an earlier version.
        """
        kept = read_kept(folder / _FILE, _NEEDS)
        if kept is None:
            rule = "a checkpoint of this version, which does not depend on the number of workers"
            raise BadInput(
                "checkpoint", folder.parent, rule, "Start a run with another name, or use the version that wrote it."
            )
        if kept["num_steps"]:
            self._begin(kept["num_steps"])
        with ExitStack() as files:
            tensors = open_state(folder, kept["num_files"], files)
            if missing := {f"weight/{name}" for name in self._parameters} ^ {
                n for n in tensors if n.startswith("weight/")
            }:
                rule = f"a state of the parameters that are trained; {min(missing)} is only on one side"
                raise BadInput("checkpoint", folder.parent, rule, "Resume with the same model and lora settings.")
            for name, parameter in self._parameters.items():
                for kind in ("weight", *MOMENTS) if kept["num_steps"] else ("weight",):
                    self._set(parameter, kind, tensors[f"{kind}/{name}"].get_tensor(f"{kind}/{name}"))
        return kept["loop"]

    # ---- where DeepSpeed keeps them -----------------------------------------------------------------------------------

    def _begin(self, num_steps: int) -> None:
        """Make moments for all that AdamW steps; it would make them at its first step."""
        for master in self._masters():
            state = self._adamw.state[master]
            if not state:
                state |= {moment: torch.zeros_like(master) for moment in MOMENTS}
            on_host = not isinstance(self._adamw, torch.optim.AdamW)  # DeepSpeed's own counts in Python
            state["step"] = num_steps if on_host else torch.tensor(float(num_steps), device=master.device)
        self._link()

    def _link(self) -> None:
        """At stages 1 and 2: let parameters know where their moments are. DeepSpeed does it once, after the first step of
        the first group of parameters, when the moments of the others do not exist yet.
        """
        from deepspeed.utils import lazy_init_hp_params_optimizer_state as link

        if self._stage in (1, 2) and self._adamw.state:
            for group, master in zip(self._optimizer.bit16_groups, self._masters(), strict=True):
                link(group, master, self._adamw.state)

    def _masters(self) -> Iterator[Tensor]:
        """The fp32 tensors that AdamW steps on this rank: flat parts of many parameters, at stage 0 the parameters."""
        if self._stage == 3:
            yield from self._optimizer.fp32_partitioned_groups_flat
        elif self._stage:
            yield from self._optimizer.single_partition_of_fp32_groups
        else:
            yield from self._parameters.values()

    def _get(self, parameter: torch.nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not self._stage:
            return parameter if kind == "weight" else self._adamw.state[parameter][kind]
        if kind == "weight":
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, kind)

    def _set(self, parameter: Any, kind: str, whole: Tensor) -> None:
        import deepspeed
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if kind == "weight":  # the one that the forward pass reads
            with (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3),
                torch.no_grad(),
            ):
                parameter.copy_(whole)
        if not self._stage:
            if kind != "weight":
                self._adamw.state[parameter][kind].copy_(whole)
        elif self._stage == 3:  # DeepSpeed's setter of whole parameters fails where ranks share them unevenly
            part = _part(whole, parameter.ds_tensor.numel(), self._rank)
            safe_set_local_fp32_param(parameter, part) if kind == "weight" else safe_set_local_optimizer_state(
                parameter, part, kind
            )
        elif kind == "weight":
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, kind)


def _part(whole: Tensor, num_elements: int, rank: int) -> Tensor:
    """[num_elements] of the flat tensor that this rank holds under ZeRO-3, zeros beyond its end."""
    flat = whole.flatten()[rank * num_elements : (rank + 1) * num_elements]
    return torch.nn.functional.pad(flat, (0, num_elements - len(flat)))


def open_state(folder: Path, num_files: int, files: ExitStack) -> dict[str, Any]:
    """Name of a tensor -> the open file that holds it. No code of a file runs, whatever is in it.

    Raises:
        BadInput: a file is not there, or is no whole safetensors file.
    """
    found: dict[str, Any] = {}
    for rank in range(num_files):
        path = folder / f"state-{rank:05d}.safetensors"
        try:
            file = files.enter_context(safe_open(path, "pt"))
        except (SafetensorError, OSError) as error:
            remedy = f"Delete {folder.parent}: the run then resumes from an earlier checkpoint, or from its start."
            raise BadInput("checkpoint", path, f"a whole safetensors file: {first_line(error)}", remedy) from None
        found |= dict.fromkeys(file.keys(), file)
    return found
