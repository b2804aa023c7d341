"""One MLflow run, as the driver and rank 0 of the training workers write it."""

from __future__ import annotations

import contextlib
import logging
import platform
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput, first_line
from bft_ray.places.addresses import absolute_uri, redact
from bft_ray.saving import Saved
from bft_ray.tracking import begin
from bft_ray.tracking.keeper import Keeper
from bft_ray.tracking.retry import patiently
from bft_ray.tracking.sender import LONGEST_REASON, Sender, Status, digest_of, now_ms
from bft_ray.tracking.server import artifact_root, connect
from bft_ray.waits import waiting

if TYPE_CHECKING:
    from mlflow.entities import Run

_log = logging.getLogger(__name__)

_PRIMARY = "mlflow.experiment.primaryMetric"  # of the experiment's tags
PATIENCE_S = 120.0  # how long an upload is tried again while the server is away


class Tracker(Sender):
    """A run: what a `Sender` queues, its params and uploads, its beginning and its end.

    Who starts a run (the driver) ends it; who attaches (a worker, which Ray may restart) only closes. As a context
    manager: an exception makes the run FAILED, Ctrl-C or SIGTERM make it KILLED, each with its reason.
    """

    resumed = False
    _owner = False
    _keeper: Keeper | None = None
    _monitor: Any = None
    _sigterm: Any = None

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
        """Create a run; or resume that of `run_id`, or one of that name and run key that has not FINISHED.

        Args:
            tracking: where; call `check_server` first, which ends in time where this may wait for minutes.
            params: the flat config; see `log_params`.
            tags: of the run. `bft.run_key` says what makes two runs the same, e.g. a hash of the config.
            keeper: watch this process from another one, which sets the final status should this one be killed.
            spool: folder of the outboxes; None: ~/.cache/bft_ray/spool. On shared storage they outlive a lost node.

        Raises:
            BadInput: no run has that id, or the run to resume has other params.
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
            new = begin.new_params(params, {})
        else:
            new = begin.new_params(params, run.data.params, run.info.run_id)  # may refuse: before anything changes
            run_id = begin.reopen_run(client, run)
        tracker = cls(tracking, run_id, spool)
        tracker.resumed, tracker._owner = run is not None, True
        if keeper:
            tracker._keeper = Keeper(tracker.tracking, run_id, tracker.spool)
        tracker._queue_params(new)
        tracker.set_tags(tracking.tags | tags)
        return tracker

    @classmethod
    def attach(cls, tracking: TrackingConfig, run_id: str, spool: Path | None = None) -> Tracker:
        """Write to a run that another process has started; does not wait for the server."""
        tracker = cls(tracking, run_id, spool)
        if tracking.system_metrics:
            tracker._monitor = _system_metrics(tracker.tracking.uri, run_id)
        return tracker

    def log_params(self, params: dict[str, Any]) -> None:
        """Queue params; one over 6,000 characters is kept whole as the artifact `params/NAME.txt`.

        Raises:
            BadInput: the run holds another value, and results depend on it (see `resume.MAY_CHANGE`).
        """
        held = patiently(PATIENCE_S, self.client.get_run, self.run_id).data.params
        self._queue_params(begin.new_params(params, held, self.run_id))

    def _queue_params(self, new: begin.NewParams) -> None:
        for file, text in new.texts.items():
            self.log_text(text, file)
        self._queue({"params": new.values, "tags": new.changed})

    def log_artifacts(self, folder: str | Path, artifact_path: str | None = None) -> bool:
        """Upload a folder; False, with a warning that names it, if the server stays away."""
        what = artifact_path or Path(folder).name
        return self._upload(what, folder, lambda: self.client.log_artifacts(self.run_id, str(folder), artifact_path))

    def link_to(self, artifact: str) -> str:
        """The address of an artifact within MLflow's page, for links in notes of the same server."""
        run = patiently(PATIENCE_S, self.client.get_run, self.run_id)
        place = f"#/experiments/{run.info.experiment_id}/runs/{self.run_id}/artifacts/{artifact}"
        return f"{place}?workflowType=machine_learning"  # else MLflow 3 may show its pages for agents around it

    def history(self, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
        """Metric -> (step, value) as the server has them, in order; {}, with a warning, if it stays away."""
        self.flush(self.tracking.timeout_s)
        try:
            found = {
                name: patiently(self.tracking.timeout_s, self.client.get_metric_history, self.run_id, name)
                for name in names
            }
        except Exception as error:  # a page without curves is better than a run without an end
            _log.warning("the history of run %s is not read: %s", self.run_id, redact(first_line(error)))
            return {}
        return {
            name: sorted({one.step: one.value for one in points}.items()) for name, points in found.items() if points
        }

    def prefer(self, metric: str, higher_is_better: bool) -> None:
        """Name the metric by which the experiment's page compares runs; an experiment that cannot be written stays as it is."""
        tags = {f"{_PRIMARY}.name": metric, f"{_PRIMARY}.greaterIsBetter": str(higher_is_better)}
        try:
            run = patiently(self.tracking.timeout_s, self.client.get_run, self.run_id)
            for name, value in tags.items():
                patiently(self.tracking.timeout_s, self.client.set_experiment_tag, run.info.experiment_id, name, value)
        except Exception as error:  # such as of a server that lets users write runs alone
            _log.warning("the experiment's primary metric is not set: %s", redact(first_line(error)))

    def log_model(
        self,
        folder: str | Path,
        name: str,
        metrics: dict[str, float] | None = None,
        step: int = 0,
        datasets: Mapping[str, str] | None = None,
    ) -> str | None:
        """Log an exported folder (safetensors, tokenizer, card) as an MLflow 3 logged model of the run.

        The files are stored as they are; nothing is pickled. Load them with transformers or peft.

        Args:
            metrics: shown with the model, under the names that the run has for them: the run is not given them twice.
            step: the step that the weights are of.
            datasets: name of a dataset of the run -> its fingerprint; metrics of its set (`final/validation/nll`) are tied
                to it.

        Returns:
            The model's id (it is `models:/ID`), or None, with a warning, if the server stays away.
        """
        from mlflow.entities import LoggedModelOutput

        model_ids: list[str] = []

        def log() -> None:  # may be tried several times, and makes one model
            if not model_ids:
                experiment_id = self.client.get_run(self.run_id).info.experiment_id
                model = self.client.create_logged_model(experiment_id, name, self.run_id, model_type="causal-lm")
                model_ids.append(model.model_id)
                self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step)])
            self.client.log_model_artifacts(model_ids[0], str(folder))
            self._log_model_metrics(model_ids[0], metrics or {}, step, datasets or {})
            self.client.finalize_logged_model(model_ids[0], "READY")

        if self._upload(f"the model {name}", folder, log):
            return model_ids[0]
        with contextlib.suppress(Exception):
            self.client.finalize_logged_model(model_ids[0], "FAILED")
        return None

    def _log_model_metrics(
        self, model_id: str, metrics: dict[str, float], step: int, datasets: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric

        self.flush(self.tracking.timeout_s)
        held = {metric.key: metric for metric in self.client.get_run(self.run_id).data._metric_objs}
        # MLflow writes them to the run as well, unless it has them with this very time
        times = {name: metric.timestamp for name, metric in held.items() if metric.step == step}
        batch = []
        for name, value in metrics.items():
            of = name.removeprefix("final/").partition("/")[0]
            tied = (of, digest_of(datasets[of])) if of in datasets else (None, None)
            batch.append(Metric(name, value, times.get(name, now_ms()), step, model_id, *tied))
        self.client.log_batch(self.run_id, metrics=batch)

    def _upload(self, what: str, folder: str | Path, call: Callable[[], None]) -> bool:
        if not Path(folder).is_dir():
            raise BadInput("folder", str(folder), "a folder that exists")
        try:
            with waiting(f"storing {what} in MLflow"):
                patiently(PATIENCE_S, call)
        except Exception as error:  # what was trained is worth more than its record
            _log.warning("%s is not uploaded to run %s: %s", folder, self.run_id, redact(first_line(error)))
            self.lacks(what, error)
            return False
        return True

    def finish(self, status: Status, reason: str | None = None) -> bool:
        """Send what is queued, set the final status and let go; waits at most about 2 x `tracking.timeout_s`.

        If the server is away for longer, the keeper tries again for an hour.

        Args:
            reason: becomes the tag `bft.reason`: a type and a rule, never sample text.

        Returns:
            Whether everything is on the server.
        """
        if self._records.ended:
            return True
        self.adopt()
        self.flush(self.tracking.timeout_s, even_away=False)  # so that a run that has ended is whole, where it can be
        self.log_end(status, reason)
        done = self.close()
        if not done:
            _log.warning("run %s is not complete on the tracking server yet", self.run_id)
        if self._keeper is not None:
            self._keeper.release(done)
        return done

    def close(self, timeout_s: float | None = None) -> bool:
        """Let go without a status (a worker's end); see `Sender.close`."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        return super().close(timeout_s)

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
    if isinstance(error, Saved):
        return "KILLED", first_line(error, LONGEST_REASON)
    if isinstance(error, SystemExit):
        if error.code in (signal.SIGTERM, 128 + signal.SIGTERM):  # of Ray's handler, and of ours
            return "KILLED", "terminated (SIGTERM)"
        return "FAILED", f"exit status {error.code}"
    return "FAILED", f"{type(error).__name__}: {first_line(error, LONGEST_REASON)}"


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
