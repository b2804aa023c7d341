"""Search spaces by sampler, and the studies that they suggest."""

from __future__ import annotations

import math

from bft_ray.space.assign import check_assignment
from bft_ray.space.definition import SearchSpace
from bft_ray.study.propose.sampler import propose
from bft_ray.study.records.record import TrialRecord
from jobs.bench.store import score
from tests.support.records import make_space as make_small


def make_space(**more) -> SearchSpace:
    own = {
        "name": "test",
        "parameters": {
            "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
            "loss.window": {"kind": "categorical", "values": [16, 64, 256]},
            "loss.epsilon": {
                "kind": "float", "low": 0.01, "high": 0.5, "log": True, "when": {"loss.method": ["bft_inverse"]},
            },
            "loss.gamma": {"kind": "float", "low": 0.5, "high": 2.0, "step": 0.1},
        },
        "budget": {"trials": 30, "steps": 24},
    }  # fmt: skip
    return make_small(**own | more)


NUMBERS = {
    "loss.gamma": {"kind": "float", "low": 0.5, "high": 2.0},
    "optimizer.learning_rate": {"kind": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "loss.window": {"kind": "int", "low": 16, "high": 256, "step": 16},
}
SPACES = {
    "tpe": make_space(),
    "random": make_space(sampler={"kind": "random"}),
    "grid": make_space(
        sampler={"kind": "grid"},
        parameters={
            "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
            "loss.epsilon": {
                "kind": "float",
                "low": 0.1,
                "high": 0.5,
                "step": 0.1,
                "when": {"loss.method": ["bft_inverse"]},
            },
        },
        budget={"steps": 24},
    ),
}


def ran(number: int, assignment, state="complete", value=None, **rungs: float) -> TrialRecord:
    at = {int(name[1:]): {0: found} for name, found in rungs.items()}
    return TrialRecord("search", number, assignment, state=state, value=value, rungs=at)


def finished(number: int, assignment) -> TrialRecord:
    value = score(dict(assignment), 0, 24)
    if math.isnan(value):
        return ran(number, assignment, "failed")
    return ran(number, assignment, "pruned", r8=value) if number % 3 else ran(number, assignment, value=value)


def sequence(space: SearchSpace, count: int) -> list[TrialRecord]:
    """A study, one trial after the other."""
    records: list[TrialRecord] = []
    for number in range(count):
        assignment = propose(space, number, records)
        assert assignment is not None
        check_assignment(space, assignment)
        records.append(finished(number, assignment))
    return records
