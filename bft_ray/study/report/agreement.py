"""Whether early stopping may have lost a winner: how well the order of trials at a rung agrees with the order at the end.

Kendall's tau-b over the trials that ran to the end, with the interval of Fieller, Hartley and Pearson (1957, Biometrika 44):

    tanh( atanh(tau) -+ 1.96 sqrt(0.437 / (n - 4)) )

Stopped trials have no final value, so this is the agreement among the best at the rungs. It is lower than among all trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy import stats

from bft_ray.config.metrics import higher_is_better
from bft_ray.study.records.record import TrialRecord

_LEAST = 5  # trials; for fewer there is no interval


@dataclass(frozen=True)
class Agreement:
    """The agreement of two orders of the same trials.

    Args:
        tau: 1: they are the same; 0: they are independent.
        low, high: its interval at 95 %.
        num_trials: n.
    """

    tau: float
    low: float
    high: float
    num_trials: int


def kendall(first: Sequence[float], second: Sequence[float]) -> Agreement | None:
    """Kendall's tau-b of two lists of n values (see the head of the file); None for n < 5, or if one list is constant."""
    if len(first) < _LEAST or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    tau = float(stats.kendalltau(first, second).statistic)
    place = math.atanh(min(max(tau, -1 + 1e-9), 1 - 1e-9))
    reach = float(stats.norm.isf(0.025)) * math.sqrt(0.437 / (len(first) - 4))
    return Agreement(tau, math.tanh(place - reach), math.tanh(place + reach), len(first))


def by_rung(records: Iterable[TrialRecord], at_rungs: str, at_end: str) -> dict[int, Agreement]:
    """Rung -> agreement with the order at the end.

    Args:
        records: of the search; those count that were run to their end.
        at_rungs, at_end: metrics of the values; they decide whether higher or lower is better.
    """
    done = [one for one in records if one.ran_to_end and one.value is not None]
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
        if not record.duplicate_of:
            for step, value in record.rung_values.items():
                values.setdefault(step, []).append(value)
    return {step: len(at) for step, at in sorted(values.items()) if len(at) > 1 and len(set(at)) == 1}
