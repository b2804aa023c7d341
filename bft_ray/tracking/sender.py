"""From the journal to the tracking server: a thread that sends records in order, once, and waits out outages."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bft_ray.tracking.journal import Journal
from bft_ray.tracking.server import connect, first_line, redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # records are gathered this long before they are sent
LONGEST_PAUSE_S = 15.0  # between two tries while the server is away


class Sender:
    """Sends the records of one run in the background.

    A record is stored once, however often it is sent. MLflow's stores ignore a metric that they already hold with
    the same step, value and time (an answer got lost), and a step at or below the last one that the server knows is
    not sent at all (a training that resumes from a checkpoint passes such steps again).
    """

    def __init__(self, uri: str, run_id: str, folder: Path):
        self.uri, self.run_id = uri, run_id
        self._client: MlflowClient | None = None
        self._journal = Journal(folder, run_id)
        self._sent_steps: dict[str, int] = {}  # last step of each metric on the server
        self._stale, self._nudge, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._stale.set()  # `_sent_steps` has to be asked for
        self.adopt()
        self._thread = threading.Thread(target=self._work, name="bft-tracking", daemon=True)
        self._thread.start()

    @property
    def client(self) -> MlflowClient:
        """The MLflow client; connects on first use, which needs the server."""
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended.is_set()

    def queue(self, record: dict[str, Any]) -> None:
        """Add a record; returns at once, whatever the state of the server."""
        if self.ended:
            raise RuntimeError(f"run {self.run_id} is closed")
        self._journal.append(record)

    def adopt(self) -> None:
        """Take over what dead processes left of this run."""
        if self._journal.adopt():
            self._stale.set()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent, at most so long; whether it is."""
        deadline = time.monotonic() + timeout_s
        while not self._journal.empty and time.monotonic() < deadline:
            self._nudge.set()
            time.sleep(0.05)
        return self._journal.empty

    def end(self) -> None:
        """Stop; what is not sent stays in the journal for a later process."""
        self._ended.set()
        self._nudge.set()
        self._thread.join(1.0)
        if not self._thread.is_alive():  # else it hangs in a call: it, and its lock, end with this process
            self._journal.close()

    def _work(self) -> None:
        pause, away = INTERVAL_S, False
        while not self._ended.is_set():
            self._nudge.wait(pause)
            self._nudge.clear()
            try:
                while not self._ended.is_set() and (records := self._journal.next()):
                    self._send(records)
                    self._journal.done()
            except Exception as error:
                if not away:
                    _log.warning(
                        "the tracking server does not answer (%s); metrics wait in %s until it is back",
                        redact(first_line(error)),
                        self._journal.path,
                    )
                pause, away = min(2 * pause, LONGEST_PAUSE_S), True
            else:
                if away and not self._ended.is_set():
                    _log.warning("the tracking server is back; everything is sent")
                pause, away = INTERVAL_S, False

    def _send(self, records: list[dict[str, Any]]) -> None:
        try:
            self._send_together(records)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(records) == 1:
                _log.warning(
                    "the tracking server refuses a record of run %s: %s",
                    self.run_id,
                    redact(first_line(error)),
                )
                return
            for record in records:  # a bad one must not cost its neighbours
                self._send([record])

    def _send_together(self, records: list[dict[str, Any]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag

        if self._stale.is_set():
            self._stale.clear()
            try:
                self._sent_steps = last_steps(self.client, self.run_id)
            except Exception:
                self._stale.set()
                raise
        steps = dict(self._sent_steps)
        metrics: list[Metric] = []
        tags: dict[str, str] = {}
        for record in records:
            for name, value in record.get("metrics", {}).items():
                if record["step"] > steps.get(name, -1):
                    metrics.append(Metric(name, value, record["time"], record["step"]))
                    steps[name] = record["step"]
            tags.update(record.get("tags", {}))
            if "text" in record:
                self.client.log_text(self.run_id, record["text"], record["file"])
            if "dataset" in record:
                context = [InputTag("mlflow.data.context", record["context"])]
                self.client.log_inputs(self.run_id, [DatasetInput(Dataset(**record["dataset"]), context)])
        for few in chunks(metrics, 1000):
            self.client.log_batch(self.run_id, metrics=few)
        for some in chunks([RunTag(name, value) for name, value in tags.items()], 100):
            self.client.log_batch(self.run_id, tags=some)
        self._sent_steps = steps


def last_steps(client: MlflowClient, run_id: str) -> dict[str, int]:
    """The last step of each metric that the server holds."""
    # `data.metrics` has values only, and a metric's history may have a million entries
    return {metric.key: metric.step for metric in client.get_run(run_id).data._metric_objs}


def patiently(patience_s: float, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call, again and again for so long as the server is away; raises the last error."""
    deadline, pause = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if is_refusal(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def is_refusal(error: BaseException) -> bool:
    """Whether to try again is useless: the server understood, and said no."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def chunks(items: list[T], size: int) -> Iterable[list[T]]:
    """Consecutive pieces of at most `size` items: MLflow limits what one call may carry."""
    return (items[start : start + size] for start in range(0, len(items), size))
