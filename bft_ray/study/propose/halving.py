"""Which trials go on at a rung: successive halving as a pure function of the records.

With reduction eta, and n trials at a rung:

- `goes_on`, asynchronous: a trial that reaches the rung goes on at once if it is among the best max(1, floor(n / eta))
  of all that have reached it so far, itself included. This is ASHA (Li et al., "A System for Massively Parallel
  Hyperparameter Tuning", 2020, arXiv 1810.05934) with its decision made on arrival, as Ray's and Optuna's have it: a
  trial that is stopped is never taken up again, so that nothing waits and nothing is kept. Early trials go on more
  easily than late ones.
- `survivors`, synchronous: all trials of a batch wait for each other, and the best ceil(n / eta) go on (successive
  halving, Jamieson and Talwalkar 2016). It depends on no order, so a study can be repeated exactly.

Among equal values the trial of the lower number goes first: settings that do not differ in effect (a cap that never
binds, say) give equal values, and would all go on together. A value that is not finite never goes on. Merged trials
have no say: they were not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bft_ray.config.metrics import higher_is_better
from bft_ray.study.records.record import TrialRecord


def goes_on(records: Iterable[TrialRecord], number: int, step: int, reduction: int, metric: str) -> bool:
    """Whether trial `number`, which has reported at the rung of `step`, goes on; see the head of this file.

    Args:
        records: of the study so far; those that have a value at this rung count.
        metric: at the rungs; says which way is better.

    Raises:
        KeyError: the trial has not reported there.
    """
    reached = [(record.number, record.rung_values) for record in records if not record.merged_with]
    values = {each: at[step] for each, at in reached if step in at}
    own = values[number]
    if not math.isfinite(own):
        return False
    sign = -1 if higher_is_better(metric) else 1
    place = (sign * own, number)
    num_before = sum(math.isfinite(value) and (sign * value, each) < place for each, value in values.items())
    return num_before < max(1, len(values) // reduction)


def survivors(
    batch: Iterable[TrialRecord], rungs: Sequence[int], step: int, reduction: int, metric: str
) -> frozenset[int] | None:
    """Numbers of the trials of a batch that go on after the rung of `step`; None while one of them is awaited.

    Entrants of the first rung are all trials of the batch, of every other rung the survivors of the one before. The
    best ceil(entrants / reduction) survive; failed trials are entrants, so that a failure promotes nobody.

    Args:
        batch: all of its records, in any order (`bft_ray.study.propose.sampler.batch_of`): one that is missing is not awaited.
        rungs: steps of all rungs.
        step: one of them.
    """
    entrants = {record.number: record for record in batch if not record.merged_with}
    alive = frozenset(entrants)
    sign = -1 if higher_is_better(metric) else 1
    for rung in sorted(rungs):
        values: dict[int, float] = {}
        num_entrants = 0
        for number in alive:
            record = entrants[number]
            if rung in record.rung_values:
                values[number] = record.rung_values[rung]
            elif record.state == "complete":
                continue  # its run is shorter than this rung
            elif not record.is_finished:
                return None
            num_entrants += 1
        order = sorted((sign * value, number) for number, value in values.items() if math.isfinite(value))
        alive = frozenset(number for _, number in order[: math.ceil(num_entrants / reduction)])
        if rung == step:
            return alive
    raise KeyError(f"{step} is none of the rungs {list(rungs)}")
