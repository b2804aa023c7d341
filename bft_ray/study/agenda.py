"""What a study does next: the trial to insert, and the segment of a trial to run; functions of its records (and, where the time
is limited, of the clock).
"""

from __future__ import annotations

from typing import Any

from bft_ray.config import Config
from bft_ray.space.definition import SearchSpace
from bft_ray.space.duplicates import run_key
from bft_ray.space.grid import baseline_assignments, num_trials
from bft_ray.study.confirm.candidates import arms_of
from bft_ray.study.definition import Study, trial_name
from bft_ray.study.propose.sampler import batch_size, is_ready, propose, rung_metric
from bft_ray.study.records import clock
from bft_ray.study.records.record import Records, TrialRecord, trained_s, worker_hours
from bft_ray.study.records.segment import Segment
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from bft_ray.train.pins import pin_paths

PARTS = (BASELINES, SEARCH, CONFIRMATION)


def next_trial(space: SearchSpace, records: Records) -> TrialRecord | None:
    """The next trial, to be inserted; None: there is none, either until others have ended or for good.

    The order: first the baselines, which run to their end; then the search, which begins while the last baselines run;
    and when all of these have ended, the confirmation of the best trials and of the baselines.

    Raises:
        BftError: see `arms_of`.
    """
    if (number := len(records[BASELINES])) < len(wanted := _baselines(space)):
        name, assignment = wanted[number]
        words = trial_name(assignment, name)
        return TrialRecord(BASELINES, number, assignment, tuple(space.seeds), name=words, extra={"baseline": name})
    search = records[SEARCH]
    if _proposes(space, records) and is_ready(space, len(search), search):
        found = propose(space, len(search), search)
        assert found is not None  # `num_trials` knows the end of a grid
        return TrialRecord(SEARCH, len(search), found, tuple(space.seeds), name=trial_name(found))
    if not is_searched(space, records) or (number := len(records[CONFIRMATION])) >= len(
        runs := _confirmation(space, records)
    ):
        return None
    arm, seed = runs[number]
    extra = {"arm": arm.name, "of": arm.trial.id}
    return TrialRecord(CONFIRMATION, number, arm.trial.assignment, (seed,), name=arm.name, extra=extra)


def next_segment(study: Study, record: TrialRecord, seed: int, config: Config) -> Segment | None:
    """The next segment of a run of a trial: from its last state to its next rung or end; None while its promotion depends on
    other trials.

    Args:
        config: of the trial's first seed.
    """
    config = config.model_copy(update={"seed": seed})
    rungs = study.rungs(record.part, config)
    until = None
    if rungs and not study.is_judged_in_place:
        last = max((step for step, at in record.rungs.items() if seed in at), default=0)
        if last and record.extra.get("passed", 0) < last:
            return None
        until = next((rung for rung in rungs if rung > last), None)
        rungs = (until,) if until else ()
    measured = rung_metric(study.space).split("/")[0]
    return Segment(
        study=study.id,
        trial=record.id,
        seed=seed,
        # without passwords, which Tune would write to its own files
        tree=pin_paths(config).model_dump(mode="json", exclude={"tracking"}),
        folder=study.folder_of(record),
        rungs=rungs,
        until=until,
        at_rungs=(measured,),
        keep=_keeps_weights(study, record, seed),
        same=run_key(config, None),
    )


def is_searched(space: SearchSpace, records: Records) -> bool:
    """Whether baselines and search have ended."""
    ended = all(record.is_finished for part in (BASELINES, SEARCH) for record in records[part])
    return ended and not _proposes(space, records) and len(records[BASELINES]) == len(_baselines(space))


def part_of(space: SearchSpace, records: Records) -> str:
    """The current part of a study."""
    if records[CONFIRMATION]:
        return CONFIRMATION
    return SEARCH if records[SEARCH] or not _baselines(space) else BASELINES


def totals(space: SearchSpace, records: Records) -> dict[str, int]:
    """Part -> trials that it has or will have at most."""
    search, confirmed = records[SEARCH], space.most_confirmation_runs
    if is_searched(space, records):
        confirmed = len(_confirmation(space, records))
    proposed = num_trials(space) if _proposes(space, records) else len(search)
    return {BASELINES: len(_baselines(space)), SEARCH: proposed, CONFIRMATION: confirmed}


def _proposes(space: SearchSpace, records: Records) -> bool:
    """Whether the search inserts more trials: its budget (trials, time, worker-hours) is not used up, and the confirmation
    has not begun. A deterministic batch is always completed, because its trials are compared together.
    """
    search = records[SEARCH]
    if records[CONFIRMATION]:
        return False
    is_late = time_is_over(space, records, clock.now())
    if space.deterministic and len(search) % batch_size(space):
        is_late = False
    return len(search) < num_trials(space) and not is_late


def time_is_over(space: SearchSpace, records: Records, now: float) -> bool:
    """Whether `budget.time_s` or `budget.worker_hours` is used up.

    Args:
        now: on the clock of the driver (`bft_ray.study.records.clock`).
    """
    time_s, hours = space.budget.time_s, space.budget.worker_hours
    if time_s is not None and trained_s(records[SEARCH], now) > time_s:
        return True
    return hours is not None and used_hours(records, now) >= hours


def used_hours(records: Records, now: float) -> float:
    """Worker-hours that count towards `budget.worker_hours`: those of baselines and search."""
    return sum(worker_hours(record, now) for part in (BASELINES, SEARCH) for record in records[part])


def _baselines(space: SearchSpace) -> list[tuple[str, dict[str, Any]]]:
    """(name, assignment) of every baseline trial: each baseline with each value that it is tuned over."""
    return [(one.name, assignment) for one in space.baselines for assignment in baseline_assignments(space)]


def _confirmation(space: SearchSpace, records: Records) -> list[tuple[Any, int]]:
    """Arms with each of their seeds."""
    if space.confirmation is None:
        return []
    arms = arms_of(space, records[BASELINES], records[SEARCH])
    return [(arm, seed) for arm in arms for seed in space.confirmation.seeds]


def _keeps_weights(study: Study, record: TrialRecord, seed: int) -> bool:
    """Whether to keep the weights: those of the first seed, of the search and of the confirmation."""
    if record.part == CONFIRMATION:
        return seed == study.kept_seed
    return record.part == SEARCH and seed == record.seeds[0]
