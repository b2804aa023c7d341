"""A study as its database keeps it: whoever reads the database alone knows what it asked, what it found, and what it chose."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.places import storage
from bft_ray.places.addresses import redact_tree
from bft_ray.places.kept import read_kept
from bft_ray.space.definition import SearchSpace
from bft_ray.study.agenda import PARTS, next_trial
from bft_ray.study.confirm.candidates import arms_of, confirmed, limit_of, plan_of
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.confirm.choose import choose
from bft_ray.study.confirm.items import item_scores
from bft_ray.study.confirm.standing import Items, compared
from bft_ray.study.confirm.tested import TestResult, note_of, on_test_split
from bft_ray.study.definition import Study
from bft_ray.study.records.record import TrialRecord, by_id
from bft_ray.study.records.segment import Run
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store

_STUDY = "study"  # name of the note


@dataclass(frozen=True)
class Known:
    """All that is known of a study at one moment.

    Args:
        parts: part -> its trials.
        is_driven: a driver runs it now.
        is_finished: it has its answer.
        run_id: of its MLflow run; "" before it began.
        choice, test: None where there was none, or not yet.
        items: of a study that chooses nothing, see `Items`.
        profile: of its training data (`Profile.to_dict`); None: there is none, or it cannot be read from here.
    """

    study: Study
    parts: Mapping[str, Sequence[TrialRecord]]
    is_driven: bool = False
    is_finished: bool = False
    run_id: str = ""
    choice: Choice | None = None
    test: TestResult | None = None
    items: Items = field(default_factory=dict)
    profile: Mapping[str, Any] | None = None


def note_study(store: Store, study: Study) -> None:
    """Write what the study consists of, without passwords."""
    sizes = study.samples_per_source
    tree = {
        "space": study.space.model_dump(mode="json", exclude_unset=True),
        "base": study.base.model_dump(mode="json"),
        "longest": study.longest,
        "samples_per_source": None if sizes is None else list(sizes),
        "folder": study.folder,
    }
    store.note(_STUDY, redact_tree(tree))


def known(store: Store) -> Known:
    """What the database, and the files of the study where they can be read, tell now. Nothing is written.

    Raises:
        BadInput: the study began under an earlier version, which did not keep what it consists of.
    """
    notes = store.notes()
    study = _study(store.study, notes)
    parts = {part: store.open_part(part).records() for part in PARTS}
    holder, is_finished = store.lease.holder(), bool(notes.get("result"))
    choice = chosen(study.space, parts, notes.get("before"))
    return Known(
        study=study,
        parts=parts,
        is_driven=not is_finished and holder is not None and holder.is_alive,
        is_finished=is_finished,
        run_id=notes.get("run_id", ""),
        choice=choice,
        test=_test(study.space, choice, notes),
        items=compared_items(study, parts) if study.space.confirmation is None else {},
        profile=_profile(study),
    )


def _study(name: str, notes: Mapping[str, Any]) -> Study:
    tree = notes.get(_STUDY)
    if tree is None:
        remedy = (
            "Its `bft-ray search` writes that when it is given again; a finished study has its answer in `--status`."
        )
        raise BadInput("study", name, "one whose database holds what it consists of", remedy)
    sizes = tree["samples_per_source"]
    return Study(
        notes["id"],
        SearchSpace.model_validate(tree["space"]),
        make_config(tree["base"], name, for_training=False),
        tree["longest"],
        None if sizes is None else tuple(sizes),
        tree["folder"],
    )


def chosen(space: SearchSpace, parts: Mapping[str, Sequence[TrialRecord]], before: float | None) -> Choice | None:
    """The choice; None: the study confirms nothing, or not all of its runs have ended.

    Args:
        before: the base model's value of the second objective, where there is one.
    """
    runs = parts[CONFIRMATION]
    if space.confirmation is None or not runs or not all(record.is_finished for record in runs):
        return None
    if next_trial(space, parts) is not None or (space.objective.second is not None and before is None):
        return None
    arms = arms_of(space, parts[BASELINES], parts[SEARCH])
    return choose(confirmed(space, runs), plan_of(space, arms, limit_of(space, before), runs))


def _test(space: SearchSpace, choice: Choice | None, notes: Mapping[str, Any]) -> TestResult | None:
    if choice is None or choice.champion is None:
        return None
    arms = {choice.champion, choice.plan.default}
    measured = {arm: notes[note_of(arm)] for arm in arms if note_of(arm) in notes}
    return on_test_split(space.objective.metric, choice.champion, measured) if len(measured) == len(arms) else None


def compared_items(study: Study, parts: Mapping[str, Sequence[TrialRecord]]) -> dict[str, dict[int, dict[str, float]]]:
    """Scores of the items of the best trial and of the one that it is compared with, from the files of their runs. A trial
    is left out if a file is gone or if the metric has no scores of single items.
    """
    ran, metric = by_id([*parts[BASELINES], *parts[SEARCH]]), study.space.objective.metric
    found: dict[str, dict[int, dict[str, float]]] = {}
    for record in compared(parts, metric):
        own = ran[record.duplicate_of or record.id]
        runs = {seed: Run.of(study.id, study.files_of(own, seed)) for seed in record.seeds}
        with contextlib.suppress(BadInput):
            scores = {seed: item_scores(metric, run.records) for seed, run in runs.items() if run is not None}
            if len(scores) == len(runs):
                found[record.id] = scores
    return found


def profile_folder(study: Study) -> str:
    """Where the study keeps the profile of its training data."""
    return storage.join(study.folder, "profile")


def _profile(study: Study) -> dict[str, Any] | None:
    with contextlib.suppress(OSError):  # another machine's folder, or an object store that is away
        return read_kept(storage.join(profile_folder(study), "profile.json"), needs=("windows", "lengths", "findings"))
    return None
