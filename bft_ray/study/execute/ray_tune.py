"""The study on Ray Tune: it places segments on the cluster and keeps their processes warm; the controller decides.

A segment is one Tune trial. What Tune itself records goes to a folder that is thrown away: a study goes on from its
database. Tune takes a worker down when no segment is there for it, hence the controller's `ahead`.
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

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from bft_ray.config import ClusterConfig, Config
from bft_ray.errors import BftError
from bft_ray.places import storage
from bft_ray.places.disk import full_disk
from bft_ray.places.scratch import scratch
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.execute.actor import TrialActor
from bft_ray.study.records.segment import Segment
from bft_ray.train.failure import advice_on, how_it_died
from bft_ray.workers.orphans import free_orphans
from bft_ray.workers.room import num_places, worker_resources

log = logging.getLogger(__name__)

#: what Tune takes by environment alone; it reads them when a study begins
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files of its own for each trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the study here, with every status set
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # snapshots that nobody reads
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the controller limits them
    "RAY_AIR_NEW_OUTPUT": "0",
}
_COUNT_S = 5.0  # between two looks at the cluster
_LOOK_S = 0.25  # between two calls of `look`


def run(
    controller: Controller,
    config: Config,
    look: Callable[[], None] = lambda: None,
    actor: type[tune.Trainable] = TrialActor,
) -> None:
    """Run the study to its end; within `bft_ray.workers.spread.connect` only.

    Args:
        config: of the trials, as far as it says what a worker needs.
        look: called a few times a second; what it raises ends the study.
        actor: what carries out segments.

    Raises:
        Exception: what the controller or `look` has raised, as it was.
    """
    looks = [_room(config.cluster), look]
    if not config.is_one_process:
        looks.append(_now_and_then(free_orphans))
    bridge = _Bridge(controller, looks)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it would tell every error with pages of its own
    with scratch("tune") as folder, _settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Tune's, about its own settings
        no_checkpoints = tune.CheckpointConfig(checkpoint_at_end=False)  # a segment leaves its state itself
        tuner = tune.Tuner(
            tune.with_resources(actor, _resources(config)),
            tune_config=tune.TuneConfig(
                search_alg=_Suggestions(bridge), scheduler=_Rungs(bridge), num_samples=-1, reuse_actors=True
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
    """_SETTINGS in the environment, for as long as the context lasts; what stands there already counts."""
    mine = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def num_slots(cluster: ClusterConfig) -> Callable[[], int]:
    """How many trials the nodes of the cluster could run at a time, whoever else is there; looked up now and then."""
    known, at = 0, -_COUNT_S

    def count() -> int:
        nonlocal known, at
        if time.monotonic() - at >= _COUNT_S:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            known, at = num_runs(nodes, worker_resources(cluster), cluster), time.monotonic()
        return known

    return count


def _room(cluster: ClusterConfig) -> Callable[[], None]:
    """Looks whether there is room for a trial: Tune would wait for nodes that are gone without a word, and for ever."""
    slots, since = num_slots(cluster), time.monotonic()
    told = False

    def look() -> None:
        nonlocal since, told
        if slots():
            since, told = time.monotonic(), False
        elif time.monotonic() - since > cluster.start_timeout_s:
            raise BftError(
                f"no node has had room for a trial for cluster.start_timeout_s = {cluster.start_timeout_s:g} s. "
                "When the cluster is back, the same command goes on."
            )
        elif not told:
            told = True
            log.warning("no node has room for a trial; waiting up to %g s for one", cluster.start_timeout_s)

    return look


def _now_and_then(function: Callable[[], None]) -> Callable[[], None]:
    called = 0.0

    def call() -> None:
        nonlocal called
        if time.monotonic() - called >= _COUNT_S:
            called = time.monotonic()
            function()

    return call


def num_runs(nodes: Sequence[dict[str, float]], need: dict[str, float], cluster: ClusterConfig) -> int:
    """How many runs of `cluster.num_workers` workers fit on nodes with these resources, under its placement."""
    if cluster.placement == "STRICT_PACK":
        return sum(num_places([node], need) // cluster.num_workers for node in nodes)
    free, runs = [num_places([node], need) for node in nodes], 0
    if cluster.placement != "STRICT_SPREAD":
        return sum(free) // cluster.num_workers
    while sum(places > 0 for places in free) >= cluster.num_workers:  # each run on as many nodes, those with most room
        for index in sorted(range(len(free)), key=lambda index: -free[index])[: cluster.num_workers]:
            free[index] -= 1
        runs += 1
    return runs


def _resources(config: Config) -> tune.PlacementGroupFactory:
    """Of one trial: its worker. Several workers are reserved by Ray Train, and the trial only waits for them; Tune wants
    it to hold something.
    """
    return tune.PlacementGroupFactory(
        [worker_resources(config.cluster) if config.is_one_process else {"memory": 2.0**20}]
    )


class _Bridge:
    """What Tune's three hooks share. What the controller raises is kept, for Tune would wrap it or swallow it."""

    def __init__(self, controller: Controller, looks: Sequence[Callable[[], None]]):
        self.controller, self._looks = controller, looks
        self.segments: dict[str, Segment] = {}  # by the id that Tune gave
        self.why: dict[str, str] = {}  # by that id: how the process of a segment ended
        self.error: BaseException | None = None
        self._looked = 0.0

    def __reduce__(self) -> Any:
        return object, ()  # Tune takes snapshots of all that it is given, and nothing is ever restored from one

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
    """Hands the controller's segments to Tune, and ends of segments back to it."""

    def __init__(self, bridge: _Bridge):
        super().__init__()
        self._bridge = bridge

    def __deepcopy__(self, memo: dict) -> _Suggestions:
        return self

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # FINISHED is text
        segment = self._bridge.call(self._bridge.controller.next)
        if segment is None or segment == OVER:
            return None if segment is None else Searcher.FINISHED
        self._bridge.segments[trial_id] = segment
        return {"segment": segment}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        segment = self._bridge.segments.pop(trial_id, None)
        if segment is None:  # told before, and then that it failed while being stopped
            return
        if error or not result or "run" not in result:
            why = self._bridge.why.pop(trial_id, how_it_died(""))
            self._bridge.call(self._bridge.controller.broke, segment, why)
        else:
            self._bridge.call(self._bridge.controller.ended, segment, result["run"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's database has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class _Rungs(FIFOScheduler):
    """Stops trials that the controller does not let go on."""

    def __init__(self, bridge: _Bridge):
        super().__init__()
        self._bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        segment = self._bridge.segments[trial.trial_id]
        on = self._bridge.call(self._bridge.controller.goes_on, segment, result["run"])
        return TrialScheduler.CONTINUE if on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Called before the searcher is told, to which Tune hands no error."""
        what = how_it_died(_said(trial))
        self._bridge.why[trial.trial_id] = f"{what}. {advice_on(what) or advice_on('MemoryError')}"


def _said(trial: Trial) -> str:
    """What Ray said of the end of a trial, which Tune hands on in a file alone; "" where there is none."""
    with contextlib.suppress(OSError, TypeError):
        return Path(trial.error_file).read_text()
    return ""


class _Events(tune.Callback):
    """Tells when a worker has taken a segment, and lets the driver look around."""

    def __init__(self, bridge: _Bridge):
        self._bridge = bridge

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._bridge.call(self._bridge.controller.begun, self._bridge.segments[trial.trial_id])

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._bridge.look()
