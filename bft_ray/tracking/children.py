"""The nested runs of a study, one a trial, written by one thread: the search never waits for the tracking server.

A run is made to hold what it shall hold: what is there already (params, tags, steps of metrics) is not sent again. So
every call may be repeated, by the thread when an answer got lost, and by the next driver when this one is killed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bft_ray.config import TrackingConfig
from bft_ray.errors import first_line
from bft_ray.tracking.begin import LONGEST_VALUE, REASON, about
from bft_ray.tracking.run import Status, shorten
from bft_ray.tracking.sender import LONGEST_PAUSE_S, is_refusal, patiently
from bft_ray.tracking.server import SENDING, absolute_uri, connect, redact
from bft_ray.waits import waiting

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

_log = logging.getLogger(__name__)

PARENT, TRIAL = "mlflow.parentRunId", "bft.trial"
ENDED = "bft.ended"  # tag: all is written, and this is the status to come
_LAST = 800  # metrics that go with the tags: MLflow takes 1000 things in a call
_FIRST_PAUSE_S = 0.5


@dataclass
class _Child:
    """What the server holds of a run."""

    run_id: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    steps: dict[str, int]  # metric -> its last step

    @classmethod
    def of(cls, run: Run) -> _Child:
        steps = {metric.key: metric.step for metric in run.data._metric_objs}  # `data.metrics` has values only
        return cls(run.info.run_id, run.info.status, dict(run.data.params), dict(run.data.tags), steps)


class Children:
    """The nested runs of a study's run. All but the constructor, `flush` and `close` return at once.

    Metrics are written at the end of a trial alone, and `bft.ended` with the last of them; the status follows. A run
    that lacks one of these is not logged, and the next driver's `end` writes what is missing.

    Args:
        tracking: where.
        parent_id: run of the study. Its children are asked for once: this needs the server.
    """

    def __init__(self, tracking: TrackingConfig, parent_id: str):
        self._timeout_s = tracking.timeout_s
        self._parent_id = parent_id
        self._client = connect(absolute_uri(tracking.uri))
        self._experiment_id = patiently(self._timeout_s, self._client.get_run, parent_id).info.experiment_id
        runs = patiently(self._timeout_s, self._search)
        self._known = {run.data.tags[TRIAL]: _Child.of(run) for run in runs if TRIAL in run.data.tags}
        self._doubtful: set[str] = set()  # trials whose run may have been created without an answer
        self._jobs: deque[tuple[str, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._nudge, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="bft-children", daemon=True)
        self._thread.start()

    def is_logged(self, trial: str) -> bool:
        """Whether `end` was carried out, by whichever driver."""
        child = self._known.get(trial)
        return child is not None and child.status == child.tags.get(ENDED)

    def run_id(self, trial: str) -> str | None:
        """Of the trial's run; None until it is created."""
        child = self._known.get(trial)
        return child.run_id if child else None

    def begin(self, trial: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str], start_s: float) -> None:
        """Create the run of a trial, or reopen it, unless it is FINISHED.

        Args:
            trial: id, unique in the study.
            name: as tables show it, such as `w128 e0.05 c8`.
            start_s: seconds since 1970.
        """
        self._queue(trial, partial(self._begin, trial, redact(name), _texts(params), _texts(tags), start_s))

    def end(
        self,
        trial: str,
        status: Status,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        start_s: float,
        end_s: float,
        series: Sequence[tuple[int, Mapping[str, float]]],
        reason: str | None = None,
    ) -> None:
        """Write all that is known of a trial, and end its run; a trial that never began (a merged one) gets a run.

        Args:
            series: step -> metrics; values that are not finite are left out, for not all databases keep them.
            reason: becomes the tag `bft.reason`.
        """
        marks = {REASON: shorten(reason)} if reason else {}
        points = [
            (step, key, float(value))
            for step, metrics in sorted(series, key=lambda point: point[0])
            for key, value in metrics.items()
            if math.isfinite(value)
        ]
        run = (redact(name), _texts(params), _texts(tags) | marks, start_s)
        self._queue(trial, partial(self._end, trial, status, *run, end_s, points))

    @waiting(SENDING)
    def flush(self, timeout_s: float) -> bool:
        """Wait until all that is queued is on the server, at most so long; whether it is."""
        self._nudge.set()
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout_s)

    def close(self, status_of_open: Status = "KILLED", reason: str | None = None) -> bool:
        """End the runs that are still RUNNING, and let go; waits at most about `tracking.timeout_s`.

        Returns:
            Whether all is on the server; the next driver of the study writes what is not.
        """
        if self._closed:
            return True
        self._queue("", partial(self._end_open, status_of_open, reason))
        done = self.flush(self._timeout_s)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            num_left = len({trial for trial, _ in self._jobs if trial})
        self._nudge.set()
        self._thread.join(1.0)
        if not done:
            _log.warning("the tracking server lacks %d trials; the next driver of this study records them", num_left)
        return done

    # ---- in the thread

    def _queue(self, trial: str, job: Callable[[], None]) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError(f"the nested runs of run {self._parent_id} are closed")
            self._jobs.append((trial, job))
            self._changed.notify_all()

    def _work(self) -> None:
        pause, away = _FIRST_PAUSE_S, False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                trial, job = self._jobs[0]
            try:
                job()
            except Exception as error:
                if not _is_refused(trial, error):
                    if not away:
                        text = redact(first_line(error))
                        _log.warning("the tracking server does not answer (%s); trials are recorded later", text)
                    self._nudge.wait(pause)
                    self._nudge.clear()
                    pause, away = min(2 * pause, LONGEST_PAUSE_S), True
                    continue
            if away:
                _log.warning("the tracking server is back")
            pause, away = _FIRST_PAUSE_S, False
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()

    def _begin(self, trial: str, name: str, params: dict[str, str], tags: dict[str, str], start_s: float) -> None:
        child = self._known.get(trial) or self._create(trial, name, tags, start_s)
        if child.status == "FINISHED":
            return
        if child.status != "RUNNING":
            for tag in (ENDED, REASON):  # first: a run without ENDED is not logged, whatever its status
                self._drop_tag(child, tag)
            self._client.update_run(child.run_id, status="RUNNING")
            child.status = "RUNNING"
        is_last = len(self._jobs) == 1
        self._write(child, params if is_last else {}, tags)  # else with the end, in a call less

    def _end(
        self,
        trial: str,
        status: Status,
        name: str,
        params: dict[str, str],
        tags: dict[str, str],
        start_s: float,
        end_s: float,
        points: list[tuple[int, str, float]],
    ) -> None:
        if self.is_logged(trial):
            return
        child = self._known.get(trial) or self._create(trial, name, tags, start_s)
        if REASON not in tags:
            self._drop_tag(child, REASON)  # of a driver that was killed
        tags = tags | {ENDED: status}
        try:
            self._write(child, params, tags, _metrics(points, child.steps, end_s))
        except Exception as error:
            if not _is_refused(trial, error):
                raise
            self._write(child, {}, tags)  # a bad name must not cost the rest
        self._terminate(child, status, end_s)

    def _end_open(self, status: Status, reason: str | None) -> None:
        for trial, child in self._known.items():
            if child.status == "RUNNING":
                try:
                    self._write(child, {}, {REASON: shorten(reason)} if reason else {})
                    self._terminate(child, status, time.time())
                except Exception as error:
                    if not _is_refused(trial, error):
                        raise

    def _create(self, trial: str, name: str, tags: dict[str, str], start_s: float) -> _Child:
        found = self._search(f" and tags.`{TRIAL}` = '{trial}'") if trial in self._doubtful else []
        self._doubtful.add(trial)
        tags = about() | tags | {PARENT: self._parent_id, TRIAL: trial}
        start_ms = int(1000 * start_s)
        run = found[0] if found else self._client.create_run(self._experiment_id, start_ms, tags, name)
        self._doubtful.discard(trial)
        self._known[trial] = _Child.of(run)
        return self._known[trial]

    def _write(
        self, child: _Child, params: dict[str, str], tags: dict[str, str], metrics: Sequence[Metric] = ()
    ) -> None:
        """Send what the run lacks: the tags last of all, with the last metrics."""
        from mlflow.entities import Param, RunTag

        new_params = [Param(key, value) for key, value in params.items() if key not in child.params]
        new_tags = [RunTag(key, value) for key, value in tags.items() if child.tags.get(key) != value]
        self._client.log_batch(child.run_id, metrics[:-_LAST])  # nothing is sent where there is nothing
        self._client.log_batch(child.run_id, metrics[-_LAST:], new_params, new_tags)
        child.params |= {param.key: param.value for param in new_params}
        child.tags |= {tag.key: tag.value for tag in new_tags}
        child.steps |= {metric.key: metric.step for metric in metrics}

    def _drop_tag(self, child: _Child, tag: str) -> None:
        if tag in child.tags:
            self._client.delete_tag(child.run_id, tag)
            del child.tags[tag]

    def _terminate(self, child: _Child, status: Status, end_s: float) -> None:
        self._client.set_terminated(child.run_id, status, int(1000 * end_s))
        child.status = status

    def _search(self, more: str = "") -> list[Run]:
        return find_children(self._client, self._experiment_id, self._parent_id, more)


def find_children(client: MlflowClient, experiment_id: str, parent_id: str, more: str = "") -> list[Run]:
    """All nested runs of a run, the latest last; `more` is added to the filter."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`{PARENT}` = '{parent_id}'{more}",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def end_children(client: MlflowClient, experiment_id: str, parent_id: str, status: Status, reason: str) -> None:
    """Give the nested runs that are still RUNNING this status: their driver is gone."""
    for run in find_children(client, experiment_id, parent_id, " and attributes.status = 'RUNNING'"):
        client.set_tag(run.info.run_id, REASON, reason)
        client.set_terminated(run.info.run_id, status)


def _is_refused(trial: str, error: Exception) -> bool:
    """Whether to try again is useless (a bad name; a run that someone deleted): said, and then left alone."""
    final = is_refusal(error) or getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
    if final:
        _log.warning("the tracking server refuses the run of %s: %s", trial, redact(first_line(error)))
    return final


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: redact(str(value))[:LONGEST_VALUE] for key, value in values.items()}


def _metrics(points: list[tuple[int, str, float]], steps: Mapping[str, int], end_s: float) -> list[Metric]:
    """Those behind the last step that the run holds; all with the end's time, so that MLflow knows repetitions."""
    from mlflow.entities import Metric

    time_ms = int(1000 * end_s)
    return [Metric(key, value, time_ms, step) for step, key, value in points if step > steps.get(key, -1)]
