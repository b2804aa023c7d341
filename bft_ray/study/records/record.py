"""What is known of one trial, as read from the study's database: everything else is a function of these records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

#: waiting: assigned, and to be run (again) or to take the result of its twin
State = Literal["waiting", "running", "complete", "pruned", "failed"]
Status = Literal["waiting", "running", "complete", "pruned", "failed", "merged"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial: one run for each of its seeds.

    Args:
        part: of the study: search, baselines or confirmation.
        number: from 0, without gaps, in the order in which trials were proposed.
        assignment: dotted field -> value.
        seeds: of its runs.
        key: equal for equal trials (`bft_ray.study.propose.duplicates.key_of`).
        state: a merged trial takes that of its twin.
        name: in tables, such as `w128 e0.05 c8`.
        planned_steps: optimizer steps of each run, if none is stopped; None: not known.
        num_steps: steps behind its result, over all seeds; of a merged trial those that its twin took.
        rungs: step -> seed -> value of the metric at the rung.
        by_seed: seed -> metric -> value at the end.
        metrics: metric -> mean over seeds.
        value: mean of the objective's metric; of complete trials only, and finite.
        merged_with: id of the equal trial whose result it takes.
        merged_because: why they are equal.
        reason: why it failed, was pruned or sent back; of a merged trial that of its twin.
        attempts: how often it was started (one too many where a driver was killed while it sent it back).
        created, started, finished: seconds since 1970; `started` is that of the last attempt.
        extra: whatever the driver keeps with it: of a run of the confirmation `items` (item -> score), and `groups` (item ->
            names) where its rows have one.
    """

    part: str
    number: int
    assignment: Mapping[str, Any]
    seeds: tuple[int, ...] = (0,)
    key: str = ""
    state: State = "waiting"
    name: str = ""
    planned_steps: int | None = None
    num_steps: int = 0
    rungs: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    by_seed: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    value: float | None = None
    merged_with: str | None = None
    merged_because: str = ""
    reason: str = ""
    attempts: int = 0
    created: float | None = None
    started: float | None = None
    finished: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`search/12`: unique in its study."""
        return f"{self.part}/{self.number}"

    @property
    def is_finished(self) -> bool:
        """Whether its result stands."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def status(self) -> Status:
        """Its state, or `merged` where it took the result of another."""
        return "merged" if self.merged_with and self.is_finished else self.state

    @property
    def paid_steps(self) -> int:
        """Optimizer steps that were trained for it: none for a merged trial."""
        return 0 if self.merged_with else self.num_steps

    @property
    def duration_s(self) -> float | None:
        """Seconds from the last start to the end; None where it has not ended."""
        return None if self.started is None or self.finished is None else self.finished - self.started

    @cached_property
    def rung_values(self) -> dict[int, float]:
        """Step -> mean over seeds, of the rungs that all seeds have reached; NaN if one is."""
        return {step: mean(at.values()) for step, at in sorted(self.rungs.items()) if set(self.seeds) <= set(at)}

    @property
    def last_rung(self) -> tuple[int, float] | None:
        """The highest rung that all seeds have reached, and the value there."""
        values = self.rung_values
        return max(values.items()) if values else None


def trained_s(records: Iterable[TrialRecord], now: float) -> float:
    """Seconds [s] in which at least one of these trials ran: neither twice where several did, nor while the study lay
    still. What a killed driver's trials had run before is not in it.

    Args:
        now: seconds since 1970; the end, so far, of trials that run.
    """
    ran = [record for record in records if record.started and not record.merged_with]
    spans = [
        (record.started or 0.0, record.finished if record.is_finished else now)
        for record in ran
        if record.state != "waiting"
    ]
    total, until = 0.0, -math.inf
    for began, ended in sorted((began, ended or began) for began, ended in spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def mean(values: Iterable[float]) -> float:
    """The plain mean, summed without loss, so that it does not depend on the order; NaN of nothing."""
    found = list(values)
    if not all(map(math.isfinite, found)):
        return sum(found)  # inf or NaN
    return math.fsum(found) / len(found) if found else math.nan
