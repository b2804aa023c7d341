"""A study in MLflow: a nested run for each trial, and the results of all on the study run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from bft_ray.config import Config
from bft_ray.config.metrics import is_better
from bft_ray.page.html import to_html
from bft_ray.places.scratch import scratch
from bft_ray.space.ranges import Parameter
from bft_ray.study.definition import Study
from bft_ray.study.kept import Known
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Run
from bft_ray.study.records.store import CONFIRMATION, SEARCH
from bft_ray.study.report.describe import describe
from bft_ray.study.report.page import page_of
from bft_ray.tracking.run import Tracker

PAGE = "report.html"  # artifact of the study's run
_POINTS = 100  # of a curve: each metric costs the server a row
_STATUS: dict[str, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",
    "failed": "FAILED",
}


class Recorder:
    """Writes a study to MLflow. It is a `Listener` of the controller."""

    def __init__(self, study: Study, tracker: Tracker):
        self._study, self._tracker = study, tracker
        self._best: float | None = None
        self._num_ended = 0  # trials of the search

    def __call__(self, event: Literal["begun", "ended"], record: TrialRecord) -> None:
        """Record that a trial begins or ends."""
        if event == "begun":
            self._log(record, "RUNNING")
            return
        self._end(record)
        self._count(record)
        if record.part == SEARCH and self._best is not None:
            metric = self._study.space.objective.metric
            self._tracker.log_metrics({f"best/{metric}": self._best}, step=self._num_ended)

    def catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Record trials that an earlier driver did not record before it was killed."""
        logged = self._tracker.logged_trials()
        for record in records:
            if record.is_finished:
                self._count(record)
                if record.id not in logged:
                    self._end(record)

    def _count(self, record: TrialRecord) -> None:
        if record.part != CONFIRMATION:  # the best so far is the best of baselines and search
            self._num_ended += record.part == SEARCH
            value, metric = record.value, self._study.space.objective.metric
            if value is not None and (self._best is None or is_better(metric, value, self._best)):
                self._best = value

    def _end(self, record: TrialRecord) -> None:
        self._log(
            record,
            _STATUS[record.state],
            end_s=record.finished or record.created or 0.0,
            series=self._series(record),
            reason=record.duplicate_because if record.duplicate_of else record.reason or None,
        )

    def _log(self, record: TrialRecord, status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"], **end: Any) -> None:
        self._tracker.log_trial(
            record.id,
            status,
            name=_name(record),
            params=_params(record),
            tags=self._tags(record),
            start_s=record.started or record.created or 0.0,
            **end,
        )

    def _tags(self, record: TrialRecord) -> dict[str, str]:
        tags = {
            "bft.kind": "trial",
            "bft.part": record.part,
            "bft.domain": self._study.domain,
            "bft.study": self._study.name,
            "bft.status": record.status,
        }
        if record.duplicate_of:
            tags["bft.merged_with"] = (
                record.duplicate_of
            )  # the name of earlier versions: searches by tag must keep working
        if record.cards:
            tags["bft.cards"] = ", ".join(record.cards)
        return tags | {f"bft.{name}": str(record.extra[name]) for name in ("arm", "baseline") if name in record.extra}

    def _series(self, record: TrialRecord) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, metrics): the curve of a trial of one run, or the means over the runs of a trial of several."""
        if record.duplicate_of or len(record.seeds) > 1:
            metric = rung_metric(self._study.space)
            yield from ((step, {metric: value}) for step, value in record.rung_values.items())
            if record.metrics:
                yield record.num_steps // len(record.seeds), dict(record.metrics)
            return
        run = Run.of(self._study.id, self._study.files_of(record, record.seeds[0]))
        if run is None:
            return
        every = math.ceil(len(run.train) / _POINTS)
        for step, metrics in enumerate(run.train, 1):
            if step % every == 0 or step in run.metrics:
                yield step, metrics | run.metrics.get(step, {})

    # ---- on the study run -------------------------------------------------------------------------------------------

    def describe(self, known: Known) -> bool:
        """Write the note at the head of the run's page, the records, and the study's page; False where the last could not be
        stored.
        """
        note, page = describe(known, self._tracker.link_to(PAGE)), to_html(page_of(known))
        return log_report(self._tracker, note, page, "records.json", _plain(known.parts))


def log_report(tracker: Tracker, note: str, page: str, name: str, table: Any) -> bool:
    """Write a report to a run; False where not all of it could be stored.

    Args:
        note: shown at the top of the run, in Markdown.
        page: HTML.
        name, table: of a JSON file with what both say.
    """
    tracker.set_tags({"mlflow.note.content": note})
    tracker.log_text(json.dumps(table, indent=1), name)
    with scratch("page") as folder:
        (folder / PAGE).write_text(page, encoding="utf-8")
        return tracker.log_artifacts(folder)


def _name(record: TrialRecord) -> str:
    """The name, with the seed for a run of a confirmation: those of one arm differ only in it."""
    return f"{record.name} seed {record.seeds[0]}" if record.part == CONFIRMATION else record.name


def _params(record: TrialRecord) -> dict[str, Any]:
    seeds = record.seeds[0] if len(record.seeds) == 1 else list(record.seeds)
    return dict(record.assignment) | {"seed": seeds}


def _plain(parts: Mapping[str, Sequence[TrialRecord]]) -> list[dict[str, Any]]:
    """All trials as JSON, without the scores of single items."""
    return [
        {
            "id": record.id,
            "name": record.name,
            "status": record.status,
            "settings": dict(record.assignment),
            "seeds": list(record.seeds),
            "value": record.value,
            "metrics": dict(record.metrics),
            "rungs": {str(step): value for step, value in record.rung_values.items()},
            "num_steps": record.num_steps,
            "merged_with": record.duplicate_of,
            "reason": record.reason,
            "cards": list(record.cards),
            "warnings": list(record.warnings),
            "duration_s": record.duration_s,
        }
        for records in parts.values()
        for record in records
    ]


def params_of(study: Study, first: Config) -> dict[str, Any]:
    """Params of the study run: the settings that define the study, without those that may change when it is resumed."""
    params = {
        "space": study.space.name,
        "domain": study.domain,
        "objective": study.space.objective.metric,
        "sampler": study.space.sampler.kind,
        "scheduler": study.space.scheduler.kind,
        "deterministic": study.space.deterministic,
        "model.path": _short(first.model.path),
        "data.packing": first.data.packing,
        "data.train": ", ".join(_short(source.path) for source in first.data.train),
    }
    return params | {f"search.{name}": _range(parameter) for name, parameter in study.space.parameters.items()}


def _short(path: str) -> str:
    """Only the name of a path of this machine: on another one, where the study is resumed, the folder may differ."""
    return Path(path).name if Path(path).is_absolute() else path


def _range(parameter: Parameter) -> str:
    """`16, 64, 256`, or `0.01 to 0.5`; then the condition, if any."""
    values = parameter.finite()
    text = ", ".join(map(str, values)) if values else " to ".join(map(str, parameter.ends()))
    when = [f"{parent} is {' or '.join(map(str, wanted))}" for parent, wanted in parameter.when.items()]
    return " if ".join([text, *([" and ".join(when)] if when else [])])
