"""How a worker runs a segment: resume the run, write its file at each measurement, and report."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from bft_ray.config import Config, make_config
from bft_ray.errors import BadConfig, BadInput, BftError, NonFinite, NoRoom
from bft_ray.places import storage
from bft_ray.places.addresses import redact
from bft_ray.places.disk import full_disk
from bft_ray.places.scratch import scratch
from bft_ray.study.execute.trial import paused_at, trial
from bft_ray.study.execute.warm import Warm
from bft_ray.study.records.segment import Run, Segment
from bft_ray.train.failure import advice_on, is_memory
from bft_ray.train.segment import measure_weights, train_segment

log = logging.getLogger(__name__)

_LASTING = (BadInput, BadConfig, NonFinite)  # errors that would come again the next time, except `NoRoom`
_TELLING = (BftError, RuntimeError, OSError, MemoryError, ImportError)  # errors whose texts hold no rows of the data


def run_segment(segment: Segment, warm: Warm) -> Generator[Run, None, None]:
    """Run a segment; yields a report at each measurement, the last one with the status `paused`, `complete`, `failed` or
    `stopped`.

    Work of an earlier segment is not done again: a run that is complete, has failed, or waits at `segment.until` or after
    it is only reported. Otherwise the run resumes from the last saved state, or starts again where no state fits. The
    file of the run is written before each yield, and the weights before the file says `complete`. A paused run resumes as
    if it had not been stopped: on CPU with one worker bit for bit.

    Errors become the status `failed` with a reason. Those that would come again are written to the file; after an
    unexpected error, `warm` is emptied. A full disk stops the run, and its earlier results are kept.

    Closing the generator stops the run and frees what it holds.
    """
    run = Run.read(segment.files, segment.key)
    if run is not None and (before := _reported_before(run, segment)):
        yield before
        return
    run, reason, is_lasting, is_broken, full = run or Run(segment.key), "", False, False, None
    try:
        config = make_config(segment.tree)
        measuring = _alone(segment, config, run, warm) if config.is_one_process else _together(segment, config, run)
        with closing(measuring) as stops:
            for _ in stops:
                run.write(segment.files)
                if run.status == "complete":
                    storage.remove_folder(segment.files.state)
                yield run.report
    except Exception as error:
        # the generator must not yield in here: the error's traceback holds the model
        full = full_disk(error, storage.places(segment.folder, segment.cache_dir))
        reason, is_broken = _reason(error), not isinstance(error, BftError)
        is_lasting = isinstance(error, _LASTING) and not isinstance(error, NoRoom)
        if is_memory(error):
            is_lasting, reason = not _shares_gpu(segment), f"{reason.rstrip('.')}. {advice_on(reason)}"
        if is_broken:
            log.error("trial %s: %s\n%s", segment.trial, reason, "".join(traceback.format_tb(error.__traceback__)))
    if is_broken:
        warm.forget()
    if full is not None:
        yield Run(segment.key, "stopped", str(full), run.num_steps)
    elif reason:
        run.status, run.reason, run.is_lasting = "failed", reason, is_lasting
        if is_lasting:
            with suppress(OSError):  # no room for it: the driver gets the report in any case
                run.write(segment.files)
        yield run.report


def _shares_gpu(segment: Segment) -> bool:
    """Whether other trials may have filled the memory of the trial's GPU; then the trial is run again."""
    return 0 < (segment.tree.get("cluster", {}).get("gpus_per_worker") or 0) < 1


def _reported_before(run: Run, segment: Segment) -> Run | None:
    """The report of earlier work, where nothing is left to do; None otherwise."""
    if run.status in ("complete", "failed"):
        return run.report
    if (
        run.status == "paused"
        and segment.until is not None
        and run.num_steps >= segment.until
        and segment.until in run.metrics
    ):
        return run.at(segment.until)
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


def _alone(segment: Segment, config: Config, run: Run, warm: Warm) -> Generator[None, None, None]:
    """Train and measure in this process; yields when `run` has a new measurement."""
    with _places(segment) as (state, weights):
        start = paused_at(state) or 0
        if start not in run.metrics or start > len(run.train) or (segment.until is not None and start >= segment.until):
            start = 0  # such as after a kill between the two writes: first the state, then the file
        _truncate(run, start)
        if not start:
            storage.remove_folder(segment.files.state)
        steps = trial(
            config,
            segment.rungs,
            warm,
            run,
            start=start,
            until=segment.until,
            pause=state,
            keep=weights if segment.keep else None,
            at_rungs=segment.at_rungs,
        )
        with closing(steps):
            for _ in steps:
                if run.status == "running":
                    yield
        if storage.is_remote(segment.folder):
            _put(segment, state, weights, run)
    yield


@contextmanager
def _places(segment: Segment) -> Iterator[tuple[Path, Path]]:
    """Folders for state and final weights: the trial's own, or for an object store temporary ones, the state fetched."""
    if not storage.is_remote(segment.folder):
        yield Path(segment.files.state), Path(segment.files.weights)
        return
    with scratch("segment") as folder:
        with suppress(FileNotFoundError):
            storage.fetch_folder(segment.files.state, folder / "state")
        yield folder / "state", folder / "weights"


def _put(segment: Segment, state: Path, weights: Path, run: Run) -> None:
    if run.status == "paused":
        storage.remove_folder(segment.files.state)
        storage.put_folder(state, segment.files.state)
    elif segment.keep:
        storage.put_folder(weights, segment.files.weights)


def _truncate(run: Run, step: int) -> None:
    """Remove what came after `step` from the run; with 0, remove everything."""
    run.status, run.num_steps, run.train = "running", step, run.train[:step]
    run.metrics = {done: values for done, values in run.metrics.items() if step and done <= step}


def _sum(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    return {part: a.get(part, 0.0) + b.get(part, 0.0) for part in a | b}


# --- by several workers ---------------------------------------------------------------------------------------


def _together(segment: Segment, config: Config, run: Run) -> Generator[None, None, None]:
    """Train through Ray Train up to each rung, and measure the weights after it; yields as `_alone` does."""
    if (
        Run.read(segment.files, segment.key) is None
    ):  # the folder is not of this run; otherwise it holds the checkpoint of a lost driver
        storage.remove_folder(segment.files.state)
    run.status = "running"
    run.write(segment.files)
    ahead = [rung for rung in sorted(segment.rungs) if rung not in run.metrics]
    for stop in [*ahead, None] if segment.until is None else [rung for rung in ahead if rung <= segment.until]:
        began, weights = time.perf_counter(), None
        if stop != 0:
            weights = (
                segment.files.weights if stop is None and segment.keep else storage.join(segment.files.state, "export")
            )
            run.num_steps, run.train = train_segment(config, segment.files.state, stop, weights)
        trained = time.perf_counter()
        measured = measure_weights(config, weights, None if stop is None else segment.at_rungs)
        run.metrics[run.num_steps] = measured.metrics
        run.seconds = _sum(run.seconds, {"train": trained - began, "measure": time.perf_counter() - trained})
        if stop is None:
            run.status, run.records = "complete", measured.records
        elif stop == segment.until:
            run.status = "paused"
        yield
    if run.status == "running":  # it was killed after this measurement, and before the report
        run.status = "paused"
        yield
