"""Records of a study, made by hand: what its note tells."""

from __future__ import annotations

from typing import Any

from bft_ray.config import TrackingConfig, load_config
from bft_ray.space.definition import SearchSpace
from bft_ray.study.agenda import PARTS
from bft_ray.study.definition import Study
from bft_ray.study.kept import Known
from bft_ray.study.records.record import TrialRecord, mean

METRIC = "choices/probability"


def space(**more: Any) -> SearchSpace:
    tree: dict[str, Any] = {
        "name": "long_answers",
        "parameters": {
            "loss.window": {"kind": "categorical", "values": [64, 128, 512, 1024]},
            "optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 1e-3]},
            "loss.weight_cap": {"kind": "float", "low": 1.5, "high": 20, "log": True},
        },
        "fixed": {"loss.method": "bft_inverse", "data.max_length": 512},
        "objective": {"metric": METRIC},
        "budget": {"trials": 20},
        "scheduler": {"kind": "asha", "grace_steps": 9},
        "confirmation": {"top_k": 2, "overrides": {"data.validation.0.path": "x"}},
    }
    return SearchSpace.model_validate(tree | more)


def trial(number, value=None, window=64, state="complete", part="search", **more) -> TrialRecord:
    runs = value if isinstance(value, list) else [] if value is None else [value]
    by_seed = {seed: {METRIC: run} for seed, run in enumerate(runs)}
    assignment = {"loss.window": window, "optimizer.learning_rate": 1e-3}
    own: dict[str, Any] = {
        "assignment": assignment, "name": f"w{window} lr0.001", "seeds": tuple(range(len(runs) or 1)), "by_seed": by_seed,
        "metrics": {METRIC: mean(runs)} if runs else {}, "value": mean(runs) if runs else None, "planned_steps": 81,
        "num_steps": 81 * len(runs), "started": 100.0 * number, "finished": 100.0 * number + 60,
    }  # fmt: skip
    return TrialRecord(part, number, state=state, **own | more)


def baseline(number, name, value, rate) -> TrialRecord:
    assignment = {"optimizer.learning_rate": rate}
    return trial(
        number, value, part="baselines", assignment=assignment, name=f"{name} lr{rate}", extra={"baseline": name}
    )


def known(records, own: SearchSpace, choice=None, test=None, *, domain="d", uri="", items=None, samples=None) -> Known:
    tracking = TrackingConfig(uri=uri) if uri else TrackingConfig()
    base = load_config("starter").model_copy(update={"domain": domain, "tracking": tracking})
    parts = {part: records.get(part, ()) for part in PARTS}
    return Known(Study("a", own, base, None, samples, "folder"), parts, choice=choice, test=test, items=items or {})
