"""What a run is to hold, on its way to the tracking server: in order, once, whatever outages there are."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bft_ray.errors import first_line
from bft_ray.tracking.lane import LONGEST_PAUSE_S, Lane, wait_for
from bft_ray.tracking.server import SENDING, SERVER, connect, redact
from bft_ray.waits import waiting

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

_log = logging.getLogger(__name__)

MISSING = "bft.missing"  # tag: artifacts that a run was to hold and does not
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class Sender:
    """Sends what a run is to hold, in the background: metrics, tags and datasets in one lane, artifacts in another.

    So artifacts, whose store may be away or closed while the server is not, hold up neither metrics nor tags nor the
    final status. An artifact that the store refuses is left out, and told: in a warning, and as the tag `bft.missing`.

    A record is stored once, however often it is sent. MLflow's stores ignore a metric that they already hold with
    the same step, value and time (an answer got lost), and a step at or below the last one that the server knows is
    not sent at all (a training that resumes from a checkpoint passes such steps again).
    """

    def __init__(self, uri: str, run_id: str, folder: Path):
        self.uri, self.run_id = uri, run_id
        self.missing: dict[str, str] = {}  # what was to be stored and is not -> why
        self._is_told = False  # that artifacts are refused
        self._client: MlflowClient | None = None
        self._sent_steps: dict[str, int] = {}  # last step of each metric on the server
        self._stale = threading.Event()
        self._stale.set()  # `_sent_steps` has to be asked for
        told = "the tracking server does not answer (%s); metrics wait in %s until it is back"
        self._records = Lane(folder, run_id, self._send, told)
        told = "artifacts cannot be stored (%s); they wait in %s, and nothing else waits for them"
        self._artifacts = Lane(folder, f"{run_id}-artifacts", self._store, told)
        self._records.start()
        self._artifacts.start()

    @property
    def client(self) -> MlflowClient:
        """The MLflow client; connects on first use, which needs the server."""
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._records.ended

    def queue(self, record: dict[str, Any]) -> None:
        """Add a record; returns at once, whatever the state of the server."""
        if self.ended:
            raise RuntimeError(f"run {self.run_id} is closed")
        (self._artifacts if "text" in record else self._records).queue(record)

    def lacks(self, what: str, error: BaseException) -> None:
        """Remember, and tag, that the run does not hold something that it was to hold."""
        self.missing[what] = redact(f"{type(error).__name__}: {first_line(error)}")
        self._records.queue({"tags": {MISSING: ", ".join(sorted(self.missing))}})

    def adopt(self) -> None:
        """Take over what dead processes left of this run."""
        self._artifacts.adopt()
        if self._records.adopt():
            self._stale.set()

    @waiting(SENDING)
    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent, at most so long; whether it is."""
        return wait_for((self._records, self._artifacts), timeout_s)

    @waiting(SENDING)
    def flush_records(self, timeout_s: float) -> bool:
        """Wait until all but artifacts is sent, and for artifacts while their store answers; whether all but they is."""
        wait_for((self._records, self._artifacts), timeout_s, even_away=False)
        return wait_for((self._records,), timeout_s)

    def end(self) -> None:
        """Stop; what is not sent stays in the journals for a later process."""
        self._artifacts.end()
        self._records.end()

    def _store(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            try:
                self.client.log_text(self.run_id, record["text"], record["file"])
            except Exception as error:
                if not (is_refusal(error) or is_forbidden(error)):
                    raise
                if not self._is_told:
                    self._is_told = True
                    text = redact(f"{type(error).__name__}: {first_line(error)}")
                    _log.warning("artifacts of run %s cannot be stored (%s): it goes on without", self.run_id, text)
                self.lacks(record["file"], error)

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
            if "text" in record:  # of an earlier version's journal
                self._artifacts.queue(record)
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


@waiting(SERVER)
def patiently(patience_s: float, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call, again and again for so long as the server is away; raises the last error."""
    deadline, pause = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if is_refusal(error) or is_forbidden(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def is_forbidden(error: BaseException) -> bool:
    """Whether a store of artifacts will never take what it did not take now: no right, no such bucket, no folder."""
    if getattr(error, "errno", None) in _FORBIDDEN:
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)  # of requests
    if status in (401, 403, 404, 405):
        return True
    return any(word in str(error) for word in ("AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "NoCredentials"))


def is_refusal(error: BaseException) -> bool:
    """Whether to try again is useless: the server understood, and said no."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"


def chunks(items: list[T], size: int) -> Iterable[list[T]]:
    """Consecutive pieces of at most `size` items: MLflow limits what one call may carry."""
    return (items[start : start + size] for start in range(0, len(items), size))
