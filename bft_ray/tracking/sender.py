"""What is queued for a run and its trials, in two outboxes: artifacts, whose store may be away, hold up nothing else."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bft_ray.config import TrackingConfig
from bft_ray.errors import first_line
from bft_ray.places.addresses import absolute_uri, redact
from bft_ray.places.cache import cache_folder
from bft_ray.tracking.begin import LONGEST_VALUE, REASON
from bft_ray.tracking.delivery import Delivery, trials_of
from bft_ray.tracking.outbox import Outbox, Record
from bft_ray.tracking.retry import is_forbidden, is_refusal, patiently
from bft_ray.tracking.server import SENDING
from bft_ray.waits import waiting

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

LONGEST_REASON = 1000  # characters: a remedy and the paths in it stay whole
MISSING = "bft.missing"  # tag: artifacts that a run was to hold and does not


class Sender:
    """Queues what a run is to hold: returns at once, and nothing is lost while the server is away.

    Steps must rise, metric by metric: one at or below the last that the run holds is a repetition, and dropped. An
    artifact that its store refuses is left out, and named in a warning and in the tag `bft.missing`.

    Args:
        spool: folder of the outboxes; None: ~/.cache/bft_ray/spool: local, private, outlives a killed process.
        is_heir: of a dead process, see `Delivery`.
    """

    def __init__(self, tracking: TrackingConfig, run_id: str, spool: Path | None = None, is_heir: bool = False):
        self.tracking = tracking.model_copy(update={"uri": absolute_uri(tracking.uri)})
        self.run_id, self.spool = run_id, spool or cache_folder("spool")
        self.missing: dict[str, str] = {}  # artifacts that were to be stored and are not -> why
        self._is_told = False  # that artifacts are refused
        self._deliver = Delivery(self.tracking.uri, run_id, is_heir)
        told = "the tracking server does not answer (%s); what it lacks waits in %s until it is back"
        self._records = Outbox(self.spool, run_id, self._deliver, told)
        told = "artifacts cannot be stored (%s); they wait in %s, and nothing else waits for them"
        self._artifacts = Outbox(self.spool, f"{run_id}-artifacts", self._store, told)

    @property
    def client(self) -> MlflowClient:
        """The MLflow client of the run's server."""
        return self._deliver.client

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Queue the metrics of a step."""
        values = {name: float(value) for name, value in metrics.items()}
        self._queue({"metrics": values, "step": int(step), "time": now_ms()})

    def set_tags(self, tags: dict[str, str]) -> None:
        """Queue tags; the last value of a name wins."""
        self._queue({"tags": {name: redact(str(value)) for name, value in tags.items()}})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Queue a text as an artifact, e.g. `config.yaml`."""
        self._queue({"text": redact(text), "file": artifact_file})

    def log_dataset(self, name: str, source: str, fingerprint: str, num_rows: int, context: str) -> None:
        """Queue a dataset input of the run; its digest is the head of the fingerprint (MLflow takes 36 characters).

        Args:
            context: what it was used for: training, validation, test.
        """
        dataset = {
            "name": name,
            "digest": digest_of(fingerprint),
            "source_type": "uri" if "://" in source else "local",
            "source": json.dumps({"uri": redact(source)}),
            "profile": json.dumps({"num_rows": num_rows, "fingerprint": fingerprint}),
        }
        self._queue({"dataset": dataset, "context": context})

    def log_trial(
        self,
        trial: str,
        status: Literal["RUNNING"] | Status,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        start_s: float,
        end_s: float | None = None,
        series: Iterable[tuple[int, Mapping[str, float]]] = (),
        reason: str | None = None,
    ) -> None:
        """Queue all that is known of a trial. Its nested run is created or resumed if the trial is RUNNING, and ended otherwise.

        One that has ended is not written again, and one that has FINISHED not opened again.

        Args:
            trial: id, unique in the study.
            name: as tables show it, such as `w128 e0.05 c8`.
            start_s, end_s: seconds since 1970.
            series: step -> metrics; values that are not finite are left out, for not all databases keep them.
            reason: becomes the tag `bft.reason`.
        """
        finite = {
            step: {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
            for step, metrics in series
        }
        record = {
            "name": redact(name),
            "params": _texts(params),
            "tags": _texts(tags) | _reason(reason),
            "start": int(1000 * start_s),
            "time": now_ms() if end_s is None else int(1000 * end_s),
            "series": sorted(finite.items()),
        }
        self._queue({"trial": trial, "status": status} | record)

    def log_end(self, status: Status, reason: str | None = None) -> None:
        """Queue the final status of a run that is RUNNING; trials that are RUNNING become KILLED, for the same reason."""
        self._queue({"status": status, "tags": _reason(reason), "time": now_ms()})

    def logged_trials(self) -> set[str]:
        """Ids of the trials that have ended, as the server holds them; asks the server."""
        run = patiently(self.tracking.timeout_s, self.client.get_run, self.run_id)
        held = patiently(self.tracking.timeout_s, trials_of, self.client, self.run_id, run.info.experiment_id)
        return {trial for trial, run in held.items() if run.is_logged}

    def lacks(self, what: str, error: BaseException) -> None:
        """Remember, and tag, that the run does not hold something that it was to hold."""
        self.missing[what] = redact(f"{type(error).__name__}: {first_line(error)}")
        self._records.queue({"tags": {MISSING: ", ".join(sorted(self.missing))}})

    def adopt(self) -> None:
        """Take over what dead processes left of this run."""
        self._deliver.is_stale = True  # they may have sent some
        self._artifacts.adopt()
        self._records.adopt()

    @waiting(SENDING)
    def flush(self, timeout_s: float, even_away: bool = True) -> bool:
        """Wait until all that is queued is on the server, at most so long; whether it is. See `Outbox.wait`."""
        deadline = time.monotonic() + timeout_s
        artifacts = self._artifacts.wait(timeout_s, even_away)  # first, for they may leave a tag
        return self._records.wait(deadline - time.monotonic(), even_away) and artifacts

    def close(self, timeout_s: float | None = None) -> bool:
        """Let go; whether all was sent within `tracking.timeout_s`. What is not waits for a later process."""
        if self._records.ended:
            return True
        sent = self.flush(self.tracking.timeout_s if timeout_s is None else timeout_s)
        self._artifacts.end()
        self._records.end()
        return sent

    def _queue(self, record: Record) -> None:
        if self._records.ended:
            raise RuntimeError(f"run {self.run_id} is closed")
        (self._artifacts if "text" in record else self._records).queue(record)

    def _store(self, records: list[Record]) -> None:
        for record in records:
            try:
                self.client.log_text(self.run_id, record["text"], record["file"])
            except Exception as error:
                if not (is_refusal(error) or is_forbidden(error)):
                    raise
                self.lacks(record["file"], error)
                if not self._is_told:
                    self._is_told = True
                    why = self.missing[record["file"]]
                    _log.warning("artifacts of run %s cannot be stored (%s): it goes on without", self.run_id, why)


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return time.time_ns() // 1_000_000


def shorten(reason: str) -> str:
    """A reason as a tag: one line, no secrets, of bounded length."""
    line = redact(" ".join(reason.split()))
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def _reason(reason: str | None) -> dict[str, str]:
    return {REASON: shorten(reason)} if reason else {}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {key: redact(str(value))[:LONGEST_VALUE] for key, value in values.items()}


def digest_of(fingerprint: str) -> str:
    """The digest under which MLflow knows a dataset: it takes 36 characters."""
    return fingerprint[:36]
