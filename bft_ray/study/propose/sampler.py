"""The next assignment, as a pure function of the space, its number, and records of earlier trials.

Optuna's samplers keep state: what they have drawn, which trial was reported first. Here each suggestion has a sampler
of its own, seeded with hash(seed, number), in a study in memory into which the earlier records are replayed by number.
So the same records give the same suggestion in every process and after every crash. `known` decides which records
those are:

- asynchronous (the default): all trials, finished or running. It is the fastest, and not repeatable, because the order
  of results depends on time.
- `deterministic: true`: trials come in batches of `batch_size`. Suggestion n knows the results of all earlier batches,
  which must have finished, and the assignments (not the results) of the earlier trials of its own batch. The rungs wait
  in the same way (`bft_ray.study.propose.halving.survivors`), so a study is the same on every repetition, after any crash
  and for any number of trials at a time. Only `budget.time_s` would still depend on time.

A suggestion that was made before would bring nothing new: it is drawn again. Where the sampler repeats a known
suggestion twice, the next ones are drawn at random.

TPE is multivariate, grouped by conditions, and treats running trials as poor ones (constant liar). Stopped trials count
as in Optuna: after all complete ones, by the rung that they reached. A failed trial counts as stopped before its first
rung: the worst, so that the sampler leaves its neighbourhood.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from bft_ray.config.metrics import higher_is_better
from bft_ray.errors import BadInput
from bft_ray.space.assign import active
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import grid, num_combinations, num_trials
from bft_ray.space.parts import Asha
from bft_ray.study.records.distributions import distributions_of, draw, encode
from bft_ray.study.records.ranking import ranked
from bft_ray.study.records.record import TrialRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs every study in memory

_LEAST_BATCH = 8
#: TPE sees at most this many trials: the best ones and the last ones. Its cost grows with their number, and old ones
#: have little weight: all but the last 25 lose weight by age, and at most 25 are "good" ones
WINDOW = 200
_BEST = 50
_REDRAWS = 12  # of a suggestion that was made before; after so many, it is taken all the same
_ANY_TIME = datetime(2000, 1, 1)  # trials must have one; no sampler reads it


def batch_size(space: SearchSpace) -> int:
    """Trials that are proposed and judged together under `deterministic`: the first power of ASHA's reduction that is at
    least 8 (whole brackets fill it), or 8 without ASHA. Another size would make another study.
    """
    if not isinstance(space.scheduler, Asha):
        return _LEAST_BATCH
    size = space.scheduler.reduction
    while size < _LEAST_BATCH:
        size *= space.scheduler.reduction
    return size


def batch_of(space: SearchSpace, number: int, records: Sequence[TrialRecord]) -> list[TrialRecord] | None:
    """The records of the batch that a trial belongs to, by number; None while one of them has not been proposed."""
    first = _first_of_batch(space, number)
    stop = min(first + batch_size(space), num_trials(space))
    batch = [record for record in _by_number(records) if first <= record.number < stop]
    return batch if len(batch) == stop - first else None


def _first_of_batch(space: SearchSpace, number: int) -> int:
    return number - number % batch_size(space)


def is_ready(space: SearchSpace, number: int, records: Sequence[TrialRecord]) -> bool:
    """Whether suggestion `number` can be made: always, but in a deterministic study when all earlier batches are done.

    Args:
        records: of all earlier trials.
    """
    if not space.deterministic or space.sampler.kind != "tpe":
        return True
    first = _first_of_batch(space, number)
    return all(record.is_finished for record in records if record.number < first)


def known(space: SearchSpace, number: int, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The records of earlier trials that suggestion `number` may use: see the head of this file.

    Raises:
        BadInput: one of them is missing or, in a deterministic study, has not finished.
    """
    earlier = [record for record in _by_number(records) if record.number < number]
    if [record.number for record in earlier] != list(range(number)):
        rule = "proposed after all trials before it"
        raise BadInput("trial", number, rule, f"There are {len(earlier)} records before it.")
    if not space.deterministic:
        return earlier
    first = _first_of_batch(space, number)
    if not is_ready(space, number, earlier):
        raise BadInput("trial", number, f"proposed when the trials before {first} have finished")
    return [record if record.number < first else _unjudged(record) for record in earlier]


def propose(space: SearchSpace, number: int, records: Sequence[TrialRecord]) -> dict[str, Any] | None:
    """Suggestion `number`: dotted field -> value for the parameters that are active; None after the end of a grid.

    Args:
        records: of all earlier trials; later ones are not used.

    Raises:
        BadInput: see `known`.
    """
    if space.sampler.kind == "grid":
        return _of_grid(space, number)
    tried = [record.assignment for record in records if record.number < number]
    found = _learnt(space, number, records, draw_seed(space, number))
    for again in range(1, _REDRAWS):
        if found not in tried:
            break
        seed, stays = draw_seed(space, number, again), again > 1  # learning again costs more than drawing
        found = _at_random(space, seed) if stays else _learnt(space, number, records, seed)
    return found


def _at_random(space: SearchSpace, seed: int) -> dict[str, Any]:
    return _ask(space, RandomSampler(seed=seed), [])


def _learnt(space: SearchSpace, number: int, records: Sequence[TrialRecord], seed: int) -> dict[str, Any]:
    """One draw of the space's sampler; see `propose`."""
    if space.sampler.kind == "random":
        return _at_random(space, seed)
    earlier = known(space, number, records)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group`
        sampler = TPESampler(
            n_startup_trials=space.sampler.startup_trials,
            multivariate=True,
            group=True,
            constant_liar=True,
            seed=seed,
        )
    return _ask(space, sampler, _window(space, earlier))


def draw_seed(space: SearchSpace, number: int, again: int = 0) -> int:
    """Seed of suggestion `number`, drawn again so often: the same on every machine."""
    return _hash(space.sampler.seed, number, *([again] if again else [])) % 2**32


def _of_grid(space: SearchSpace, number: int) -> dict[str, Any] | None:
    """Combinations in an order drawn by the seed, so that a budget that ends early leaves out a random part."""
    count = num_combinations(space) or 0
    if number >= count:
        return None
    order = sorted(range(count), key=lambda place: _hash(space.sampler.seed, place))
    return next(islice(grid(space), order[number], None))


def _ask(space: SearchSpace, sampler: BaseSampler, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """What the sampler draws after these records, one parameter at a time, parents of conditions first."""
    higher = higher_is_better(space.objective.metric)
    study = optuna.create_study(
        storage=InMemoryStorage(), sampler=sampler, direction="maximize" if higher else "minimize"
    )
    distributions = distributions_of(space)
    sign = 1 if higher_is_better(rung_metric(space)) == higher else -1
    for record in records:
        study.add_trial(_replayed(space, record, distributions, sign))
    trial = study.ask()
    chosen: dict[str, Any] = {}
    for name in space.ordered():
        if name in active(space, chosen):
            chosen[name] = draw(trial, name, space.parameters[name])
    return {name: chosen[name] for name in space.parameters if name in chosen}


class _Past(FrozenTrial):
    """A trial that nobody changes, so the study in memory need not copy its contents."""

    def __deepcopy__(self, memo: dict) -> _Past:
        return copy.copy(self)


def _replayed(
    space: SearchSpace, record: TrialRecord, distributions: dict[str, BaseDistribution], sign: int
) -> FrozenTrial:
    """A record as the sampler sees it; `sign` turns values at rungs into the direction of the objective."""
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.PRUNED}
    state = states.get(record.state, TrialState.RUNNING)
    rungs = record.rung_values if record.state == "pruned" else {}
    return _Past(
        number=record.number,
        trial_id=record.number,
        state=state,
        value=record.value,
        datetime_start=_ANY_TIME,
        datetime_complete=None if state == TrialState.RUNNING else _ANY_TIME,
        params={name: encode(space.parameters[name], value) for name, value in record.assignment.items()},
        distributions={name: distributions[name] for name in record.assignment},
        user_attrs={},
        system_attrs={},
        intermediate_values={step: sign * value for step, value in rungs.items()},
    )


def _window(space: SearchSpace, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """At most `WINDOW` records: the best as the leaderboard ranks them, the last ones, and all that run."""
    finished = [record for record in records if record.is_finished]
    if len(finished) <= WINDOW:
        return list(records)
    best_first = ranked(finished, space.objective.metric, rung_metric(space))
    best = {record.number for record in best_first[:_BEST]}
    others = [record for record in finished if record.number not in best][-(WINDOW - _BEST) :]
    kept = best | {record.number for record in others}
    return [record for record in records if not record.is_finished or record.number in kept]


def rung_metric(space: SearchSpace) -> str:
    """The metric that rungs compare: that of the scheduler, else the objective's."""
    return (isinstance(space.scheduler, Asha) and space.scheduler.metric) or space.objective.metric


def _unjudged(record: TrialRecord) -> TrialRecord:
    """Of a trial of the same batch only the assignment counts, whatever its result is by now."""
    return TrialRecord(record.part, record.number, record.assignment, record.seeds, record.key, "running")


def _by_number(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda record: record.number)


def _hash(*values: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big")
