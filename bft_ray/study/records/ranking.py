"""The order of trials, and the best of them: the one place that ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

from bft_ray.config.metrics import higher_is_better
from bft_ray.study.records.record import TrialRecord

_ORDER = {"complete": 0, "pruned": 1, "running": 2, "waiting": 3, "failed": 4}


def ranked(records: Iterable[TrialRecord], metric: str, rung_metric: str | None = None) -> list[TrialRecord]:
    """Complete trials, best first (of equal values the lower number); then stopped ones by their last rung and their value
    there; then running, waiting and failed ones by number.

    Args:
        metric: of the objective.
        rung_metric: metric at the rungs; None: the same.
    """
    sign = -1 if higher_is_better(metric) else 1
    rung_sign = -1 if higher_is_better(rung_metric or metric) else 1

    def place(record: TrialRecord) -> tuple:
        first, second = 0.0, 0.0
        if record.state == "complete" and record.value is not None:
            first = sign * record.value
        elif record.state == "pruned" and record.last_rung is not None:
            step, value = record.last_rung
            first, second = -step, rung_sign * value if math.isfinite(value) else math.inf
        return _ORDER[record.state], first, second, record.number

    return sorted(records, key=place)


def best(records: Iterable[TrialRecord], metric: str) -> TrialRecord | None:
    """The best complete trial, the first of equal ones; None while there is none. Never a duplicate within its part."""
    complete = [record for record in records if record.state == "complete"]
    found = ranked((one for one in complete if not (one.duplicate_of or "").startswith(f"{one.part}/")), metric)
    return found[0] if found else None


def tuned(baselines: Iterable[TrialRecord], metric: str) -> dict[str, TrialRecord]:
    """Each baseline with its best values: name -> its best complete trial (duplicates count), the best baseline first.

    Args:
        baselines: the trials of that part; each knows its baseline in `extra`.
    """
    found: dict[str, TrialRecord] = {}
    for record in ranked((record for record in baselines if record.state == "complete"), metric):
        found.setdefault(record.extra.get("baseline", record.name), record)
    return found
