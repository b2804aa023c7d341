"""What a finished study leaves: words and pictures on its MLflow run, and the champion in the registry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bft_ray.config import to_yaml
from bft_ray.search.answer import Answer, as_json
from bft_ray.search.conductor import Conductor
from bft_ray.search.describe import conclusion, describe
from bft_ray.search.pictures import draw
from bft_ray.search.record import TrialRecord
from bft_ray.search.recorder import Recorder
from bft_ray.search.store import Store
from bft_ray.search.study import Study
from bft_ray.tracking.registry import register_champion
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import redact
from bft_ray.train import storage


@dataclass(frozen=True)
class StudyResult:
    """A finished study.

    Args:
        name: NAME/DOMAIN.
        run_id: of its MLflow run.
        folder: of its files.
        text: what was found, for a terminal.
        champion: `bft-DOMAIN/VERSION` in the registry; None where none was chosen.
    """

    name: str
    run_id: str
    folder: str
    text: str
    champion: str | None


def conclude(
    study: Study, store: Store, conductor: Conductor, found: Answer, tracker: Tracker, recorder: Recorder
) -> StudyResult:
    """Words, pictures, registry."""
    describe_study(study, conductor, found, recorder)
    tracker.log_text(json.dumps(as_json(found), indent=1), "choice.json")
    champion = _register(study, store, found, tracker)
    parts = conductor.all_records()
    text = conclusion(parts, study.space, found.choice, found.test, domain=study.domain)
    return StudyResult(study.name, tracker.run_id, study.folder, text, champion)


def describe_study(study: Study, conductor: Conductor, found: Answer | None, recorder: Recorder) -> None:
    parts: dict[str, list[TrialRecord]] = conductor.all_records()
    choice, test = (found.choice, found.test) if found else (None, None)
    sizes = {} if study.num_samples is None else {"train": study.num_samples}
    recorder.describe(
        describe(parts, study.space, choice, test, domain=study.domain, sizes=sizes),
        parts,
        draw(parts, study.space, choice),
    )


def _register(study: Study, store: Store, found: Answer, tracker: Tracker) -> str | None:
    """The champion's model and config in MLflow's registry; returns its name and version."""
    if found.champion is None or found.config is None or found.weights is None or found.choice is None:
        return None
    metric, arm = study.space.objective.metric, found.choice.arm(found.champion.name)
    config = found.config.model_copy(update={"name": None})
    if found.test is not None:
        tracker.log_metrics({f"test/{metric}": found.test.champion_value}, step=0)
    model_id = store.notes().get("model_id")
    if study.base.tracking.log_model and model_id is None:
        model_id = tracker.log_model(storage.fetch_folder(found.weights), name=f"bft-{study.domain}")
        store.note("model_id", model_id)
    tags: dict[str, Any] = {
        "method": config.loss.method,
        "window": config.loss.window,
        "epsilon": config.loss.epsilon,
        "weight_cap": config.loss.weight_cap,
        "learning_rate": config.optimizer.learning_rate,
        "arm": arm.name,
        "verdict": found.choice.verdict,
        "metric": metric,
        "value": arm.mean,
        "study": study.name,
        "bft.study_id": study.id,
        "data_fingerprint": store.notes()["settings"]["data.train"],
    }
    if arm.gain is not None:
        tags |= {"gain": arm.gain.gain, "interval": f"[{arm.gain.low:.6g}, {arm.gain.high:.6g}]"}
    registered = register_champion(
        study.base.tracking,
        study.domain,
        run_id=tracker.run_id,
        model_id=model_id,
        source=found.weights,
        tags={name: str(value) for name, value in tags.items()},
        config_yaml=redact(to_yaml(config)),
        description=f"{found.choice.verdict}: {found.choice.reason}",
    )
    return f"{registered.name}/{registered.version}"
