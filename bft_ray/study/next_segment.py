"""Which segment a run of a trial needs next: a function of the trial's record."""

from __future__ import annotations

from bft_ray.config import Config
from bft_ray.space.duplicates import run_key
from bft_ray.study.definition import Study
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Segment
from bft_ray.study.records.store import CONFIRMATION, SEARCH
from bft_ray.train.launch import pin_paths


def next_segment(study: Study, record: TrialRecord, seed: int, config: Config) -> Segment | None:
    """From the run's last state to its next rung or end; None while its promotion depends on other trials.

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


def _keeps_weights(study: Study, record: TrialRecord, seed: int) -> bool:
    """Whether to keep the weights: those of the first seed, of the search and of the confirmation."""
    if record.part == CONFIRMATION:
        assert study.space.confirmation is not None
        return seed == study.space.confirmation.seeds[0]
    return record.part == SEARCH and seed == record.seeds[0]
