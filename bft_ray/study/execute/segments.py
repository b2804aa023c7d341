"""How a worker runs a segment: resume the run, write its file at each measurement, and report."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from pathlib import Path

from bft_ray.config import make_config
from bft_ray.errors import BadConfig, BadInput, BftError, NonFinite, NoRoom
from bft_ray.places import storage
from bft_ray.places.addresses import redact
from bft_ray.places.disk import full_disk
from bft_ray.study.execute import paused
from bft_ray.study.execute.card import cards_of_ranks
from bft_ray.study.execute.heard import heard
from bft_ray.study.execute.moving import moving
from bft_ray.study.execute.trial import trial
from bft_ray.study.execute.warm import Warm
from bft_ray.study.records.segment import Run, Segment
from bft_ray.train import ranks
from bft_ray.train.failure import advice_on, is_memory
from bft_ray.workers.asking import asked
from bft_ray.workers.node import on_this_node

log = logging.getLogger(__name__)

_LASTING = (BadInput, BadConfig, NonFinite)  # errors that would come again the next time, except `NoRoom`
_TELLING = (BftError, RuntimeError, OSError, MemoryError, ImportError)  # errors whose texts hold no rows of the data


def run_segment(segment: Segment, warm: Warm) -> Generator[Run, None, None]:
    """Run a segment; yields a report at each measurement, the last one with the status `paused`, `complete`, `failed`,
    `stopped` or `saved`. In a process group every rank calls it and gets the reports; rank 0 reads and writes the files.

    Work of an earlier segment is not done again: a run that is complete, has failed, or waits at `segment.until` or after
    it is only reported. Otherwise the run resumes from the last saved state, or starts again where there is none. The
    file of the run is written before each yield, and the weights before the file says `complete`. A paused run resumes as
    if it had not been stopped: on CPU with as many workers bit for bit.

    Errors become the status `failed` with a reason. Those that would come again are written to the file; after an
    unexpected error, `warm` is emptied. A full disk stops the run, and its earlier results are kept.

    Where the driver asks (`bft_ray.workers.asking`), or nodes leave or come (`bft_ray.study.execute.moving`), the run is saved
    after its present step and ends; one that has not begun does not begin.

    Closing the generator stops the run and frees what it holds.
    """
    key = segment.study if ranks.is_first() else ""
    with asked(key) as is_asked, moving(segment.tree.get("cluster", {})) as is_moving:
        yield from _run(segment, warm, lambda: is_asked() or is_moving())


def _run(segment: Segment, warm: Warm, is_asked: Callable[[], bool]) -> Generator[Run, None, None]:
    before, run, state, is_ending = ranks.agree(lambda: (*_resumed(segment), is_asked()))
    if before is None and is_ending:
        before = Run(segment.key, "saved", "it had not begun", run.num_steps)
    if before is not None:
        yield before
        return
    reason, is_lasting, is_broken, full = "", False, False, None
    try:
        run.cards = sorted({*run.cards, *cards_of_ranks(warm.device)})
        steps = trial(
            # Validated again, in some 0.03 ms: a segment is plain data, so that a node with another version of bft-ray names the
            # field that it does not know, and the trial fails with this reason.
            make_config(segment.tree),
            segment.rungs,
            warm,
            run,
            start=state,
            until=segment.until,
            pause=segment.files.state,
            keep=segment.files.weights if segment.keep else None,
            at_rungs=segment.at_rungs,
            asked=is_asked,
        )
        with closing(steps):
            for _ in steps:
                if ranks.is_first():
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
        yield Run(segment.key, "stopped", f"{on_this_node()}{full}", run.num_steps)
    elif reason:
        run.status, run.reason, run.is_lasting = "failed", reason, is_lasting
        if is_lasting and ranks.is_first():
            with suppress(OSError):  # no room for it: the driver gets the report in any case
                run.write(segment.files)
        yield run.report


def _resumed(segment: Segment) -> tuple[Run | None, Run, str | None]:
    """What `_earlier` finds; what it warns of goes to the driver with the run, since few read a worker's log."""
    with heard() as warnings:
        before, run, state = _earlier(segment)
    for each in (before, run):
        if each is not None:
            each.warnings = [*each.warnings, *warnings]
    return before, run, state


def _earlier(segment: Segment) -> tuple[Run | None, Run, str | None]:
    """The report where nothing is left to do; else None, the run to resume, and the place of its state (None: from step 0)."""
    run = Run.read(segment.files, segment.key)
    if run is not None and (before := _reported_before(run, segment)):
        return before, run, None
    found = paused.latest(segment.files.state, segment.key)
    if found is None:
        storage.remove_folder(segment.files.state)
        return None, Run(segment.key), None
    state, run = found
    if before := _reported_before(run, segment):  # the worker was killed between the two writes
        run.write(segment.files)
        return before, run, None
    run.status = "running"
    return None, run, state


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
