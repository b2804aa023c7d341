"""What a worker does with a leg: go on where the run was left, leave its file at each measurement, tell where it is."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from bft_ray.config import Config, make_config
from bft_ray.errors import BadConfig, BadInput, BftError, NonFinite, NoRoom
from bft_ray.places import storage
from bft_ray.places.disk import full_disk
from bft_ray.places.scratch import scratch
from bft_ray.study.execute.trial import TrialResult, paused_at, trial
from bft_ray.study.execute.warm import Warm
from bft_ray.study.records.segment import Leg, Reached, Run
from bft_ray.tracking.server import redact
from bft_ray.train.failure import advice_on, is_memory
from bft_ray.train.segment import measure_weights, stretch

log = logging.getLogger(__name__)

_LASTING = (BadInput, BadConfig, NonFinite)  # what would be the same the next time, but for `NoRoom`
_TELLING = (BftError, RuntimeError, OSError, MemoryError, ImportError)  # whose texts hold no rows of the data


def walk(leg: Leg, warm: Warm) -> Generator[Reached, None, None]:
    """Run a leg; yields where it is at each measurement, at last with the status `paused`, `complete`, `failed` or
    `stopped`.

    What an earlier leg has done is not done again: a run that is complete, has failed, or waits at `leg.until` or
    after it is told as it stands. Otherwise the run goes on from the state that was left last, or begins anew where
    there is none that fits. The file of the run is written before each yield, and the weights before it says
    `complete`. A run that waits goes on as if it had not been stopped: on CPU and one worker bit for bit.

    Errors become the status `failed` with a reason. Those that would come again are written to the file; after one that
    nobody raised on purpose, nothing stays in `warm`. A full disk stops the run, and what it has done before stands.

    Closing the generator stops the run where it is, and gives back all that it held.
    """
    run = Run.read(leg)
    if run is not None and (reached := _reached_before(run, leg)):
        yield reached
        return
    run, reason, is_lasting, is_broken, full = run or Run(leg.key), "", False, False, None
    try:
        config = make_config(leg.tree)
        measuring = _alone(leg, config, run, warm) if config.is_one_process else _together(leg, config, run)
        with closing(measuring) as stops:
            for _ in stops:
                run.write(leg)
                if run.status == "complete":
                    storage.remove_folder(leg.pause)
                yield run.reached
    except Exception as error:
        # the generator must not yield in here: the error's traceback holds the model
        full = full_disk(error, storage.places(leg.folder, leg.cache_dir))
        reason, is_broken = _reason(error), not isinstance(error, BftError)
        is_lasting = isinstance(error, _LASTING) and not isinstance(error, NoRoom)
        if is_memory(error):
            is_lasting, reason = not _shares_gpu(leg), f"{reason.rstrip('.')}. {advice_on(reason)}"
        if is_broken:
            log.error("trial %s: %s\n%s", leg.trial, reason, "".join(traceback.format_tb(error.__traceback__)))
    if is_broken:
        warm.forget()
    if full is not None:
        yield Reached(run.num_steps, {}, "stopped", str(full))
    elif reason:
        run.status, run.reason = "failed", reason
        if is_lasting:
            with suppress(OSError):  # no room for it: the driver is told in any case
                run.write(leg)
        yield replace(run.reached, is_lasting=is_lasting)


def _shares_gpu(leg: Leg) -> bool:
    """Whether others may have filled the memory of a trial's GPU; then it is tried again."""
    return 0 < (leg.tree.get("cluster", {}).get("gpus_per_worker") or 0) < 1


def _reached_before(run: Run, leg: Leg) -> Reached | None:
    """What there is to tell without any work."""
    if run.status in ("complete", "failed"):
        return run.reached
    if run.status == "paused" and leg.until is not None and run.num_steps >= leg.until and leg.until in run.metrics:
        return Reached(leg.until, run.metrics[leg.until], "paused")
    return None


def _reason(error: Exception) -> str:
    """Type and first line; where the text may hold a row of the data, the place instead."""
    name = type(error).__name__
    if not isinstance(error, _TELLING):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{name} in {Path(place.filename).name}, line {place.lineno}"
    lines = str(error).strip().splitlines()
    return redact(f"{name}: {lines[0]}") if lines else name


# --- by one worker, in this process ---------------------------------------------------------------------------


def _alone(leg: Leg, config: Config, run: Run, warm: Warm) -> Generator[None, None, None]:
    """Train and measure here; yields when `run` tells of a measurement."""
    with _places(leg) as (state, weights):
        start = paused_at(state) or 0
        if start not in run.metrics or start > len(run.train) or (leg.until is not None and start >= leg.until):
            start = 0  # killed between the two writes, say: the state comes first, and then the file
        _go_back(run, start)
        if not start:
            storage.remove_folder(leg.pause)
        before = Run(**vars(run))  # what follows is added to
        result = TrialResult(num_steps=start)

        def tell() -> None:
            run.num_steps = result.num_steps
            run.train = before.train + result.train
            run.metrics = before.metrics | result.metrics
            run.seconds = _sum(before.seconds, result.seconds)

        steps = trial(
            config,
            leg.rungs,
            warm,
            result,
            start=start,
            until=leg.until,
            pause=state,
            keep=weights if leg.keep else None,
            at_rungs=leg.at_rungs,
        )
        try:
            with closing(steps):
                for _ in steps:
                    if result.status == "running":
                        tell()
                        yield
        finally:
            tell()
        if storage.is_remote(leg.folder):
            _put(leg, state, weights, result)
        run.status, run.records = result.status, result.records  # type: ignore[assignment]  # paused or complete
    yield


@contextmanager
def _places(leg: Leg) -> Iterator[tuple[Path, Path]]:
    """Folders for state and final weights: the trial's own, or for an object store temporary ones, the state fetched."""
    if not storage.is_remote(leg.folder):
        yield Path(leg.pause), Path(leg.weights)
        return
    with scratch("leg") as folder:
        with suppress(FileNotFoundError):
            storage.fetch_folder(leg.pause, folder / "state")
        yield folder / "state", folder / "weights"


def _put(leg: Leg, state: Path, weights: Path, result: TrialResult) -> None:
    if result.status == "paused":
        storage.remove_folder(leg.pause)
        storage.put_folder(state, leg.pause)
    elif leg.keep:
        storage.put_folder(weights, leg.weights)


def _go_back(run: Run, step: int) -> None:
    """Forget what came after `step`; all, where nothing is left of it."""
    run.status, run.num_steps, run.train = "running", step, run.train[:step]
    run.metrics = {done: values for done, values in run.metrics.items() if step and done <= step}


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {part: a.get(part, 0.0) + b.get(part, 0.0) for part in a | b}


# --- by several workers ---------------------------------------------------------------------------------------


def _together(leg: Leg, config: Config, run: Run) -> Generator[None, None, None]:
    """Train through Ray Train up to each rung, and measure the weights after it; yields as `_alone` does."""
    if Run.read(leg) is None:  # what lies there is not of this run; else it is the checkpoint of a lost driver
        storage.remove_folder(leg.pause)
    run.status = "running"
    run.write(leg)
    ahead = [rung for rung in sorted(leg.rungs) if rung not in run.metrics]
    for stop in [*ahead, None] if leg.until is None else [rung for rung in ahead if rung <= leg.until]:
        began, weights = time.perf_counter(), None
        if stop != 0:
            weights = leg.weights if stop is None and leg.keep else storage.join(leg.pause, "export")
            run.num_steps, run.train = stretch(config, leg.pause, stop, weights)
        trained = time.perf_counter()
        measured = measure_weights(config, weights, None if stop is None else leg.at_rungs)
        run.metrics[run.num_steps] = measured.metrics
        run.seconds = _sum(run.seconds, {"train": trained - began, "measure": time.perf_counter() - trained})
        if stop is None:
            run.status, run.records = "complete", measured.records
        elif stop == leg.until:
            run.status = "paused"
        yield
    if run.status == "running":  # killed after it was measured there, and before that was told
        run.status = "paused"
        yield
