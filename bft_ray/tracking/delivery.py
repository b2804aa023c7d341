"""Records of a run and of its nested runs -> what MLflow lacks of them: each thing once, however often it is sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bft_ray.errors import first_line
from bft_ray.places.addresses import redact
from bft_ray.tracking.begin import REASON, about
from bft_ray.tracking.outbox import Record
from bft_ray.tracking.retry import is_refusal
from bft_ray.tracking.server import connect, pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

PARENT, TRIAL = "mlflow.parentRunId", "bft.trial"
ENDED = "bft.ended"  # tag of a nested run: all is written, and this is the status to come
_DELETED = "must be in the 'active' state"  # of a run, as MLflow says where somebody has deleted it
_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in a call
_MOST = 1000  # of all kinds


@dataclass
class Held:
    """What the server holds of a run."""

    run_id: str
    experiment_id: str
    status: str
    params: set[str]
    tags: dict[str, str]
    steps: dict[str, int]  # metric -> its last step
    refused: set[tuple[str, str]] = field(default_factory=set)  # kind and name of what it will never hold

    @classmethod
    def of(cls, run: Run) -> Held:
        """What MLflow holds of a run."""
        # `data.metrics` has values only, and a metric's history may have a million entries
        steps = {metric.key: metric.step for metric in run.data._metric_objs}
        info, data = run.info, run.data
        return cls(info.run_id, info.experiment_id, info.status, set(data.params), dict(data.tags), steps)

    @property
    def is_logged(self) -> bool:
        """Whether all of a nested run is written; not so where it was ended because its driver was gone."""
        return self.status == self.tags.get(ENDED)


class Delivery:
    """Brings records to a run, or to a nested run that is made when the first record of it is sent.

    A record is a dict of some of: `metrics`, `step` and `time` (ms); `params`; `tags`; `dataset` and its `context`;
    `status`, the run's last one, with which nested runs that are still RUNNING become KILLED. With `trial`, it is all
    that is known of a nested run: also its `name`, `start` (ms), `series` (of step, metrics), and `status`, RUNNING or
    the last one.

    What the server holds is asked for once, again after each error (an answer may have been lost) and where dead
    processes left records, and is not sent again. MLflow ignores a metric that it holds with the same step, value and
    time, and never changes a param.

    Args:
        is_heir: of a dead process, whose last status counts; the status of a process that resumes the run does not.
    """

    def __init__(self, uri: str, run_id: str, is_heir: bool = False):
        self._uri, self._run_id, self._is_heir = uri, run_id, is_heir
        self._own: Held | None = None
        self._trials: dict[str, Held] | None = None
        self.is_stale = False  # what the server holds has to be asked for

    @cached_property
    def client(self) -> MlflowClient:
        """The MLflow client; connects on first use, which needs the server."""
        return connect(self._uri)

    def __call__(self, records: Sequence[Record]) -> None:
        """Deliver. Raises what MLflow raises; a record that MLflow refuses for good is left out, with a warning."""
        if self.is_stale:
            self._own = self._trials = None
            self.is_stale = False
        try:
            self._deliver(records)
        except Exception:
            self.is_stale = True
            raise

    def _deliver(self, records: Sequence[Record]) -> None:
        trials = {record["trial"]: record for record in records if "trial" in record}  # the last says all
        own = [record for record in records if "trial" not in record]
        lasting = [record for record in own if "status" not in record]
        if lasting:
            self._try(f"records of run {self._run_id}", self._write, self._run(), lasting)
        for trial, record in trials.items():
            self._try(f"the run of {trial}", self._log_trial, trial, record)
        for record in own:
            if "status" in record and self._counts(record):
                self._try(f"the end of run {self._run_id}", self._finish, record)

    def _counts(self, record: Record) -> bool:
        return self._is_heir or "inherited" not in record

    def _finish(self, record: Record) -> None:
        tags = {REASON: "its driver ended"} | record["tags"]
        for held in self._nested().values():
            if held.status == "RUNNING":
                self._end(held, {"status": "KILLED", "time": record["time"], "tags": tags})
        if self._run().status == "RUNNING" or not self._is_heir:  # a late heir may have ended a run that went on
            self._end(self._run(), record)

    def _run(self) -> Held:
        self._own = self._own or Held.of(self.client.get_run(self._run_id))
        return self._own

    def _nested(self) -> dict[str, Held]:
        if self._trials is None:
            self._trials = trials_of(self.client, self._run_id, self._run().experiment_id)
        return self._trials

    def _log_trial(self, trial: str, record: Record) -> None:
        held = self._nested().get(trial)
        if held is None:
            tags = about() | record["tags"] | {PARENT: self._run_id, TRIAL: trial}
            run = self.client.create_run(self._run().experiment_id, record["start"], tags, record["name"])
            held = self._nested()[trial] = Held.of(run)
        if record["status"] != "RUNNING":
            if not held.is_logged:
                if REASON not in record["tags"]:
                    self._drop_tag(held, REASON)  # of a driver that was killed
                self._end(held, record | {"tags": record["tags"] | {ENDED: record["status"]}})
            return
        if held.status != "RUNNING":
            if held.status == "FINISHED" or not self._counts(record):
                return
            for tag in (ENDED, REASON):  # first: a run without ENDED is not logged, whatever its status
                self._drop_tag(held, tag)
            self.client.update_run(held.run_id, status="RUNNING")
            held.status = "RUNNING"
        self._write(held, [record])

    def _end(self, held: Held, record: Record) -> None:
        self._write(held, [record])
        self.client.set_terminated(held.run_id, record["status"], record["time"])
        held.status = record["status"]

    def _drop_tag(self, held: Held, tag: str) -> None:
        if held.tags.pop(tag, None) is not None:
            self.client.delete_tag(held.run_id, tag)

    def _write(self, held: Held, records: Sequence[Record]) -> None:
        """Send what the run lacks: the tags last, with the last metrics."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

        steps, metrics = dict(held.steps), []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for record in records:
            for step, values in record.get("series") or [(record.get("step"), record.get("metrics", {}))]:
                for name, value in values.items():
                    if step > steps.get(name, -1) and ("metrics", name) not in held.refused:
                        metrics.append(Metric(name, value, record["time"], step))
                        steps[name] = step
            params |= record.get("params", {})
            tags |= record.get("tags", {})
            if "dataset" in record:
                context = [InputTag("mlflow.data.context", record["context"])]
                inputs = [DatasetInput(Dataset(**record["dataset"]), context)]
                self._try(f"a dataset of run {held.run_id}", self.client.log_inputs, held.run_id, inputs)
        lacking = [Param(name, value) for name, value in params.items() if name not in held.params]
        marks = [RunTag(name, value) for name, value in tags.items() if held.tags.get(name) != value]
        self._log_all(held, {"metrics": metrics, "params": lacking, "tags": marks})
        held.steps, held.params, held.tags = steps, held.params | set(params), held.tags | tags

    def _log_all(self, held: Held, things: dict[str, list[Any]]) -> None:
        """In one call where MLflow takes as much (it writes the tags last); else, and where something is refused, kind by kind."""
        num_things = sum(map(len, things.values()))
        if all(len(things[kind]) <= limit for kind, limit in _LIMITS.items()) and 0 < num_things <= _MOST:
            try:
                self.client.log_batch(held.run_id, things["metrics"], things["params"], things["tags"])
                return
            except Exception as error:
                if not is_refusal(error) or _DELETED in str(error):
                    raise
        for kind, every in things.items():
            self._log(held, kind, every)

    def _log(self, held: Held, kind: str, every: Any) -> None:
        """Write things of one kind; by halves where some are refused, for a bad name costs itself alone."""
        for some in (every[start : start + _LIMITS[kind]] for start in range(0, len(every), _LIMITS[kind])):
            try:
                self.client.log_batch(held.run_id, **{kind: some})
            except Exception as error:
                if not is_refusal(error) or _DELETED in str(error):
                    raise
                if len(some) > 1:
                    self._log(held, kind, some[: len(some) // 2])
                    self._log(held, kind, some[len(some) // 2 :])
                elif (what := (kind, some[0].key)) not in held.refused:
                    held.refused.add(what)
                    _refuse(f"one of the {kind}, {some[0].key!r}, of run {held.run_id}", error)

    def _try(self, what: str, call: Callable[..., Any], *args: Any) -> None:
        try:
            call(*args)
        except Exception as error:
            if not is_refusal(error):
                raise
            _refuse(what, error)


def _refuse(what: str, error: Exception) -> None:
    _log.warning("the tracking server refuses %s: %s", what, redact(first_line(error)))


def trials_of(client: MlflowClient, run_id: str, experiment_id: str) -> dict[str, Held]:
    """The nested runs of a study's run, by trial; of two for one trial the later one."""
    asked = f"tags.`{PARENT}` = '{run_id}'"
    runs = pages(client.search_runs, [experiment_id], asked, max_results=1000, order_by=["attributes.start_time ASC"])
    return {run.data.tags[TRIAL]: Held.of(run) for run in runs if TRIAL in run.data.tags}
