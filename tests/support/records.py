"""A search space, and trials of it in a database."""

from __future__ import annotations

from typing import Any

from bft_ray.config import make_config
from bft_ray.space.definition import SearchSpace
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import Store

METRIC = "choices/probability"


def make_space(**more) -> SearchSpace:
    tree = {
        "name": "small",
        "parameters": {
            "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
            "loss.window": {"kind": "categorical", "values": [64, 128, 256, 512]},
            "loss.epsilon": {"kind": "categorical", "values": [0.05, 0.1], "when": {"loss.method": ["bft_inverse"]}},
            "loss.gamma": {"kind": "float", "low": 0.5, "high": 2.0, "step": 0.5},
        },
        "objective": {"metric": METRIC},
        "budget": {"trials": 24, "steps": 24},
        "sampler": {"kind": "tpe", "startup_trials": 6},
        "scheduler": {"kind": "asha", "grace_steps": 8, "reduction": 3},
        "baselines": [],
    }
    return SearchSpace.model_validate(tree | more)


def make_base(**more):
    return make_config(
        {"domain": "test", "data": {"train": [{"path": "rows.jsonl"}]}, "checkpoint": {"export": "last"}} | more
    )


SPACE, BASE = make_space(), make_base()
A = {"loss.method": "bft", "loss.window": 64, "loss.gamma": 1.0}
B = {"loss.method": "bft_inverse", "loss.window": 128, "loss.epsilon": 0.1, "loss.gamma": 0.5}


def new(url: str, **more) -> Store:
    """A store that drives."""
    store = Store.create(Database(url), make_space(**more), BASE, {"train": "f1"})
    store.reconcile()
    return store


def add(store: Store, number: int, assignment=None, *, key: str | None = None, **more: Any) -> TrialRecord:
    how = {"space": SPACE} | {
        name: more.pop(name) for name in ("space", "original", "duplicate_because") if name in more
    }
    options: dict[str, Any] = {"planned_steps": 24, "key": key or f"key {number}"} | more
    options["seeds"] = tuple(options.get("seeds", (0,)))
    return store.add(TrialRecord(store.part, number, assignment or A, **options), **how)
