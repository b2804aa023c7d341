"""Which trials are promoted at a rung: successive halving as a pure function of the records.

With reduction eta, and n trials at a rung, `promotes` asks one of two rules:

- `is_promoted`, asynchronous (the default): a trial that reaches the rung is promoted at once if it is among the best
  max(1, floor(n / eta)) of all that have reached it so far, itself included. This is ASHA (Li et al., "A System for
  Massively Parallel Hyperparameter Tuning", 2020, arXiv 1810.05934) with the decision made on arrival, as in Ray and
  Optuna: a stopped trial is never resumed, so nothing waits and no state is kept. Early trials are promoted more easily
  than late ones.
- `survivors`, synchronous (`deterministic: true`): all trials of a batch wait for each other, and the best ceil(n / eta)
  are promoted (successive halving, Jamieson and Talwalkar 2016). The order of arrival does not matter, so a study can be
  repeated exactly.

Of equal values the lower trial number ranks first: settings without a difference in effect (such as a cap that never
binds) have equal values, and would all be promoted together. A value that is not finite is never promoted. Duplicates do
not count: they were not run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from bft_ray.config.metrics import higher_is_better
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import Asha
from bft_ray.study.propose.sampler import batch_of, rung_metric
from bft_ray.study.records.record import TrialRecord


def promotes(
    space: SearchSpace, records: Sequence[TrialRecord], number: int, step: int, rungs: Sequence[int]
) -> bool | None:
    """Whether trial `number`, which has reported at the rung of `step`, is promoted; None while that depends on others.

    Args:
        space: of the study; its scheduler is ASHA.
        records: of the search so far.
        rungs: steps of all rungs of the trial.
    """
    assert isinstance(space.scheduler, Asha)
    reduction, metric = space.scheduler.reduction, rung_metric(space)
    if not space.deterministic:
        return is_promoted(records, number, step, reduction, metric)
    batch = batch_of(space, number, records)
    alive = survivors(batch, rungs, step, reduction, metric) if batch else None
    return None if alive is None else number in alive


def is_promoted(records: Iterable[TrialRecord], number: int, step: int, reduction: int, metric: str) -> bool:
    """Whether trial `number`, which has reported at the rung of `step`, is promoted; see the head of this file.

    Args:
        records: of the study so far; those with a value at this rung count.
        step: of the rung, in optimizer steps.
        reduction: eta.
        metric: at the rungs; it decides whether higher or lower is better.

    Raises:
        KeyError: the trial has not reported there.
    """
    reached = [(record.number, record.rung_values) for record in records if not record.duplicate_of]
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
    """Numbers of the trials of a batch that are promoted at the rung of `step`; None while one has not reported yet.

    All trials of the batch enter the first rung; the survivors of one rung enter the next. The best
    ceil(entrants / reduction) survive. Failed trials are entrants, so a failure promotes no other trial.

    Args:
        batch: all of its records, in any order (`bft_ray.study.propose.sampler.batch_of`). A missing one is not waited for.
        rungs: steps of all rungs.
        step: one of them.
        reduction: eta.
        metric: at the rungs; it decides whether higher or lower is better.

    Raises:
        KeyError: `step` is none of the rungs.
    """
    entrants = {record.number: record for record in batch if not record.duplicate_of}
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
