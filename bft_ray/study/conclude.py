"""The results of a finished study in MLflow: note and page on its run, and the champion in the registry."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bft_ray.config import Config, TrackingConfig
from bft_ray.errors import BadInput, BftError, first_line
from bft_ray.places import storage
from bft_ray.places.addresses import redact, redacted_yaml
from bft_ray.stats.comparison import Comparison
from bft_ray.study.answer import Answer, as_json
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.definition import Study
from bft_ray.study.kept import Known, known
from bft_ray.study.records.record import TrialRecord, all_of
from bft_ray.study.records.store import Store
from bft_ray.study.report.describe import conclusion
from bft_ray.study.report.recorder import Recorder
from bft_ray.tracking.begin import status_of
from bft_ray.tracking.registry import DEFAULT_SOURCE, NO_CHAMPION, register_champion
from bft_ray.tracking.run import Tracker

log = logging.getLogger(__name__)


class Unrecorded(BftError):
    """The study has its answer, but MLflow did not store all of it."""


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Args:
        name: NAME/DOMAIN.
        run_id: of its MLflow run.
        folder: of its files.
        text: what was found, for a terminal.
        champion: `bft-DOMAIN/VERSION` in the registry; None where none was chosen.
        failed: that more than half of the trials failed, and why; "" otherwise.
    """

    name: str
    run_id: str
    folder: str
    text: str
    champion: str | None
    failed: str = ""


def conclude(
    study: Study,
    store: Store,
    found: Answer,
    tracker: Tracker,
    recorder: Recorder,
    line: Callable[[str], None] = lambda text: None,
) -> StudyResult:
    """Write note and page, and register the champion. Each may be repeated, and all are tried.

    Args:
        line: called with the answer where MLflow does not store it.

    Raises:
        Unrecorded: MLflow did not store the page, the model or its version.
    """
    now_known = known_now(study, store, is_finished=True)
    lacking = [] if recorder.describe(now_known) else ["the report"]
    tracker.log_text(json.dumps(as_json(found), indent=1), "choice.json")
    if why := _why_none(study, found):
        tracker.set_tags({NO_CHAMPION: why})
    champion = None
    try:
        champion = None if why else _register(study, store, found, tracker)
    except Unrecorded as error:
        lacking.append(str(error))
    text = conclusion(now_known)
    if lacking:
        line(text)
        raise Unrecorded(
            f"the study has its answer, but MLflow lacks {' and '.join(lacking)}. The same command records that, and "
            "trains nothing again."
        )
    failed = mostly_failed(now_known.parts)
    return StudyResult(study.name, tracker.run_id, study.folder, text, champion, failed)


def mostly_failed(parts: Mapping[str, Sequence[TrialRecord]]) -> str:
    """A sentence if more than half of the trials that ran have failed, with the most frequent reason; "" otherwise."""
    ran = [record for record in all_of(parts) if record.is_finished and not record.duplicate_of]
    failed = Counter(record.reason for record in ran if record.state == "failed")
    if 2 * failed.total() <= len(ran):
        return ""
    reason, times = failed.most_common(1)[0]
    return f"{failed.total()} of {len(ran)} trials failed, so the answer says little; {times} of them: {reason}"


def _why_none(study: Study, found: Answer) -> str:
    """Why the study has no champion for the registry; "" where it has one."""
    if study.space.confirmation is not None and not study.space.confirmation.register_champion:
        return "it is an experiment: its space says `register_champion: false`"
    if found.champion is not None:
        return ""
    if study.space.confirmation is None:
        return "its space has no `confirmation`, and only what fresh seeds and data have confirmed becomes a champion"
    return found.choice.reason if found.choice is not None else "it chose nothing"


def require_left(result: StudyResult, tracking: TrackingConfig, database: str) -> None:
    """Check that the results of a finished study still exist, because its answer names them.

    Args:
        database: of the study, as it may be shown.

    Raises:
        BadInput: its MLflow run or its folder is gone.
    """
    gone = []
    if status_of(tracking, result.run_id) is None:
        gone.append(f"its MLflow run {result.run_id} is not at {redact(tracking.uri)}")
    if not storage.exists(result.folder):
        gone.append(f"its folder {result.folder} is gone")
    if gone:
        remedy = (
            "Restore them (another tracking.uri?); or run the study again under another `name` or with another --database. "
            f"What was found is still in {database}: `bft-ray search {result.name} --status`."
        )
        raise BadInput("study", result.name, f"whole, to be shown again: {', and '.join(gone)}", remedy)


def known_now(study: Study, store: Store, *, is_finished: bool) -> Known:
    """What is known of a study as its driver ends.

    Args:
        study: of the driver, whose addresses have their passwords.
        is_finished: whether it has its answer.
    """
    return replace(known(store), study=study, is_driven=False, is_finished=is_finished)


def _register(study: Study, store: Store, found: Answer, tracker: Tracker) -> str | None:
    """The champion's model and config in MLflow's registry; returns its name and version.

    Raises:
        Unrecorded: MLflow did not store one of them. No version is made without its model.
    """
    if found.champion is None or found.config is None or found.weights is None or found.choice is None:
        return None
    config = found.config.model_copy(update={"name": None})
    if found.test is not None:
        tracker.log_metrics({f"test/{found.test.metric}": found.test.champion_value}, step=0)
    model_id = store.notes().get("model_id")
    if study.base.tracking.log_model and model_id is None:
        model_id = tracker.log_model(storage.fetch_folder(found.weights), name=f"bft-{study.domain}")
        if model_id is None:
            raise Unrecorded("the champion's model (tracking.log_model=false registers it without)")
        store.note("model_id", model_id)
    about = {
        "study": study.name,
        "bft.study_id": study.id,
        DEFAULT_SOURCE: redact(found.default_weights or ""),
        "data_fingerprint": store.notes()["settings"]["data.train"],
    }
    try:
        registered = register_champion(
            study.base.tracking,
            study.domain,
            run_id=tracker.run_id,
            model_id=model_id,
            source=found.weights,
            tags=champion_tags(found.choice, config) | about,
            config_yaml=redacted_yaml(config),
            description=f"{found.choice.verdict}: {found.choice.reason}",
        )
    except Exception as error:  # MLflow's own, of many types
        log.debug("the champion is not registered", exc_info=error)
        raise Unrecorded(f"the champion's version in the registry ({redact(first_line(error))})") from error
    return f"{registered.name}/{registered.version}"


def champion_tags(choice: Choice, config: Config) -> dict[str, str]:
    """The evidence, as tags of a version: the settings of the loss that have an effect, and the gain over the default.

    Where the default itself is the champion, the tags hold the gain of the best candidate, under names of their own.
    """
    assert choice.champion is not None
    arm, loss, unused = choice.arm(choice.champion), config.loss, config.loss.unused_fields()
    settings = {name: getattr(loss, name) for name in ("window", "epsilon", "weight_cap") if name not in unused}
    settings |= loss.own_fields()
    tags: dict[str, Any] = {"method": loss.method}
    tags |= {name: value for name, value in settings.items() if value is not None}
    tags |= {
        "learning_rate": config.optimizer.learning_rate,
        "arm": arm.name,
        "verdict": choice.verdict,
        "metric": choice.plan.metric,
        "value": arm.mean,
    }
    best = choice.best_candidate
    if arm.gain is not None:
        tags |= _gain_tags(arm.gain, "")
    elif best is not None and best.gain is not None:
        tags |= {"best_candidate": best.name} | _gain_tags(best.gain, "best_candidate_")
    return {name: str(value) for name, value in tags.items()}


def _gain_tags(gain: Comparison, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}gain": gain.gain,
        f"{prefix}interval": f"[{gain.low:.6g}, {gain.high:.6g}]",
        f"{prefix}detectable": "" if math.isnan(gain.detectable) else gain.detectable,
        f"{prefix}shows_in": gain.shows_in,
    }
