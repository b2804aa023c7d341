"""The DeepSpeed engine behind a few verbs: forward, backward, step, save, load, weights."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bft_ray.config import Config, LossConfig
from bft_ray.data.dataset import TokenDataset
from bft_ray.data.pack import MicroBatch, collate
from bft_ray.data.plan import layout
from bft_ray.data.prefetch import prefetch
from bft_ray.errors import NonFinite
from bft_ray.loss import LossSums
from bft_ray.model.causal_lm import load_model
from bft_ray.model.host_memory import give_back
from bft_ray.model.layouts import Layouts
from bft_ray.model.packing import Rows, choose_rows
from bft_ray.train.anchor import StartingWeights
from bft_ray.train.imports import import_deepspeed
from bft_ray.train.leftovers import free_leftovers
from bft_ray.train.loss_model import LossModel
from bft_ray.train.ranks import limit_waits
from bft_ray.train.settings import deepspeed_settings
from bft_ray.train.state import TrainingState

_STATE = "engine"  # folder of the training state in a checkpoint


def join_alone(timeout_s: float = 600.0) -> None:
    """A process group of one, for a run without Ray: no port is opened, no file is made."""
    if not dist.is_initialized():
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=timeout_s)
        )


def pin_threads(config: Config) -> None:
    """Use the CPU cores that the config reserves, no more: results on CPU depend on the number of threads."""
    threads = max(1, int(config.cluster.cpus_per_worker))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


class Engine:
    """One rank's model, optimizer and gradients under DeepSpeed.

    Args:
        config: the run's config.
        device: where this rank computes.
        model: the model to train, loaded as `config` says; None: it is loaded here. Under ZeRO-3 only this rank's part of
            its weights is kept, and the module is of no use afterwards.
        asked: whether this rank was asked to save and end; called once a step.

    Attributes:
        is_ending: whether any rank was asked by the end of the last step: the same on every rank.

    A process group must exist (`join_alone`, or Ray Train's).
    """

    is_ending = False

    def __init__(
        self,
        config: Config,
        device: torch.device,
        model: torch.nn.Module | None = None,
        asked: Callable[[], bool] = lambda: False,
    ):
        self.asked = asked
        deepspeed = import_deepspeed()
        settings = deepspeed_settings(config)
        self.stage: int = settings["zero_optimization"]["stage"]
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._max_grad_norm = config.optimizer.max_grad_norm
        if model is None:
            model = _load(config, settings)
        elif self.stage == 3:
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        model.train()
        self.num_trainable = sum(_numel(p) for p in model.parameters() if p.requires_grad)
        self.num_parameters = sum(map(_numel, model.parameters()))
        self.start = StartingWeights(model, device) if config.loss.anchor else None
        self._deepspeed = deepspeed
        self._engine, *_ = deepspeed.initialize(
            model=LossModel(model, self.start),
            optimizer=_adamw(model, config, device),
            config=deepspeed_settings(config, self.num_trainable),
            dist_init_required=False,
        )
        if self.world_size > 1:
            limit_waits(config.cluster.collective_timeout_s)
        self._only_trainable = self.num_trainable < self.num_parameters
        self._engine(None, None)  # before any GPU hour is spent: what this architecture does with logits and rows
        self.rows: Rows = choose_rows(config, self._layouts(), model, device)

    def _layouts(self) -> Layouts:
        """What was measured, the worst of all ranks: they must choose alike."""
        mine = self._engine.module.layouts
        if self.world_size == 1:
            return mine
        worst = torch.tensor(astuple(mine), dtype=torch.float64, device=self.device)
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        return Layouts(*worst.tolist())

    @property
    def module(self) -> torch.nn.Module:
        """The model without the wrappers (its parameters are partitioned under ZeRO-3)."""
        return self._engine.module.model

    def sums(self, micro: MicroBatch, loss: LossConfig) -> LossSums:
        """Loss sums of a micro-batch on the device: the forward pass."""
        return self._engine(micro, loss)  # `LossModel.forward`, within DeepSpeed's hooks

    def logps(self, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and relative entropy [N] of the supervised tokens of a micro-batch on the device."""
        return self._engine(micro, None)

    def passes(self, dataset: TokenDataset, batch_tokens: int, pad_id: int) -> Iterator[tuple[list[int], MicroBatch]]:
        """This rank's share of a dataset, in evaluation mode: indices of samples, and their micro-batch on the device.

        As many forward passes as every other rank, as ZeRO-3 demands: an empty micro-batch runs too.
        """
        rows = self.rows
        mine = layout(dataset.lengths.tolist(), self.world_size, batch_tokens, rows.size, rows.packing)[self.rank]
        self.module.eval()
        micros = prefetch(lambda n: collate(dataset, mine[n], rows.packing, pad_id), range(len(mine)))
        for indices, micro in zip(mine, micros, strict=True):
            yield indices, micro.to(self.device)
        self.module.train()

    def peak_memory_bytes(self) -> int:
        """Most memory so far: of this process's tensors on its GPU, or of the whole process on CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # given in KiB on Linux

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients. DeepSpeed averages over ranks at the end of the step: pass a loss times world size."""
        self._engine.backward(loss)

    def before_forward(self, first: bool, last: bool) -> None:
        """Tell DeepSpeed, before a forward pass, whether its backward pass completes the step."""
        if first and self.stage:
            self._engine.optimizer.override_loss_scale(1.0)  # it stays as the last step left it
        self._engine.set_gradient_accumulation_boundary(last)

    def step(self, step: int, learning_rate: float, gradient_scale: float) -> float:
        """Scale, clip and apply the accumulated gradients; the norm [] before clipping is returned.

        Args:
            step: number of the step, for the error.
            learning_rate: of this step.
            gradient_scale: a factor that all samples of the step share (the normalisation of the sample weights).

        Raises:
            NonFinite: on every rank, when a gradient was NaN or infinite; the weights have not moved.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.stage:
            self._engine.optimizer.override_loss_scale(1.0 / gradient_scale)  # ZeRO divides by it before clipping
            self._engine.step()
            norm = float(self._engine.get_global_grad_norm() or 0.0)
            applied = self._engine.was_step_applied() and math.isfinite(norm)
        else:
            norm = self._scale_and_clip(gradient_scale)
            applied = math.isfinite(norm)
            if applied:
                self._engine.step()
        if not applied:
            raise NonFinite(step, "gradient", [])
        if self.device.type == "cpu":
            give_back()
        return norm

    def _scale_and_clip(self, gradient_scale: float) -> float:
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if gradient_scale != 1.0:
            torch._foreach_mul_(gradients, gradient_scale)
        return float(torch.nn.utils.clip_grad_norm_(self.module.parameters(), self._max_grad_norm or math.inf))

    def save(self, folder: Path, loop: dict[str, Any]) -> None:
        """Write this rank's part of the training state below `folder`; every rank calls it. See `bft_ray.train.state`."""
        self._state().write(folder / _STATE, loop)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore weights and optimizer, whatever the number of ranks that wrote them; returns what `save` was given."""
        return self._state().read(folder / _STATE)

    def _state(self) -> TrainingState:
        return TrainingState(self.module, self._engine.optimizer, self.stage, self.rank, self.world_size)

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The trained parameters (all of them, or the adapters) on CPU, on rank 0; None elsewhere. A collective."""
        gathered: dict[str, torch.Tensor] = {}
        for name, parameter in self.module.named_parameters():
            if self._only_trainable and not parameter.requires_grad:
                continue
            with self._deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                if self.rank == 0:
                    gathered[name] = parameter.detach().cpu().clone()
        return gathered if self.rank == 0 else None

    def fill(self, model: torch.nn.Module) -> None:
        """Under ZeRO-3: set the trained parameters of a whole model of the same kind, on every rank. A collective."""
        targets = dict(model.named_parameters())
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad or not self._only_trainable:
                with self._deepspeed.zero.GatheredParameters([parameter]), torch.no_grad():
                    targets[name].copy_(parameter)

    def close(self) -> None:
        """Free what DeepSpeed holds; no other engine may be in use in this process."""
        self._engine.destroy()
        free_leftovers()


def _load(config: Config, settings: dict[str, Any]) -> torch.nn.Module:
    """The model; under ZeRO-3 each rank keeps only its part of every weight as soon as it is read."""
    if settings["zero_optimization"]["stage"] < 3:
        return load_model(config.model, config.lora, config.seed)
    from transformers.integrations import HfDeepSpeedConfig

    partition = HfDeepSpeedConfig(settings)  # transformers looks for a living one while it loads
    try:
        return load_model(config.model, config.lora, config.seed)
    finally:
        del partition


def _numel(parameter: Any) -> int:
    """Whole, where this rank has a part of it, or has two elements in a byte."""
    if (packed := getattr(parameter, "quant_state", None)) is not None:
        return int(packed.shape.numel())
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _adamw(model: torch.nn.Module, config: Config, device: torch.device) -> Any:
    """AdamW with weight decay on matrices only."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    dims = [len(getattr(p, "ds_shape", p.shape)) for p in trainable]
    groups = [
        {
            "params": [p for p, d in zip(trainable, dims, strict=True) if d >= 2],
            "weight_decay": config.optimizer.weight_decay,
        },
        {"params": [p for p, d in zip(trainable, dims, strict=True) if d < 2], "weight_decay": 0.0},
    ]
    settings = config.optimizer
    common: dict[str, Any] = dict(lr=settings.learning_rate, betas=tuple(settings.betas), eps=settings.eps)
    groups = [group for group in groups if group["params"]]
    if config.deepspeed.offload != "none" and device.type == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # the step runs on the CPU, vectorised

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **common)
    return torch.optim.AdamW(groups, fused=True, **common)
