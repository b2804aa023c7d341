"""What the study cost, and what stopping early and duplicates saved."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Part, Section, Table, Tone
from bft_ray.study.definition import Study
from bft_ray.study.kept import Known
from bft_ray.study.records.leaderboard import saved, span
from bft_ray.study.records.record import TrialRecord, all_of, trained_s, worker_hours
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from bft_ray.study.report.describe import saved_sentence

_LOOKS: Sequence[tuple[str, str, Tone, float]] = (
    (BASELINES, "baselines", "dark", 0.5),
    (SEARCH, "search", "main", 0.8),
    (CONFIRMATION, "confirmation", "best", 0.5),
)


def cost(known: Known, now: float) -> Section | None:
    """None before the first trial has begun.

    Args:
        now: seconds since 1970; the end of trials that still run.
    """
    begun = [record for record in all_of(known.parts) if record.started and not record.duplicate_of]
    if not begun:
        return None
    total = sum(hours(record, known.study, now) for record in begun)
    unit, factor = unit_of(total)
    parts: list[Part] = [_sentence(known, total, begun, now), _table(known, unit, factor, now)]
    return Section("cost", "What it cost", [*parts, _gantt(begun, now)])


def hours(record: TrialRecord, study: Study, now: float | None = None) -> float:
    """Worker-hours of a trial, as `bft_ray.study.records.record.worker_hours`.

    Args:
        now: the end of a trial that still runs; None: such a trial counts as 0.
    """
    if now is None and not record.is_finished:
        return 0.0
    workers = study.space.fixed.get("cluster.num_workers", study.base.cluster.num_workers)
    return worker_hours(record, now or 0.0, workers)


def unit_of(worker_hours: float) -> tuple[str, float]:
    """The unit that suits an amount, and its number in an hour."""
    return ("worker-minutes", 60.0) if worker_hours < 2 else ("worker-hours", 1.0)


def _sentence(known: Known, total: float, begun: Sequence[TrialRecord], now: float) -> str:
    unit, factor = unit_of(total)
    wall = max(record.finished or now for record in begun) - min(record.started or now for record in begun)
    return (
        f"**{factor * total:,.1f} {unit}** over {span(wall)}, of which trials ran in {span(trained_s(begun, now))}. "
        f"{saved_sentence(known.parts)}.{_budget(known, now)}"
    )


def _budget(known: Known, now: float) -> str:
    """A sentence on `budget.worker_hours`; "" where there is none."""
    limit = known.study.space.budget.worker_hours
    if limit is None:
        return ""
    used = sum(hours(record, known.study, now) for part in (BASELINES, SEARCH) for record in known.parts[part])
    return f" Baselines and search took {used:.3g} of the {limit:g} worker-hours after which no trial starts."


def _table(known: Known, unit: str, factor: float, now: float) -> Table:
    rows: list[list[Cell]] = []
    for part, records in known.parts.items():
        if not records:
            continue
        found = saved(records)
        spent = factor * sum(hours(record, known.study, now) for record in records)
        failed = sum(record.state == "failed" and not record.duplicate_of for record in records)
        counts = (
            len(records),
            found.num_duplicates,
            found.num_pruned,
            failed,
            found.trained,
            found.duplicates + found.pruned,
        )
        rows.append([part, *(Number.of(count, ",") for count in counts), Number.of(spent, ",.1f")])
    return Table(["part", "trials", "duplicates", "stopped", "failed", "steps trained", "steps saved", unit], rows)


def lanes(records: Sequence[TrialRecord], now: float) -> dict[str, int]:
    """Trial -> a lane, so that the trials of one lane follow each other: as many lanes as ran at a time."""
    found: dict[str, int] = {}
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for record in sorted(records, key=lambda record: record.started or 0.0):
        start = record.started or 0.0
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        found[record.id] = lane
        heapq.heappush(busy, (max(record.finished or now, start), lane))
    return found


def _gantt(begun: Sequence[TrialRecord], now: float) -> Figure:
    first = min(record.started or now for record in begun)
    wall = max(record.finished or now for record in begun) - first
    unit, per = ("hours", 3600.0) if wall >= 7200 else ("minutes", 60.0)
    own = lanes(begun, now)

    def bars(ran: Sequence[TrialRecord], name: str, tone: Tone, height: float) -> Marks:
        starts = [((record.started or first) - first) / per for record in ran]
        ends = [((record.finished or now) - first) / per for record in ran]
        texts = [
            f"{record.id}, {record.name}: {record.status}, {span(per * (end - start))}"
            for record, start, end in zip(ran, starts, ends, strict=True)
        ]
        places = [float(own[record.id]) for record in ran]
        return Marks(name, [], places, tone=tone, low=starts, high=ends, is_bar=True, height=height, texts=texts)

    marks = []
    for part, label, tone, height in _LOOKS:
        for is_lost in (False, True):
            if ran := [r for r in begun if r.part == part and (r.state in ("pruned", "failed")) is is_lost]:
                name = f"{label}, stopped or failed" if is_lost else label
                marks.append(bars(ran, name, "grey" if is_lost else tone, height / (2 if is_lost else 1)))
    count = max(own.values()) + 1
    return Figure(
        "workers",
        "Who worked when",
        f"{len(begun)} trials in {count} lanes over {wall / per:.3g} {unit}, by part of the study.",
        Axis(f"{unit} since the first start"),
        Axis(names=[f"slot {place + 1}" for place in range(count)]),
        marks,
        "A bar is a trial; a gap is a time in which a slot had nothing to do. Records do not name machines, so "
        "trials are laid into as few slots as fit.",
    )
