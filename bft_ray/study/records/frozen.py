"""A trial's record as an Optuna trial, and back: where the database holds each field.

| record | Optuna |
|---|---|
| state | waiting WAITING, running RUNNING, complete COMPLETE, pruned PRUNED, failed FAIL |
| value | value, of COMPLETE only |
| assignment | params, and exactly (true is not 1) in the user attribute `trial` |
| seeds, key, name, planned_steps, created | user attribute `trial`: one, for each costs a query |
| extra | user attribute `extra`, where there is any |
| rungs | intermediate values; of several seeds their means, and each one's in the user attribute `rungs` |
| state, reason, num_steps, attempts, by_seed at the end | user attribute `outcome`, written before the state |
| attempts, reason | user attribute `released`, once it was released; written before the state |
| duplicate_of, duplicate_because | user attributes `merged_with`, `merged_because`; state and value are the original's |

These names do not change, even where the fields of a record have other ones: finished studies must stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from bft_ray.space.definition import SearchSpace
from bft_ray.study.records.distributions import distributions_of, encode
from bft_ray.study.records.record import State, TrialRecord, mean

STATES: dict[State, TrialState] = {
    "waiting": TrialState.WAITING,
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
_OF_STATE: dict[TrialState, State] = {theirs: ours for ours, theirs in STATES.items()}


def to_optuna(record: TrialRecord, space: SearchSpace | None) -> FrozenTrial:
    """A new trial as Optuna keeps it: in state WAITING, or with the result of its original.

    Args:
        space: the assignment sets its parameters; None: Optuna sees no parameters.
    """
    trial = {
        "assignment": dict(record.assignment),
        "seeds": list(record.seeds),
        "key": record.key,
        "name": record.name,
        "planned_steps": record.planned_steps,
        "created": record.created,
    }
    attributes: dict[str, Any] = {"trial": trial}
    if record.extra:
        attributes["extra"] = dict(record.extra)
    if record.duplicate_of:
        attributes |= {"merged_with": record.duplicate_of, "merged_because": record.duplicate_because}
    if record.is_finished:
        attributes["outcome"] = outcome_of(record)
        if len(record.seeds) > 1:
            attributes["rungs"] = plain_rungs(record.rungs)
    params: dict[str, Any] = {}
    distributions = distributions_of(space) if space else {}
    if space:
        params = {name: encode(space.parameters[name], value) for name, value in record.assignment.items()}
    return create_trial(
        state=STATES[record.state],
        value=record.value,
        params=params,
        distributions={name: distributions[name] for name in params},
        user_attrs=attributes,
        intermediate_values=record.rung_values if record.is_finished else {},
    )


def from_optuna(trial: FrozenTrial, part: str) -> TrialRecord:
    """The record of an Optuna trial.

    Args:
        part: of the study: search, baselines or confirmation.
    """
    attributes, begun = trial.user_attrs, trial.user_attrs["trial"]
    released, outcome = attributes.get("released", {}), attributes.get("outcome", {})
    by_seed, seeds = _seeds_of(outcome), tuple(begun["seeds"])
    if len(seeds) > 1:
        rungs = {int(step): _by_int(at) for step, at in attributes.get("rungs", {}).items()}
    else:
        rungs = {step: {seeds[0]: value} for step, value in trial.intermediate_values.items()}
    return TrialRecord(
        part=part,
        number=trial.number,
        assignment=begun["assignment"],
        seeds=seeds,
        key=begun["key"],
        state=_OF_STATE[trial.state],
        name=begun["name"],
        planned_steps=begun["planned_steps"],
        num_steps=outcome.get("num_steps", 0),
        rungs=dict(sorted(rungs.items())),
        by_seed=by_seed,
        metrics=means(by_seed),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        duplicate_of=attributes.get("merged_with"),
        duplicate_because=attributes.get("merged_because", ""),
        reason=(outcome or released).get("reason", ""),
        attempts=outcome.get("attempts", released.get("times", 0) + (trial.state == TrialState.RUNNING)),
        created=begun["created"],
        started=_seconds(trial.datetime_start),
        finished=_seconds(trial.datetime_complete),
        extra=attributes.get("extra", {}),
    )


def outcome_of(record: TrialRecord) -> dict[str, Any]:
    """How a trial ended, as JSON."""
    return {
        "state": record.state,
        "reason": record.reason,
        "num_steps": record.num_steps,
        "attempts": record.attempts,
        "by_seed": {str(seed): _plain(metrics) for seed, metrics in record.by_seed.items()},
    }


def _seeds_of(outcome: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Seed -> metric -> value, of an outcome."""
    return {
        int(seed): {name: float(value) for name, value in metrics.items()}
        for seed, metrics in sorted(outcome.get("by_seed", {}).items(), key=lambda pair: int(pair[0]))
    }


def means(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Means over seeds, of the metrics that all seeds have."""
    if not by_seed:
        return {}
    common = set.intersection(*(set(metrics) for metrics in by_seed.values()))
    return {name: mean(metrics[name] for metrics in by_seed.values()) for name in sorted(common)}


def plain_rungs(rungs: Mapping[int, Mapping[int, float]]) -> dict[str, dict[str, float | str]]:
    """Values at rungs as JSON."""
    return {str(step): _plain(at) for step, at in rungs.items()}


def _plain(values: Mapping[Any, float]) -> dict[str, float | str]:
    """As JSON that every reader accepts: numbers that are not finite become text."""
    return {str(name): value if math.isfinite(value) else str(value) for name, value in values.items()}


def _by_int(values: Mapping[str, Any]) -> dict[int, float]:
    return {int(seed): float(value) for seed, value in values.items()}


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
