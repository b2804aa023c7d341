"""The result of a study: the choice from the records, and the single measurement on the test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bft_ray.config import Config
from bft_ray.config.base import Section
from bft_ray.errors import BftError
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.evaluate.run import evaluate_model
from bft_ray.places import storage
from bft_ray.space.assign import with_overrides
from bft_ray.space.parts import DEFAULT
from bft_ray.study.confirm.candidates import Arm, arms_of
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.confirm.items import item_groups, item_scores
from bft_ray.study.confirm.tested import TestResult, note_of, on_test_split
from bft_ray.study.definition import Study
from bft_ray.study.kept import chosen
from bft_ray.study.records.record import TrialRecord, by_id
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store
from bft_ray.train.pins import pin_paths


@dataclass(frozen=True)
class Answer:
    """The result of a study.

    Args:
        choice: by the rules of `bft_ray.study.confirm.choose`; None for a study that compares and chooses nothing.
        champion: the arm that won; None where nothing could be chosen.
        config: its config, with which the weights below were trained.
        weights: path of the weights of its first confirmation run.
        default_weights: the same of the default.
        test: of champion and default on the test split; None without one.
    """

    choice: Choice | None = None
    champion: Arm | None = None
    config: Config | None = None
    weights: str | None = None
    default_weights: str | None = None
    test: TestResult | None = None


def answer(study: Study, parts: Mapping[str, Store], line: Callable[[str], None] = lambda text: None) -> Answer:
    """Choose, and measure on the test split once: the study keeps what was measured.

    Args:
        parts: of the study, all trials finished.

    Raises:
        BftError: the weights of the confirmation are gone.
    """
    confirmation = study.space.confirmation
    if confirmation is None:
        return Answer()
    records = {part: parts[part].records() for part in (BASELINES, SEARCH, CONFIRMATION)}
    arms = {arm.name: arm for arm in arms_of(study.space, records[BASELINES], records[SEARCH])}
    choice = chosen(study.space, records, _before(study, parts[SEARCH], next(iter(arms.values())), line))
    if choice is None or choice.champion is None:
        return Answer(choice)
    champion = arms[choice.champion]
    weights = {name: _weights(study, name, records[CONFIRMATION]) for name in sorted({champion.name, DEFAULT})}
    test = None
    if confirmation.test:
        measured = {name: _tested(study, parts[SEARCH], arms[name], weights[name], line) for name in weights}
        test = on_test_split(study.space.objective.metric, champion.name, measured)
    _drop_others(study, records[CONFIRMATION], set(weights.values()))
    config = pin_paths(_config(study, champion))
    return Answer(choice, champion, config, weights[champion.name], weights[DEFAULT], test)


def _config(study: Study, arm: Arm) -> Config:
    """The config of an arm's first confirmation run, without the overrides of the confirmation."""
    return study.config(arm.trial, study.kept_seed)


def _weights(study: Study, arm: str, records: Sequence[TrialRecord]) -> str:
    record = next(one for one in records if one.extra["arm"] == arm and one.seeds == (study.kept_seed,))
    record = by_id(records)[record.duplicate_of or record.id]
    return study.files_of(record, study.kept_seed).weights


def _drop_others(study: Study, records: Sequence[TrialRecord], kept: set[str]) -> None:
    for record in records:
        weights = study.files_of(record, record.seeds[0]).weights
        if weights not in kept:
            storage.remove_folder(weights)


# --- measured once, and kept ------------------------------------------------------------------------------------


def _before(study: Study, store: Store, arm: Arm, line: Callable[[str], None]) -> float | None:
    """The base model's value of the second objective on the confirmation split; None where there is none."""
    second, confirmation = study.space.objective.second, study.space.confirmation
    if second is None or confirmation is None:
        return None
    before = store.notes().get("before")
    if before is None:
        line(f"{second.metric} of the base model")
        config = pin_paths(with_overrides(_config(study, arm), confirmation.overrides, "confirmation"))
        before = evaluate_model(config, names=[second.metric.split("/")[0]]).metrics[second.metric]
        store.note("before", before)
    return before


def _tested(
    study: Study,
    store: Store,
    arm: Arm,
    weights: str,
    line: Callable[[str], None],
) -> dict[str, Any]:
    """Metrics and scores of items of an arm's model on the test split."""
    known = store.notes().get(note_of(arm.name))
    if known is not None:
        return known
    assert study.space.confirmation is not None
    line(f"test: {arm.name}")
    config = pin_paths(with_overrides(_config(study, arm), study.space.confirmation.test, "confirmation.test"))
    measured = _measure(config, weights)
    metric = study.space.objective.metric
    found: dict[str, Any] = {"metrics": measured.metrics, "items": item_scores(metric, measured.records)}
    if groups := item_groups(metric, measured.records):
        found["groups"] = groups
    store.note(note_of(arm.name), found)
    return found


def _measure(config: Config, weights: str) -> EvaluationResult:
    """Measure on the workers of the config. They fetch the weights themselves where these are in an object store."""
    if not storage.exists(weights):
        raise BftError(f"the weights {weights} are gone, so the test split cannot be measured")
    return evaluate_model(config.model_copy(update={"model": config.exported(weights)}))


def as_json(found: Answer) -> dict[str, Any]:
    """The choice and its evidence, as plain values."""
    choice = None if found.choice is None else asdict(found.choice)
    if choice is not None:
        del choice["plan"]["groups"]  # of every item
    return _plain(
        {"choice": choice, "test": None if found.test is None else asdict(found.test), "weights": found.weights}
    )


def _plain(value: Any) -> Any:
    """As JSON values: numbers that are not finite become null."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
