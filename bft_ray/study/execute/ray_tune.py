"""The study on Ray Tune: Tune places segments on the cluster and keeps their processes warm; the controller decides.

A segment is one Tune trial. Tune's own records go to a folder that is deleted: a study is resumed from its database. Tune
stops a worker when there is no segment for it, so the controller gives out some `ahead`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from bft_ray import saving
from bft_ray.config import ClusterConfig, Config
from bft_ray.places import storage
from bft_ray.places.disk import full_disk
from bft_ray.places.scratch import scratch
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.execute.actor import TrialActor
from bft_ray.study.execute.ending import ending
from bft_ray.study.execute.slots import COUNT_S, most_workers, num_workers_of, reserved, room_for_trials
from bft_ray.study.records.segment import Run, Segment
from bft_ray.train.failure import advice_on, how_it_died
from bft_ray.workers.asking import asking

log = logging.getLogger(__name__)

#: settings that Tune reads only from the environment, when a study begins
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its log files for each trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # on Ctrl-C the driver ends the study, and sets every status
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # snapshots, which nothing reads
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the controller limits them
    "TUNE_STATE_REFRESH_PERIOD": "1000000000",  # s; it counts nodes without `require_same_head`, for lines that are off
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",  # the same; `room_for_trials` warns
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S_AUTOSCALER": "1000000000",
    "RAY_AIR_NEW_OUTPUT": "0",
}
_LOOK_S = 0.25  # between two calls of `look`


def run(
    controller: Controller,
    config: Config,
    look: Callable[[], None] = lambda: None,
    actor: type[tune.Trainable] = TrialActor,
) -> None:
    """Run the study to its end; within `bft_ray.workers.connect.connect` only.

    Args:
        config: of the first trial: what a worker needs is the same for all.
        look: called a few times a second; an error that it raises ends the study.
        actor: runs the segments.

    Raises:
        Exception: the error that the controller or `look` has raised, unchanged.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would log pages for every error
    with (
        saving.listening(),
        asking(controller.study.id) as ask,
        scratch("tune") as folder,
        _settings(),
        warnings.catch_warnings(),
    ):
        room = room_for_trials(config.cluster, lambda: controller.num_running > 0)
        bridge = _Bridge(controller, [room, look, ending(controller, ask)])
        warnings.simplefilter("ignore")  # Tune's, about its own settings
        no_checkpoints = tune.CheckpointConfig(checkpoint_at_end=False)  # a segment saves its state itself
        tuner = tune.Tuner(
            tune.with_resources(actor, lambda _: reserved(config.cluster)),
            tune_config=tune.TuneConfig(
                search_alg=_Suggestions(bridge),
                scheduler=_Rungs(bridge, config.cluster),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=str(folder),
                verbose=0,
                callbacks=[_Events(bridge)],
                checkpoint_config=no_checkpoints,
            ),
        )
        try:
            tuner.fit()
        except Exception as error:
            if bridge.error is None:  # Tune's own: it writes to the temporary folder
                raise full_disk(error, storage.places(config.cluster.storage_path)) or error from None
    if bridge.error is not None:
        raise bridge.error


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Set _SETTINGS in the environment while the context lasts; a value that is set already stays."""
    mine = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


class _Bridge:
    """What Tune's three hooks share. An error of the controller is kept here, because Tune would wrap or swallow it."""

    def __init__(self, controller: Controller, looks: Sequence[Callable[[], None]]):
        self.controller, self._looks = controller, looks
        self.segments: dict[str, Segment] = {}  # by the id that Tune gave
        self.why: dict[str, str] = {}  # by that id: how the process of a segment ended
        self.too_wide: set[str] = set()  # such ids, of segments that wait for more places than there are now
        self.saved: dict[str, Run] = {}  # by such an id: a run that was saved, whose actor is about to end
        self.moving: set[tuple[str, int]] = set()  # (trial, seed) of those that go on elsewhere
        self.error: BaseException | None = None
        self._looked = 0.0

    def __reduce__(self) -> Any:
        return object, ()  # Tune pickles its hooks into snapshots, and nothing is ever restored from one

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        try:
            return function(*arguments)
        except BaseException as error:
            self.error = error
            raise

    def look(self) -> None:
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            for look in self._looks:
                self.call(look)


class _Suggestions(Searcher):
    """Gives the controller's segments to Tune, and reports their ends to the controller."""

    def __init__(self, bridge: _Bridge):
        super().__init__()
        self._bridge = bridge

    def __deepcopy__(self, memo: dict) -> _Suggestions:
        return self

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        self._bridge.look()  # while no trial runs, Tune asks here again and again, for ten minutes, and calls nothing else
        segment = self._bridge.call(self._bridge.controller.next)
        if segment is None or segment == OVER:
            return None if segment is None else Searcher.FINISHED
        self._bridge.segments[trial_id] = segment
        return {"segment": segment}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        segment = self._bridge.segments.pop(trial_id, None)
        if segment is None:  # its end was reported already; then it failed while it was stopped
            return
        if trial_id in self._bridge.too_wide:
            self._bridge.call(self._bridge.controller.put_back, segment)
        elif run := self._bridge.saved.pop(trial_id, None):
            if not self._bridge.controller.is_held:
                log.warning("%s is saved after step %d: nodes leave or come", segment.trial, run.num_steps)
                self._bridge.moving.add((segment.trial, segment.seed))
            self._bridge.call(self._bridge.controller.ended, segment, run)
        elif error or not result or "run" not in result:
            why = self._bridge.why.pop(trial_id, how_it_died(""))
            self._bridge.call(self._bridge.controller.broke, segment, why)
        else:
            self._bridge.call(self._bridge.controller.ended, segment, result["run"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: the study's database has every record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do: see `save`."""


class _Rungs(FIFOScheduler):
    """Stops trials that the controller does not promote, and takes back those that wait for a node that is lost."""

    def __init__(self, bridge: _Bridge, cluster: ClusterConfig):
        super().__init__()
        self._bridge, self._cluster, self._counted = bridge, cluster, 0.0

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Tune reserves the places of a trial once, and would wait for ever for those of a node that is gone."""
        if self._cluster.least_workers < self._cluster.num_workers and time.monotonic() - self._counted >= COUNT_S:
            self._counted, most = time.monotonic(), most_workers(self._cluster)
            for trial in tune_controller.get_trials():
                if trial.status == Trial.PENDING and num_workers_of(trial) > most:
                    self._bridge.too_wide.add(trial.trial_id)
                    tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        if result["run"].status == "saved":
            self._bridge.saved[trial.trial_id] = result["run"]
            return TrialScheduler.CONTINUE  # its next step ends the actor, see `TrialActor.step`
        segment = self._bridge.segments[trial.trial_id]
        on = self._bridge.call(self._bridge.controller.is_promoted, segment, result["run"])
        return TrialScheduler.CONTINUE if on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the reason: Tune calls this before the searcher, which gets no error."""
        if trial.trial_id in self._bridge.saved:
            return
        what = how_it_died(_error_text(trial))
        self._bridge.why[trial.trial_id] = f"{what}. {advice_on(what) or advice_on('MemoryError')}"


def _error_text(trial: Trial) -> str:
    """Ray's text on the end of a trial, which Tune writes only to a file; "" where there is none."""
    with contextlib.suppress(OSError, TypeError):
        return Path(trial.error_file).read_text()
    return ""


class _Events(tune.Callback):
    """Reports when a worker has begun a segment, and calls the driver's `look`."""

    def __init__(self, bridge: _Bridge):
        self._bridge = bridge

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        segment, num_workers = self._bridge.segments[trial.trial_id], num_workers_of(trial)
        if (segment.trial, segment.seed) in self._bridge.moving:
            self._bridge.moving.remove((segment.trial, segment.seed))
            log.warning("%s goes on with %d worker%s", segment.trial, num_workers, "s" * (num_workers > 1))
        self._bridge.call(self._bridge.controller.begun, segment, num_workers)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._bridge.look()
