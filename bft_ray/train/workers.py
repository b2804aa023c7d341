"""Ray Train workers for one config: made, waited for, and their end explained."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from bft_ray import saving
from bft_ray.config import Config
from bft_ray.errors import BftError, first_line
from bft_ray.places import storage
from bft_ray.places.disk import full_disk
from bft_ray.train.checkpoint import Damaged, remove_cut_off, set_aside
from bft_ray.train.failure import WorkerFailed, explain, retry_of, root_of
from bft_ray.train.host import drop_superseded
from bft_ray.train.snapshot import SCORE, delete_unfit
from bft_ray.waits import in_thread
from bft_ray.workers.asking import asking
from bft_ray.workers.connect import told_when_lost
from bft_ray.workers.ray_private import end_train_controllers
from bft_ray.workers.room import num_gpus_per_worker

log = logging.getLogger(__name__)

_LOOK_S = 0.5  # between two looks whether USR1 has come
_END_S = 10.0  # longest wait for the end of Ray Train's call, where this process is to end
_COUNT_AGAIN_S = 10.0  # longest wait for a placement of so many workers as there seemed to be room for


def run_workers(config: Config, payload: dict[str, Any]) -> dict[str, Any]:
    """Run the workers; returns what `train_worker` returned on rank 0. Within `bft_ray.workers.connect.connect` only. Where a node
    is to be taken away, and there is room elsewhere, they end with a checkpoint and start anew without that node. Where the
    checkpoint that they were to resume from is damaged, they start anew from the one before it.

    Args:
        payload: of `train_worker`, to which the config is added. Its `folder` is named as the run; checkpoints go there, and the run
            resumes from those in it.

    Raises:
        NonFinite: a loss or gradient was not finite.
        Saved: USR1 has come, and a checkpoint is saved.
        Damaged: a damaged checkpoint, and none before it.
        BftError: the workers failed more often than `cluster.max_failures`, or with an error that would come again; or one
            of them raised it on purpose.
    """
    from bft_ray.train.notice import still_there

    away: tuple[str, ...] = ()
    folder = payload["folder"]
    name = folder.rpartition("/")[2]
    with saving.listening():
        while True:  # at most two starts for each notice, and one for each damaged checkpoint
            try:
                outcome = _start(config, payload, away)
            except Damaged as damaged:
                if not set_aside(damaged):
                    raise
                continue
            if "away" not in outcome:
                break
            if saving.asked():
                raise saving.Saved(f"USR1: the last checkpoint is of the present step; {_resumes(name)}")
            away = still_there(outcome["away"])
    if "error" in outcome:
        raise outcome["error"]
    try:
        drop_superseded(folder, config.checkpoint.keep)
    except OSError as error:  # an unreachable store does not harm a run that is done
        log.warning("superseded checkpoints of %s stay: %s", name, first_line(error))
    if "saved" in outcome:
        raise saving.Saved(f"USR1: the checkpoint of step {outcome['saved']} is saved; {_resumes(name)}")
    return outcome


def _start(config: Config, payload: dict[str, Any], away: tuple[str, ...]) -> dict[str, Any]:
    """Start workers and wait for their end; see `run_workers`.

    Args:
        away: nodes that Ray is about to lose; it places nothing there, but Ray Train counts them.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from bft_ray.train.meeting import torch_config
    from bft_ray.train.notice import room_without
    from bft_ray.train.worker import StopAtFinal, train_worker

    folder = payload["folder"]
    storage_path, _, name = folder.rpartition("/")
    remove_cut_off(folder)
    delete_unfit(folder)
    cluster, most = config.cluster, config.cluster.num_workers
    is_fixed, gpus = cluster.least_workers == cluster.num_workers, num_gpus_per_worker(cluster)
    if not is_fixed and away and (room := room_without(cluster, away)) >= cluster.least_workers:
        most = min(most, room)
    # the number of workers may come from a count that still has a lost node: then it is soon tried with another
    start_s = cluster.start_timeout_s if is_fixed else min(cluster.start_timeout_s, _COUNT_AGAIN_S)
    num_starts = cluster.max_failures + (0 if is_fixed else math.ceil(cluster.start_timeout_s / start_s))
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(start_s)
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # a value that it returns is rank 0's `return_value`
        train_loop_config=payload | {"config": config, "away": away},
        scaling_config=ScalingConfig(
            num_workers=most if is_fixed else (cluster.least_workers, most),  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=cluster.resize_interval_s,  # type: ignore[call-arg]
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": cluster.cpus_per_worker}
            | ({"GPU": gpus} if gpus else {})
            | cluster.resources_per_worker,
            placement_strategy=cluster.placement,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            callbacks=[StopAtFinal(payload.get("board"))],  # type: ignore[list-item]  # stated for Ray Tune's
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=num_starts,  # type: ignore[call-arg]  # also bounds the wait for a lost node
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.checkpoint.keep, checkpoint_score_attribute=SCORE, checkpoint_score_order="max"
            ),
        ),
        torch_config=torch_config("nccl" if gpus else "gloo", int(cluster.collective_timeout_s)),
    )
    try:
        with asking(payload.get("run_id", "")) as ask, told_when_lost():
            return _interruptibly(trainer.fit, ask).return_value
    except TrainingFailedError as error:
        with contextlib.suppress(OSError):  # a store that is away is not why the workers ended, or the error says so
            remove_cut_off(folder)  # those that they were writing when they ended
            storage.remove_parts(folder)
        raise _cause(error, storage.places(storage_path, config.data.cache_dir), name) from error


def _interruptibly(function: Callable[[], Any], ask: Callable[[], None]) -> Any:
    """Call in a thread and wait. In the main thread Ray Train would take Ctrl-C for itself, and end with status 0.

    Args:
        ask: called when USR1 has come: asks the workers to save and end.

    Raises:
        KeyboardInterrupt: they have not done so in time.
    """
    future = in_thread(function, name="bft-ray-fit")
    try:
        while not wait([future], _LOOK_S).done:
            if saving.asked():
                ask()
            if saving.is_overdue():
                log.warning(
                    "the workers have saved nothing %g s after USR1: the run ends without it", saving.PATIENCE_S
                )
                raise KeyboardInterrupt
    except BaseException:
        _end(future)
        raise
    return future.result()


def _end(call: Future[Any]) -> None:
    """End a call of Ray Train. Where this process takes leave of Ray while the call still waits, Ray may crash it."""
    for _ in range(math.ceil(_END_S / _LOOK_S)):
        with contextlib.suppress(Exception):  # of a Ray that is not well; what ends this process is told
            end_train_controllers()  # again each time: the call may not have had one yet
        if wait([call], _LOOK_S).done:
            return


def _cause(error: Exception, places: Mapping[str, str], name: str) -> BftError:
    """The worker's own error, in its own words."""
    failures = getattr(error, "worker_failures", {})
    inner = root_of(failures) if failures else getattr(error, "controller_failure", None) or error
    inner = full_disk(inner, places) or inner  # also Ray Train's own, which writes beside the checkpoints
    if isinstance(inner, BftError) and not isinstance(inner, WorkerFailed):
        return inner
    failed = inner if isinstance(inner, WorkerFailed) else explain(inner, None)
    logs = "The workers' logs are in the Ray session's log folder (ray logs, or the dashboard)"
    resumes = "" if retry_of(failed) == "never" else f"; {_resumes(name)}"
    return BftError(f"{failed}\n{logs}{resumes}.")


def _resumes(name: str) -> str:
    """How a run goes on; a config without a name would begin another one."""
    return f"the same command with name={name} resumes from the last checkpoint"
