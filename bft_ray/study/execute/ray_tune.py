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

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from bft_ray import saving
from bft_ray.config import ClusterConfig, Config
from bft_ray.errors import BftError
from bft_ray.places import storage
from bft_ray.places.disk import full_disk
from bft_ray.places.scratch import scratch
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.execute.actor import TrialActor
from bft_ray.study.execute.ending import ending
from bft_ray.study.records.segment import Segment
from bft_ray.train.failure import advice_on, how_it_died
from bft_ray.workers.asking import asking
from bft_ray.workers.room import num_places, worker_resources

log = logging.getLogger(__name__)

#: settings that Tune reads only from the environment, when a study begins
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # its log files for each trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # on Ctrl-C the driver ends the study, and sets every status
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # snapshots, which nothing reads
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # the controller limits them
    "RAY_AIR_NEW_OUTPUT": "0",
}
_COUNT_S = 5.0  # between two counts of the cluster's nodes
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
        bridge = _Bridge(controller, [_room(config.cluster), look, ending(controller, ask)])
        warnings.simplefilter("ignore")  # Tune's, about its own settings
        no_checkpoints = tune.CheckpointConfig(checkpoint_at_end=False)  # a segment saves its state itself
        tuner = tune.Tuner(
            tune.with_resources(actor, lambda _: _resources(config.cluster)),
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
    """Set _SETTINGS in the environment while the context lasts; a value that is set already stays."""
    mine = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def num_slots(cluster: ClusterConfig) -> Callable[[], int]:
    """A function for how many trials the nodes of the cluster could run at a time, if nobody else used them. It counts the
    nodes every few seconds.
    """
    known, at = 0, -_COUNT_S

    def count() -> int:
        nonlocal known, at
        if time.monotonic() - at >= _COUNT_S:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            known, at = num_runs(nodes, worker_resources(cluster), cluster), time.monotonic()
        return known

    return count


def _room(cluster: ClusterConfig) -> Callable[[], None]:
    """A function that raises BftError when no node has had room for a trial for too long: Tune would wait for ever, and
    print nothing.
    """
    slots, since = num_slots(cluster), time.monotonic()
    has_warned = False

    def look() -> None:
        nonlocal since, has_warned
        if slots():
            since, has_warned = time.monotonic(), False
        elif time.monotonic() - since > cluster.start_timeout_s:
            raise BftError(
                f"no node has had room for a trial for cluster.start_timeout_s = {cluster.start_timeout_s:g} s. "
                "When the cluster is back, the same command resumes the study."
            )
        elif not has_warned:
            has_warned = True
            log.warning("no node has room for a trial; waiting up to %g s for one", cluster.start_timeout_s)

    return look


def num_runs(nodes: Sequence[dict[str, float]], need: dict[str, float], cluster: ClusterConfig) -> int:
    """How many runs fit on nodes with these resources, under the placement: of `cluster.num_workers` workers, or if not one of
    them fits of the fewest.
    """
    return _num_runs(nodes, need, cluster, cluster.num_workers) or _num_runs(
        nodes, need, cluster, cluster.least_workers
    )


def _num_runs(
    nodes: Sequence[dict[str, float]], need: dict[str, float], cluster: ClusterConfig, num_workers: int
) -> int:
    if cluster.placement == "STRICT_PACK":
        return sum(num_places([node], need) // num_workers for node in nodes)
    free, runs = [num_places([node], need) for node in nodes], 0
    if cluster.placement != "STRICT_SPREAD":
        return sum(free) // num_workers
    while sum(places > 0 for places in free) >= num_workers:  # each run on as many nodes, those with most room
        for index in sorted(range(len(free)), key=lambda index: -free[index])[:num_workers]:
            free[index] -= 1
        runs += 1
    return runs


def _resources(cluster: ClusterConfig) -> tune.PlacementGroupFactory:
    """What Tune reserves for a segment: a bundle for each worker, with `cluster.min_workers` for as many as there is room for
    now. One worker is Tune's own actor; beside several, that one is given nothing.
    """
    need, num_workers = worker_resources(cluster), cluster.num_workers
    if cluster.least_workers < cluster.num_workers:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fitting = [n for n in range(cluster.least_workers, num_workers + 1) if _num_runs(nodes, need, cluster, n)]
        num_workers = max(fitting, default=cluster.least_workers)
    bundles = [need] if num_workers == 1 else [{}, *[need] * num_workers]
    return tune.PlacementGroupFactory(bundles, strategy=cluster.placement)


class _Bridge:
    """What Tune's three hooks share. An error of the controller is kept here, because Tune would wrap or swallow it."""

    def __init__(self, controller: Controller, looks: Sequence[Callable[[], None]]):
        self.controller, self._looks = controller, looks
        self.segments: dict[str, Segment] = {}  # by the id that Tune gave
        self.why: dict[str, str] = {}  # by that id: how the process of a segment ended
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
        if error or not result or "run" not in result:
            why = self._bridge.why.pop(trial_id, how_it_died(""))
            self._bridge.call(self._bridge.controller.broke, segment, why)
        else:
            self._bridge.call(self._bridge.controller.ended, segment, result["run"])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to do: the study's database has every record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to do: see `save`."""


class _Rungs(FIFOScheduler):
    """Stops trials that the controller does not promote."""

    def __init__(self, bridge: _Bridge):
        super().__init__()
        self._bridge = bridge

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        segment = self._bridge.segments[trial.trial_id]
        on = self._bridge.call(self._bridge.controller.is_promoted, segment, result["run"])
        return TrialScheduler.CONTINUE if on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep the reason: Tune calls this before the searcher, which gets no error."""
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
        places = trial.placement_group_factory
        assert places is not None
        num_workers = sum(bool(bundle) for bundle in places.bundles)
        self._bridge.call(self._bridge.controller.begun, self._bridge.segments[trial.trial_id], num_workers)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._bridge.look()
