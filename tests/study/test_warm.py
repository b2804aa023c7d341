"""What stays loaded from trial to trial changes nothing but the time: bit for bit on CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bft_ray.config import make_config
from tests.support.ranks import run_ranks
from tests.support.trials import CHOICES, steps_of

LORA = {"rank": 4, "alpha": 8.0}
#: preset, dtype, LoRA, gradient checkpointing
KINDS: list[tuple[str, str, dict | None, bool]] = [
    ("zero0", "fp32", None, False),
    ("zero1", "fp32", LORA, False),
    ("zero2", "fp32", None, True),
    ("zero1", "bf16", LORA, False),
]


def in_turn(trees: list[dict], folder: str) -> list[dict]:
    """Trials of one process; a tree under `stop` ends at its first rung."""
    import torch
    from safetensors.torch import load_file

    from bft_ray.study.execute.warm import Warm
    from jobs.bench.one_trial import run_trial

    warm, outcomes = Warm(torch.device("cpu")), []
    for number, tree in enumerate(trees):
        kept = Path(folder) / f"{os.getpid()}-{number}"
        stops = tree.pop("stop", False)
        result = run_trial(make_config(tree), [3], lambda step, _, go=not stops: go, warm, keep=str(kept))
        files = list(kept.glob("*model.safetensors"))
        weights = {name: value.float().numpy() for file in files for name, value in load_file(file).items()}
        outcomes.append({"result": result, "weights": weights})
    return outcomes


@pytest.mark.slow
def test_a_warm_trial_is_the_fresh_one(make_tree, tiny_data, tmp_path):
    """Losses of all steps, metrics, records and weights, after trials of other settings: one whole, failed, pruned."""
    drawn = {"kind": "generation", "name": "drawn", "path": str(tiny_data), "limit": 4}
    drawn["decoding"] = {"max_new_tokens": 4, "temperature": 1.0}

    def tree(preset: str, dtype: str, lora: dict | None, saves: bool, **sections: Any) -> dict:
        made = make_tree(deepspeed={"preset": preset}, lora=lora, evaluation={"tasks": [CHOICES, drawn]}, **sections)
        made["model"] |= {"dtype": dtype, "gradient_checkpointing": saves}
        return made

    others = [
        tree("zero2", "fp32", {"rank": 8}, False, seed=5, loss={"method": "bft_inverse", "window": 8}),
        tree("zero1", "fp32", {"rank": 2}, False, optimizer={"learning_rate": 1e30, "max_grad_norm": None}),
        tree("zero1", "fp32", None, False, loss={"method": "sft"}, optimizer={"learning_rate": 1e-2}) | {"stop": True},
    ]
    kinds = [tree(*kind, optimizer={"learning_rate": 1e-3}) for kind in KINDS]
    kinds[1]["loss"] = {"token_weight": "prior", "anchor": 0.5}  # what it reads of the start is the base model's
    others.append(kinds[1] | {"seed": 9})
    (warm,) = run_ranks(in_turn, 1, [*others, *kinds], str(tmp_path))
    assert [one["result"].status for one in warm[:3]] == ["complete", "failed", "pruned"]
    for kind, settings, own in zip(KINDS, kinds, warm[4:], strict=True):
        ((fresh,),) = run_ranks(in_turn, 1, [settings], str(tmp_path), fresh=True)
        a, b = own["result"], fresh["result"]
        assert steps_of(a) == steps_of(b) and len(a.train) == 6, kind
        assert (a.metrics, a.records) == (b.metrics, b.records) and "drawn/token_f1" in a.metrics[6], kind
        assert own["weights"].keys() == fresh["weights"].keys() and own["weights"], kind
        assert all((value == fresh["weights"][name]).all() for name, value in own["weights"].items()), kind
    losses = {tuple(step["train/loss"] for step in one["result"].train) for one in warm}
    assert len(losses) == len(warm) - 1  # on one worker the ZeRO stage changes nothing; all else does


def facts(tree: dict, rows: str) -> dict[str, Any]:
    """What a Warm holds before and after a trial with adapters, and what it makes anew."""
    import torch

    from bft_ray.study.execute.warm import Warm
    from jobs.bench.one_trial import run_trial

    warm, config = Warm(torch.device("cpu")), make_config(tree)
    full = make_config({**tree, "lora": None})

    def base() -> Any:
        (kept,) = warm._models._things.values()
        return kept

    def content(model: Any) -> dict[str, bytes]:
        return {
            name: value.numpy().tobytes()
            for name, value in {**model.state_dict(), **dict(model.named_buffers())}.items()
        }

    def hooks(model: Any) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())

    with warm.trained(full):
        pass
    before, untouched = base(), content(base())
    names, hooks_before = [name for name, _ in before.named_modules()], hooks(before)
    result = run_trial(config, [], lambda step, metrics: True, warm)
    after = base()
    told = {
        "status": result.status,
        "is shared": after is before,
        "is untouched": content(after) == untouched,
        "modules": [name for name, _ in after.named_modules()] == names,
        "trainable": all(parameter.requires_grad for parameter in after.parameters()),
        "hooks": hooks(after) == hooks_before,
        "gradients": [name for name, parameter in after.named_parameters() if parameter.grad is not None],
        "private": _private_kib("model.safetensors"),
    }
    data, tasks = warm.data(config), warm.tasks(config)
    other_loss = make_config({**tree, "loss": {"method": "sft"}, "seed": config.seed})
    told["same data"] = warm.data(other_loss) is data and warm.tasks(other_loss) is tasks
    with Path(rows).open("a") as file:
        file.write("\n" + json.dumps({"id": "new", "prompt": "w1", "completion": "w2 w3"}))
    told["rows"] = (len(data.train), len(warm.data(config).train))
    for file in Path(config.model.path).glob("*.safetensors"):
        os.utime(file, ns=(1, 1))
    with warm.trained(full):
        told["is read again"] = base() is not before
    for limit in range(1, 20):
        tree["data"]["train"][0]["limit"] = limit
        warm.data(make_config(tree))
    told["kept"] = len(warm._data._things)
    return told


def _private_kib(name: str) -> tuple[int, int]:
    """KiB of a mapped file in memory, and those of them that are a copy of this process alone."""
    resident = written = 0
    is_file = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *values = line.split()
        if "-" in key and ":" not in key:
            is_file = line.endswith(name)
        elif is_file and key in ("Rss:", "Anonymous:"):
            resident += int(values[0]) if key == "Rss:" else 0
            written += int(values[0]) if key == "Anonymous:" else 0
    return resident, written


@pytest.mark.slow
def test_base_weights_are_shared_and_given_back_as_they_were(make_tree, tiny_model, tiny_data, tmp_path):
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    rows = shutil.copy(tiny_data, tmp_path / "rows.jsonl")
    tree = make_tree(lora={"rank": 2, "targets": ["q_proj", "embed_tokens"]})
    tree["model"] |= {"path": str(model), "gradient_checkpointing": True}
    tree["data"]["train"] = [{"path": str(rows)}]
    (told,) = run_ranks(facts, 1, tree, str(rows), fresh=True)
    resident, written = told.pop("private")
    assert resident > 0 and written == 0  # still mapped from the file, of which all processes have one copy in memory
    assert told == {
        "status": "complete",
        "is shared": True,
        "is untouched": True,
        "modules": True,
        "trainable": True,
        "hooks": True,
        "gradients": [],
        "same data": True,
        "rows": (48, 49),
        "is read again": True,
        "kept": 8,
    }
