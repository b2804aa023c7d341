"""Whether early stopping may have lost a winner: how far the order of trials at a rung is that at the end.

Kendall's tau-b over the trials that ran to the end, with the interval of Fieller, Hartley and Pearson (1957, Biometrika 44):

    tanh( atanh(tau) -+ 1.96 sqrt(0.437 / (n - 4)) )

Those that were stopped have no final value, so this is the agreement among the best at the rungs, which is lower than among all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from bft_ray.config.metrics import higher_is_better
from bft_ray.study.records.record import TrialRecord

_LEAST = 5  # trials: of fewer there is no interval


@dataclass(frozen=True)
class Agreement:
    """Of two orders of the same trials.

    Args:
        tau: 1 where they are the same, 0 where they have nothing to do with each other.
        low, high: its interval at 95 %.
        num_trials: n.
    """

    tau: float
    low: float
    high: float
    num_trials: int


def kendall(first: Sequence[float], second: Sequence[float]) -> Agreement | None:
    """See the head of the file; None of fewer than 5 trials, or where all values of a side are equal."""
    if len(first) < _LEAST or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    tau = float(stats.kendalltau(first, second).statistic)
    place = math.atanh(min(max(tau, -1 + 1e-9), 1 - 1e-9))
    reach = float(stats.norm.isf(0.025)) * math.sqrt(0.437 / (len(first) - 4))
    return Agreement(tau, math.tanh(place - reach), math.tanh(place + reach), len(first))


def by_rung(records: Iterable[TrialRecord], at_rungs: str, at_end: str) -> dict[int, Agreement]:
    """Rung -> agreement with the end.

    Args:
        records: of the search; those count that were run, and to their end.
        at_rungs, at_end: metrics of the values; say which way is better.
    """
    done = [one for one in records if one.state == "complete" and not one.merged_with and one.value is not None]
    sign = 1 if higher_is_better(at_rungs) == higher_is_better(at_end) else -1
    found = {}
    for step in sorted({step for one in done for step in one.rung_values}):
        values = [one.rung_values.get(step, math.nan) for one in done]
        pairs = [(sign * at, one.value or 0.0) for at, one in zip(values, done, strict=True) if math.isfinite(at)]
        if agreement := kendall([at for at, _ in pairs], [end for _, end in pairs]):
            found[step] = agreement
    return found


def blind_rungs(records: Iterable[TrialRecord]) -> dict[int, int]:
    """Rung -> its trials, of the rungs at which at least two trials were judged and all had the same value: there the number of
    a trial decided, not its merit.
    """
    values: dict[int, list[float]] = {}
    for record in records:
        if not record.merged_with:
            for step, value in record.rung_values.items():
                values.setdefault(step, []).append(value)
    return {step: len(at) for step, at in sorted(values.items()) if len(at) > 1 and len(set(at)) == 1}


def in_words(found: dict[int, Agreement]) -> str:
    """One line; "" where nothing can be said."""
    if not found:
        return ""
    parts = [f"step {step} {one.tau:.2f} [{one.low:.2f}, {one.high:.2f}]" for step, one in found.items()]
    most = max(one.num_trials for one in found.values())
    return (
        f"order at the rungs against the end, Kendall's tau of the {most} trials that ran to it (1: the same): {', '.join(parts)}; "
        "an interval that reaches 0 or below: a stopped trial may have been the best"
    )
