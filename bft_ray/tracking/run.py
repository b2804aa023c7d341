"""One MLflow run, as the driver and rank 0 of the training workers write it."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput, first_line
from bft_ray.tracking import begin
from bft_ray.tracking.journal import spool_folder
from bft_ray.tracking.keeper import Keeper
from bft_ray.tracking.sender import Sender, chunks, patiently
from bft_ray.tracking.server import absolute_uri, artifact_root, connect, redact
from bft_ray.waits import waiting

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

_log = logging.getLogger(__name__)

PATIENCE_S = 120.0  # how long an upload is tried again while the server is away
LONGEST_REASON = 1000  # characters: a remedy and the paths in it stay whole


class Tracker:
    """A run. Metrics, tags, texts and datasets are queued and sent by a thread: training never waits for a server.

    Steps must rise, metric by metric: one at or below the last that the run holds is a repetition, and dropped.

    Who starts a run (the driver) ends it; who attaches (a worker, which Ray may restart) only closes. As a context
    manager: an exception makes the run FAILED, Ctrl-C or SIGTERM make it KILLED, each with its reason.
    """

    def __init__(self, tracking: TrackingConfig, run_id: str, spool: Path | None, keeper: bool | None):
        """Use `start` or `attach`; `keeper` is None for one who attaches."""
        self.tracking = tracking.model_copy(update={"uri": absolute_uri(tracking.uri)})
        self.run_id = run_id
        self.resumed = False
        spool = spool or spool_folder()
        self._owner = keeper is not None
        self._keeper = Keeper(self.tracking, run_id, spool) if keeper else None
        self._sender = Sender(self.tracking.uri, run_id, spool)
        self._monitor: Any = None
        self._sigterm: Any = None

    @classmethod
    @waiting("beginning the MLflow run")
    def start(
        cls,
        tracking: TrackingConfig,
        experiment: str,
        run_name: str,
        params: dict[str, Any],
        tags: dict[str, str],
        run_id: str | None = None,
        keeper: bool = True,
        spool: Path | None = None,
    ) -> Tracker:
        """Create a run; or go on with that of `run_id`, or with one of that name and run key that has not FINISHED.

        Args:
            tracking: where; call `check_server` first, which ends in time where this may wait for minutes.
            params: the flat config; see `log_params`.
            tags: of the run. `bft.run_key` says what makes two runs the same, e.g. a hash of the config.
            keeper: watch this process from another one, which sets the final status should this one be killed.
            spool: folder of the journal; None: ~/.cache/bft_ray/spool. On shared storage it outlives a lost node.

        Raises:
            BadInput: no run has that id, or the run to go on with has other params.
        """
        uri = absolute_uri(tracking.uri)
        client = connect(uri)
        experiment_id = begin.experiment_id_of(client, experiment, artifact_root(uri))
        if run_id is not None:
            run: Run | None = begin.get_run(client, run_id)
        else:
            run = begin.find_run(client, experiment_id, run_name, tags.get(begin.RUN_KEY))
        if run is None:
            run_id = begin.create_run(client, experiment_id, run_name, tags)
        else:
            begin.new_params(params, run.data.params, run.info.run_id)  # may refuse: before anything changes
            run_id = begin.reopen_run(client, run)
        tracker = cls(tracking, run_id, spool, keeper)
        tracker.resumed = run is not None
        tracker.log_params(params)
        tracker.set_tags(tracking.tags | tags)
        return tracker

    @classmethod
    def attach(cls, tracking: TrackingConfig, run_id: str, spool: Path | None = None) -> Tracker:
        """Write to a run that another process has started; does not wait for the server."""
        tracker = cls(tracking, run_id, spool, keeper=None)
        if tracking.system_metrics:
            tracker._monitor = _system_metrics(tracker.tracking.uri, run_id)
        return tracker

    @property
    def client(self) -> MlflowClient:
        """The MLflow client of the run's server."""
        return self._sender.client

    @property
    def missing(self) -> dict[str, str]:
        """Artifacts that this process was to store and could not, and why; also the tag `bft.missing`."""
        return dict(self._sender.missing)

    # ---- queued: returns at once, and nothing is lost while the server is away

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Queue the metrics of a step."""
        values = {name: float(value) for name, value in metrics.items()}
        self._sender.queue({"metrics": values, "step": int(step), "time": time.time_ns() // 1_000_000})

    def set_tags(self, tags: dict[str, str]) -> None:
        """Queue tags; the last value of a name wins."""
        self._sender.queue({"tags": {name: redact(str(value)) for name, value in tags.items()}})

    def log_text(self, text: str, artifact_file: str) -> None:
        """Queue a text as an artifact, e.g. `config.yaml`."""
        self._sender.queue({"text": redact(text), "file": artifact_file})

    def log_dataset(self, name: str, source: str, fingerprint: str, num_rows: int, context: str) -> None:
        """Queue a dataset input of the run; its digest is the head of the fingerprint (MLflow takes 36 characters).

        Args:
            context: what it was used for: training, validation, test.
        """
        dataset = {
            "name": name,
            "digest": fingerprint[:36],
            "source_type": "uri" if "://" in source else "local",
            "source": json.dumps({"uri": redact(source)}),
            "profile": json.dumps({"num_rows": num_rows, "fingerprint": fingerprint}),
        }
        self._sender.queue({"dataset": dataset, "context": context})

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that is queued is on the server, at most so long; whether it is."""
        return self._sender.flush(timeout_s)

    # ---- at once

    def log_params(self, params: dict[str, Any]) -> None:
        """Write params; one over 6,000 characters is kept whole as the artifact `params/NAME.txt`.

        Raises:
            BadInput: the run holds another value, and results depend on it (see `resume.MAY_CHANGE`).
        """
        from mlflow.entities import Param

        new = begin.new_params(params, self.client.get_run(self.run_id).data.params, self.run_id)
        for file, text in new.texts.items():
            self.log_text(text, file)
        if new.changed:
            self.set_tags(new.changed)
        for some in chunks([Param(name, value) for name, value in new.values.items()], 100):
            patiently(PATIENCE_S, self.client.log_batch, self.run_id, params=some)

    def log_artifacts(self, folder: str | Path, artifact_path: str | None = None) -> bool:
        """Upload a folder; False, with a warning that names it, if the server stays away."""
        what = artifact_path or Path(folder).name
        return self._upload(what, folder, lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path))

    def log_model(
        self,
        folder: str | Path,
        name: str,
        model_type: str = "causal-lm",
        params: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        step: int = 0,
    ) -> str | None:
        """Log an exported folder (safetensors, tokenizer, card) as an MLflow 3 logged model of the run.

        The files are stored as they are; nothing is pickled. Load them with transformers or peft.

        Args:
            params: shown with the model.
            metrics: shown with the model, under the names that the run has for them: the run is not given them twice.
            step: the step that the weights are of.

        Returns:
            The model's id (it is `models:/ID`), or None, with a warning, if the server stays away.
        """
        from mlflow.entities import LoggedModelOutput

        values = {key: redact(str(value))[: begin.LONGEST_VALUE] for key, value in (params or {}).items()}
        model_ids: list[str] = []

        def log() -> None:  # may be tried several times, and makes one model
            if not model_ids:
                experiment_id = self.client.get_run(self.run_id).info.experiment_id
                model = self.client.create_logged_model(
                    experiment_id, name, self.run_id, params=values, model_type=model_type
                )
                model_ids.append(model.model_id)
                self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
            self.client.log_model_artifacts(model_ids[0], str(folder))
            self._log_model_metrics(model_ids[0], metrics or {}, step)
            self.client.finalize_logged_model(model_ids[0], "READY")

        if self._upload(f"the model {name}", folder, log):
            return model_ids[0]
        with contextlib.suppress(Exception):
            self.client.finalize_logged_model(model_ids[0], "FAILED")
        return None

    def _log_model_metrics(self, model_id: str, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        self.flush(self.tracking.timeout_s)
        held = {metric.key: metric for metric in self.client.get_run(self.run_id).data._metric_objs}
        now = time.time_ns() // 1_000_000
        for some in chunks(list(metrics.items()), 1000):
            # MLflow writes them to the run as well, unless it has them with this very time
            times = {name: held[name].timestamp for name, _ in some if name in held and held[name].step == step}
            batch = [Metric(name, value, times.get(name, now), step, model_id) for name, value in some]
            self.client.log_batch(self.run_id, metrics=batch)

    def _upload(self, what: str, folder: str | Path, call: Callable[[], None]) -> bool:
        if not Path(folder).is_dir():
            raise BadInput("folder", str(folder), "a folder that exists")
        try:
            with waiting(f"storing {what} in MLflow"):
                patiently(PATIENCE_S, call)
        except Exception as error:  # what was trained is worth more than its record
            _log.warning("%s is not uploaded to run %s: %s", folder, self.run_id, redact(first_line(error)))
            self._sender.lacks(what, error)
            return False
        return True

    # ---- the end

    def finish(self, status: Status, reason: str | None = None) -> bool:
        """Send what is queued, set the final status and let go; waits at most about 2 x `tracking.timeout_s`.

        Should the server be away for longer, the keeper goes on trying for an hour.

        Args:
            reason: becomes the tag `bft.reason`: a type and a rule, never sample text.

        Returns:
            Whether everything is on the server.
        """
        if self._sender.ended:
            return True
        if reason:
            self.set_tags({begin.REASON: shorten(reason)})
        try:
            done = self.conclude(status)
        except Exception as error:
            _log.warning("the status of run %s is not set yet: %s", self.run_id, redact(first_line(error)))
            done = False
        self.close(timeout_s=0)
        if self._keeper is not None:
            self._keeper.release(None if done else status)
        return done

    def conclude(self, status: Status | None) -> bool:
        """Send what is queued, by dead processes too, and set the status if any; whether all that was possible."""
        self._sender.adopt()
        if not self._sender.flush_records(self.tracking.timeout_s):
            return False
        if status is not None:
            patiently(self.tracking.timeout_s, self.client.set_terminated, self.run_id, status)
        return self.flush(self.tracking.timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Let go without a status (a worker's end); whether all was sent within `tracking.timeout_s`."""
        if self._sender.ended:
            return True
        if self._monitor is not None:
            self._monitor.finish()
        sent = self.flush(self.tracking.timeout_s if timeout_s is None else timeout_s)
        self._sender.end()
        return sent

    def __enter__(self) -> Tracker:
        in_main = threading.current_thread() is threading.main_thread()
        if self._owner and in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._sigterm = signal.signal(signal.SIGTERM, _exit)  # or nobody would hear of it
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owner:
            self.finish(*outcome(error))
        else:
            self.close()
        if self._sigterm is not None:
            signal.signal(signal.SIGTERM, self._sigterm)
            self._sigterm = None


def outcome(error: BaseException | None) -> tuple[Status, str | None]:
    """The final status and its reason, from what ended a run."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED", None
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "interrupted (Ctrl-C or SIGTERM)"
    if isinstance(error, SystemExit):
        if error.code in (signal.SIGTERM, 128 + signal.SIGTERM):  # of Ray's handler, and of ours
            return "KILLED", "terminated (SIGTERM)"
        return "FAILED", f"exit status {error.code}"
    return "FAILED", f"{type(error).__name__}: {first_line(error, LONGEST_REASON)}"


def shorten(reason: str) -> str:
    """A reason as a tag: one line, no secrets, of bounded length."""
    line = redact(" ".join(reason.split()))
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def _exit(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def _system_metrics(uri: str, run_id: str) -> Any:
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, resume_logging=True, node_id=platform.node(), tracking_uri=uri)
        monitor.start()
    except Exception as error:  # psutil is missing, or the server is away: the training matters more
        _log.warning("system metrics are not logged: %s", redact(first_line(error)))
        return None
    return monitor
