"""One trial, as the study's database has it. Everything else about a study is a function of these records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

#: waiting: assigned, and to be run (again); of a duplicate: waits for the result of its original
State = Literal["waiting", "running", "complete", "pruned", "failed"]
Status = Literal["waiting", "running", "complete", "pruned", "failed", "duplicate"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial: one run for each of its seeds. A duplicate is not run: it takes the result of an equal trial, its original.

    Args:
        part: of the study: search, baselines or confirmation.
        number: from 0, without gaps, in the order in which trials were proposed.
        assignment: dotted field -> value.
        seeds: of its runs.
        key: the same for a trial and its duplicates (`bft_ray.study.propose.duplicates.key_of`).
        state: of a duplicate that of its original.
        name: in tables, such as `w128 e0.05 c8`.
        planned_steps: optimizer steps of each run, if none is stopped; None: not known.
        num_steps: optimizer steps that led to its result, over all seeds; of a duplicate those of its original.
        rungs: step -> seed -> value of the metric at the rung.
        by_seed: seed -> metric -> value at the end.
        metrics: metric -> mean over seeds.
        value: mean of the objective's metric; of complete trials only, and finite.
        duplicate_of: id of its original; None: it is no duplicate.
        duplicate_because: why the two are the same run.
        reason: why it failed, was pruned or released; of a duplicate that of its original.
        attempts: how often it was started (one too many where a driver was killed while it released the trial).
        created, started, finished: seconds since 1970; `started` is that of the last attempt.
        extra: what else the driver keeps with it: of a run of the confirmation `items` (item -> score), and `groups` (item
            -> names) where its rows have one; of a trial that ran `cards` and `warnings` (see the
            properties).
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
    duplicate_of: str | None = None
    duplicate_because: str = ""
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
        """Whether it has its result; nothing changes it then."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def status(self) -> Status:
        """Its state, or `duplicate` where it took the result of another trial."""
        return "duplicate" if self.duplicate_of and self.is_finished else self.state

    @property
    def ran_to_end(self) -> bool:
        """Whether its own runs came to their end: complete, and no duplicate."""
        return self.state == "complete" and not self.duplicate_of

    @property
    def label(self) -> str:
        """Its name; of a trial without one its id."""
        return self.name or self.id

    @property
    def duration_s(self) -> float | None:
        """Seconds from the last start to the end; None where it has not ended."""
        return None if self.started is None or self.finished is None else self.finished - self.started

    @property
    def cards(self) -> tuple[str, ...]:
        """Types of the GPUs or CPUs that computed it, each once; () of a duplicate, and of a record of an earlier version."""
        return () if self.duplicate_of else tuple(self.extra.get("cards", ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong with its files when it was resumed, as lines."""
        return () if self.duplicate_of else tuple(self.extra.get("warnings", ()))

    @cached_property
    def rung_values(self) -> dict[int, float]:
        """Step -> mean over seeds, of the rungs that all seeds have reached; NaN if one is."""
        return {step: mean(at.values()) for step, at in sorted(self.rungs.items()) if set(self.seeds) <= set(at)}

    @property
    def last_rung(self) -> tuple[int, float] | None:
        """The highest rung that all seeds have reached, and the value there."""
        values = self.rung_values
        return max(values.items()) if values else None


#: part -> its trials, by number
Records = Mapping[str, Sequence[TrialRecord]]


def by_id(records: Iterable[TrialRecord]) -> dict[str, TrialRecord]:
    """Records by their id."""
    return {record.id: record for record in records}


def all_of(records: Records) -> list[TrialRecord]:
    """The trials of all parts."""
    return [record for own in records.values() for record in own]


def why_no_score(metric: str, value: float | None) -> str:
    """Why a value of the metric is no score, as a clause; "" where it is one."""
    if value is None:
        return f"{metric} was not measured"
    return "" if math.isfinite(value) else f"{metric} is {value}"


def trained_s(records: Iterable[TrialRecord], now: float) -> float:
    """Seconds in which at least one of these trials ran. A second counts once, however many trials ran in it. Segments that
    ran when a driver was killed are not counted.

    Args:
        now: on the clock of the driver (`bft_ray.study.records.clock`); taken as the end of segments that still run.
    """
    total, until = 0.0, -math.inf
    for began, ended in sorted(span for record in records for span in _spans(record, now)):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def last_s(records: Iterable[TrialRecord]) -> float:
    """The last time up to which one of these trials is known to have run; 0 where none has."""
    ended = [end for record in records if record.is_finished or "ran" in record.extra for _, end in _spans(record, 0.0)]
    return max(ended, default=0.0)


def _spans(record: TrialRecord, now: float) -> list[tuple[float, float]]:
    """(begin, end) of each time in which a trial ran, by the clock of its driver."""
    if record.duplicate_of:
        return []
    if "ran" in record.extra:
        running = [] if record.is_finished else [began for began, _ in record.extra.get("since", {}).values()]
        return [(began, ended) for began, ended in record.extra["ran"]] + [
            (began, max(began, now)) for began in running
        ]
    if not record.started or record.state == "waiting":
        return []
    ended = record.finished if record.is_finished else now  # of an earlier version, whose segments are not known
    return [(record.started, max(record.started, ended or 0.0))]


def begun_segment(record: TrialRecord, seed: int, now: float, num_workers: int) -> dict[str, Any]:
    """What to keep with a trial (`extra`) of which workers have begun a segment: `since`, seed -> when, and how many; `ran`,
    (begin, end) of each earlier segment.

    Args:
        now: on the clock of the driver, as for `ended_segment`.
    """
    since = record.extra.get("since", {}) | {str(seed): [now, num_workers]}
    return {"since": since, "ran": record.extra.get("ran", [])}


def ended_segment(
    record: TrialRecord, seed: int, now: float, cards: Sequence[str] = (), warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """What to keep with a trial of which a segment has ended: `ran` with this one; `worker_s`, its seconds times workers so
    far; the types of the cards that computed it; and its warnings. {} for a segment that had not begun.
    """
    since = dict(record.extra.get("since", {}))
    if str(seed) not in since:
        return {}
    began, num_workers = since.pop(str(seed))
    ended = max(now, began)
    spent = record.extra.get("worker_s", 0.0) + (ended - began) * num_workers
    kept = {"cards": sorted({*record.extra.get("cards", ()), *cards})} if cards else {}
    if warnings:
        kept["warnings"] = list(dict.fromkeys([*record.extra.get("warnings", ()), *warnings]))
    return {"since": since, "ran": [*record.extra.get("ran", []), [began, ended]], "worker_s": spent, **kept}


def worker_hours(record: TrialRecord, now: float, num_workers: float = 1) -> float:
    """Worker-hours that a trial took: the time of each of its segments, times the workers of the segment. Times at which it
    waited, and the segments that ran when a driver was killed, are not counted; a duplicate took nothing.

    Args:
        now: on the clock of the driver; the end of segments that still run.
        num_workers: of a record of an earlier version, whose segments are not known: it counts from its last start on.
    """
    if record.duplicate_of or record.started is None:
        return 0.0
    since: Mapping[str, tuple[float, float]] = record.extra.get("since", {})
    end = record.finished if record.is_finished and record.finished is not None else now
    if "worker_s" in record.extra or since:
        running = sum(max(end - began, 0.0) * workers for began, workers in since.values())
        return (record.extra.get("worker_s", 0.0) + running) / 3600
    return 0.0 if record.state == "waiting" else max(end - record.started, 0.0) * num_workers / 3600


def mean(values: Iterable[float]) -> float:
    """The plain mean, summed without rounding errors, so that the order does not matter; NaN of no values."""
    found = list(values)
    if not all(map(math.isfinite, found)):
        return sum(found)  # inf or NaN
    return math.fsum(found) / len(found) if found else math.nan
