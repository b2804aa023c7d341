"""Which runs are compared in the confirmation: the best trials of the search, and each baseline with its best values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bft_ray.errors import BftError
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import DEFAULT
from bft_ray.study.confirm.choice import Limit, Plan, Record
from bft_ray.study.records.ranking import ranked
from bft_ray.study.records.record import Records, TrialRecord, all_of, by_id
from bft_ray.study.records.store import CONFIRMATION


@dataclass(frozen=True)
class Arm:
    """One setting of the confirmation.

    Args:
        name: in tables; a baseline's is its own.
        kind: what it is.
        trial: the trial that it repeats, with fresh seeds.
    """

    name: str
    kind: Literal["candidate", "baseline"]
    trial: TrialRecord


def arms_of(space: SearchSpace, baselines: Sequence[TrialRecord], search: Sequence[TrialRecord]) -> list[Arm]:
    """Baselines, each with its best values outside of the loss, then candidates, best first.

    A trial that is a duplicate of one of these baselines is no candidate.

    Raises:
        BftError: the default has no complete trial, so there is nothing to compare a winner with.
    """
    assert space.confirmation is not None
    metric = space.objective.metric
    arms = []
    for baseline in space.baselines:
        own = [record for record in baselines if record.extra["baseline"] == baseline.name]
        done = [record for record in ranked(own, metric) if record.state == "complete"]
        if done:
            arms.append(Arm(baseline.name, "baseline", done[0]))
        elif baseline.name == DEFAULT:
            raise BftError(
                f"the baseline {DEFAULT} has no complete trial ({own[0].reason}), and winners are compared with it"
            )
    taken, names = {arm.trial.key for arm in arms}, {arm.name for arm in arms}
    for record in ranked(search, metric):
        if len(arms) - sum(arm.kind == "baseline" for arm in arms) == space.confirmation.top_k:
            break
        if record.state != "complete" or record.key in taken:
            continue
        name = record.name if record.name not in names else f"{record.name} ({record.number})"
        arms.append(Arm(name, "candidate", record))
        taken.add(record.key)
        names.add(name)
    return arms


def sources(records: Records) -> dict[str, TrialRecord]:
    """Arm of the confirmation -> the trial that it repeats."""
    trials = by_id(all_of(records))
    runs = [run for run in records.get(CONFIRMATION, ()) if run.extra.get("of") in trials]
    return {run.extra["arm"]: trials[run.extra["of"]] for run in runs}


def limit_of(space: SearchSpace, before: float | None) -> Limit | None:
    """The second objective; None: there is none, or the base model was not measured yet.

    Args:
        before: its value of the base model, on the confirmation split.
    """
    second = space.objective.second
    return None if second is None or before is None else Limit(second.metric, before, second.largest_loss)


def plan_of(space: SearchSpace, arms: Sequence[Arm], second: Limit | None, records: Sequence[TrialRecord] = ()) -> Plan:
    """The plan of the confirmation for `bft_ray.study.confirm.choose.choose`; its records name the groups of items."""
    confirmation = space.confirmation
    assert confirmation is not None
    return Plan(
        metric=space.objective.metric,
        candidates=tuple(arm.name for arm in arms if arm.kind == "candidate"),
        baselines=tuple(arm.name for arm in arms if arm.kind == "baseline"),
        default=DEFAULT,
        seeds=tuple(confirmation.seeds),
        alpha=confirmation.alpha,
        second=second,
        groups=next((record.extra["groups"] for record in records if record.extra.get("groups")), {}),
        claims=tuple(space.claims),
    )


def confirmed(space: SearchSpace, records: Sequence[TrialRecord]) -> list[Record]:
    """The runs of the confirmation for the choice; a duplicate has the scores of its original."""
    second = space.objective.second
    ran = by_id(records)
    return [
        Record(
            name=record.extra["arm"],
            seed=record.seeds[0],
            items=ran[record.duplicate_of or record.id].extra.get("items", {}) if record.state == "complete" else {},
            second=record.metrics.get(second.metric) if second else None,
            failed="" if record.state == "complete" else record.reason or record.state,
            others=ran[record.duplicate_of or record.id].extra.get("others", {}) if record.state == "complete" else {},
        )
        for record in records
    ]
