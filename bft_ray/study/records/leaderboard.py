"""The state of a study from its records alone: table, counts, saved steps, metric against a setting, status."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from bft_ray.config.metrics import format_value
from bft_ray.page.model import as_text
from bft_ray.study.records.ranking import best, ranked, tuned
from bft_ray.study.records.record import Status, TrialRecord, mean, trained_s

_NUM_BEST = 10  # trials that the table of a status shows


@dataclass(frozen=True)
class Saved:
    """Optimizer steps that were not trained.

    Args:
        trained: steps that were trained for all results.
        duplicates: steps that duplicates did not train.
        pruned: planned steps of stopped trials that were not trained; duplicates left out.
        num_duplicates, num_pruned: trials.
    """

    trained: int
    duplicates: int
    pruned: int
    num_duplicates: int
    num_pruned: int


@dataclass(frozen=True)
class Spread:
    """The objective at one value of a setting, over all runs (trials x seeds) that had it and ran to their end.

    Args:
        at: value of the setting.
        mean, low, high: of the runs' values; low and high are the least and the largest.
        sd: standard deviation of the runs; NaN for a single one.
        num_runs: duplicates count, because the value is theirs too.
    """

    at: Any
    mean: float
    low: float
    high: float
    sd: float
    num_runs: int


def counts(records: Iterable[TrialRecord]) -> dict[str, int]:
    """Status -> number of trials; every status is there."""
    found = dict.fromkeys(get_args(Status), 0)
    for record in records:
        found[record.status] += 1
    return found


def saved(records: Iterable[TrialRecord]) -> Saved:
    """Optimizer steps that duplicates and early stops have saved so far."""
    finished = [record for record in records if record.is_finished]
    duplicates = [record for record in finished if record.duplicate_of]
    pruned = [record for record in finished if record.state == "pruned" and not record.duplicate_of]
    return Saved(
        trained=sum(record.num_steps for record in finished if not record.duplicate_of),
        duplicates=sum(record.num_steps for record in duplicates),
        pruned=sum(max((r.planned_steps or 0) * len(r.seeds) - r.num_steps, 0) for r in pruned),
        num_duplicates=len(duplicates),
        num_pruned=len(pruned),
    )


def metric_by(records: Iterable[TrialRecord], metric: str, setting: str) -> list[Spread]:
    """The objective against a setting, with its spread: the data of a figure. Trials without the setting are left out.

    Args:
        metric: of the objective, or any other that was measured.
        setting: dotted field that the study varies.
    """
    groups: dict[Any, list[TrialRecord]] = {}
    for record in records:
        if record.state == "complete" and setting in record.assignment and metric in record.metrics:
            groups.setdefault(record.assignment[setting], []).append(record)
    found = []
    for at in sorted(
        groups, key=lambda value: (isinstance(value, str), value if isinstance(value, str) else float(value or 0))
    ):
        runs = [metrics[metric] for record in groups[at] for metrics in record.by_seed.values()]
        sd = statistics.stdev(runs) if len(runs) > 1 else math.nan
        found.append(Spread(at, mean(runs), min(runs), max(runs), sd, len(runs)))
    return found


# ---- as text ---------------------------------------------------------------------------------------------------------


def table(
    records: Sequence[TrialRecord], metric: str, *, rung_metric: str | None = None, limit: int | None = None
) -> list[list[str]]:
    """The leaderboard: a head and one row a trial, in the order of `ranked`.

    Args:
        records: of the search; baselines among them are shown by their names.
        metric: of the objective.
        rung_metric: metric at the rungs; None: the same.
        limit: at most so many trials; None: all.
    """
    order = ranked(records, metric, rung_metric)[:limit]
    settings = list(dict.fromkeys(name for record in records for name in record.assignment))
    short = short_names(settings)
    several = any(len(record.seeds) > 1 for record in records)
    head = [
        "place",
        "trial",
        *(short[name] for name in settings),
        metric,
        *(["sd"] if several else []),
        "steps",
        "status",
    ]
    rows = []
    for place, record in enumerate(order, 1):
        row = [str(place) if record.state == "complete" else "", _which(record)]
        row += [value_text(record.assignment.get(name, "")) for name in settings]
        row.append(format_value(metric, record.value) if record.value is not None else "")
        if several:
            runs = [metrics[metric] for metrics in record.by_seed.values() if metric in metrics]
            row.append(f"{statistics.stdev(runs):.2g}" if record.value is not None and len(runs) > 1 else "")
        rows.append([*row, str(record.num_steps), _remark(record, rung_metric or metric)])
    return [head, *rows]


def _which(record: TrialRecord) -> str:
    """The number of a trial, or the name of a baseline."""
    return f"baseline {record.extra['baseline']}" if "baseline" in record.extra else str(record.number)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a table in Markdown."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def status_text(
    records: Sequence[TrialRecord],
    metric: str,
    num_trials: int,
    *,
    now: float,
    time_s: float | None = None,
    hours: tuple[float, float] | None = None,
    rung_metric: str | None = None,
    baselines: Sequence[TrialRecord] = (),
) -> str:
    """The status of a part of a study: progress, the rest of its budget, the expected end, the best trials.

    Args:
        metric: of the objective.
        num_trials: that the study will propose.
        now: seconds since 1970.
        time_s: no trial starts after so many seconds in which trials ran; None: no limit.
        hours: worker-hours used so far, and those after which no trial starts; None: no limit.
        rung_metric: metric at the rungs; None: the same.
        baselines: of the study: the table shows each with its best values, and one may be the best of all.
    """
    by_status, steps = counts(records), saved(records)
    done = sum(record.is_finished for record in records)
    parts = ", ".join(f"{count} {status}" for status, count in by_status.items() if count)
    lines = [f"trials   {done} of {num_trials} finished" + (f": {parts}" if parts else "")]
    lines.append(
        f"steps    {steps.trained:,} trained, {steps.duplicates:,} saved by duplicates, {steps.pruned:,} by early stops"
    )
    if time_s is not None:
        left = time_s - trained_s(records, now)
        lines.append(f"time     {span(max(left, 0))} left of {span(time_s)} for starting trials")
    if hours is not None:
        lines.append(f"workers  {hours[0]:.3g} of {hours[1]:g} worker-hours used by baselines and search")
    end = expected_s(records, num_trials, now)
    if done < num_trials and end is not None:
        lines.append(f"end      expected in {span(end)}")
    beside = list(tuned(baselines, metric).values())
    top = best([*beside, *records], metric)
    if top is not None and top.value is not None:
        settings = " ".join(f"{name}={value_text(value)}" for name, value in top.assignment.items())
        which = _which(top) if "baseline" in top.extra else f"trial {top.number}"
        lines.append(f"best     {metric} {format_value(metric, top.value)}: {which}, {top.name or settings}")
    failed = [record for record in records if record.state == "failed" and not record.duplicate_of]
    lines += [f"failed   trial {record.number}: {record.reason}" for record in failed[:3]]
    if records or beside:
        lines += ["", as_text(table([*records, *beside], metric, rung_metric=rung_metric, limit=_NUM_BEST))]
    return "\n".join(lines)


def expected_s(records: Sequence[TrialRecord], num_trials: int, now: float, slots: int | None = None) -> float | None:
    """Seconds until all trials have finished, from the mean duration of the trials that were run and the share of
    duplicates so far. None before the first trial has finished.

    Args:
        slots: trials at a time; None: as many as run now.
    """
    finished = [record for record in records if record.is_finished]
    times = [record.duration_s for record in finished if not record.duplicate_of and record.duration_s is not None]
    if not times:
        return None
    each, share_run = mean(times), len(times) / len(finished)
    begun = [r.started for r in records if r.state == "running" and r.started is not None]
    to_come = max(num_trials - len(finished) - len(begun), 0)
    work = to_come * share_run * each + sum(max(each - (now - started), 0.0) for started in begun)
    return work / max(min(slots or len(begun), to_come + len(begun)), 1)


def _remark(record: TrialRecord, rung_metric: str) -> str:
    text: str = record.status
    if record.duplicate_of:
        text += f" of {record.duplicate_of.removeprefix(record.part + '/')}"
    if record.state == "pruned" and record.last_rung is not None:
        step, value = record.last_rung
        text += f" at {step}: {format_value(rung_metric, value)}"
    if record.state == "failed":
        text += f": {record.reason}"
    return text + (f" (attempt {record.attempts})" if record.attempts > 1 and not record.duplicate_of else "")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """`loss.window` -> `window`, where no other field has this ending."""
    found = list(names)
    ends = [name.rpartition(".")[2] for name in found]
    return {name: end if ends.count(end) == 1 else name for name, end in zip(found, ends, strict=True)}


def value_text(value: Any) -> str:
    """A setting's value for a table; null is shown as `none`."""
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def trials_text(count: int) -> str:
    """`1 trial`, `12 trials`."""
    return f"{count} trial{'s' * (count != 1)}"


def span(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
