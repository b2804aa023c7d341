"""The state that a trial resumes from, in a folder or an object store, whatever the number of ranks.

FOLDER/step-00000004/engine/...       weights and optimizer (`bft_ray.train.state`)
                     run.json         the run so far (`Run`), so that it always fits the state
                     manifest-*.json  checksums, one a rank: a state without all of them is passed over
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.places import storage
from bft_ray.places.disk import full_disk
from bft_ray.places.kept import PART
from bft_ray.places.modes import settle
from bft_ray.places.scratch import scratch
from bft_ray.study.records.segment import Run
from bft_ray.train import ranks
from bft_ray.train.checkpoint import STEP, Flaw, flaw_of, passed_over, step_name, verify_manifest, write_manifest
from bft_ray.train.engine import Engine

log = logging.getLogger(__name__)

_RUN = "run.json"


def latest(folder: str, key: str) -> tuple[str, Run] | None:
    """The last whole state below `folder` and the run so far; None where there is none of the run with this key.

    A damaged one is passed over with a warning: the trial resumes from an earlier one, or starts again.
    """
    for name in sorted(storage.folders_in(folder, STEP), reverse=True):
        place = storage.join(folder, name)
        flaw = flaw_of(place)
        try:
            if flaw is None:
                with _local(place) as here:
                    verify_manifest(here, 0, 1)
        except (BadInput, OSError) as error:
            flaw = Flaw(str(error), is_damage=True)
        if flaw is not None:
            log.warning("%s", passed_over(place, flaw))
            continue
        run = Run.load(storage.join(place, _RUN))
        if run is not None and run.key == key:
            return place, run
    return None


def save(engine: Engine, run: Run, folder: str) -> None:
    """Save the state of the run below `folder`, then remove earlier ones; every rank calls it.

    Raises:
        DiskFull: there is no room; what was written of it is removed.
    """
    place = storage.join(folder, step_name(run.num_steps))
    if ranks.is_first():
        storage.remove_folder(place)
    ranks.barrier()
    try:
        with _own_part(place, engine.rank) as part:
            engine.save(part, {})
            if engine.rank == 0:
                run.save(str(part / _RUN))
            write_manifest(part, engine.rank, engine.world_size)
    except Exception as error:
        storage.remove_folder(place)
        if full := full_disk(error, storage.places(folder, None)):
            raise full from error
        raise
    ranks.barrier()
    if ranks.is_first():
        if not storage.is_remote(place):
            settle(place)
        for name in storage.folders_in(folder, STEP):
            if name != step_name(run.num_steps):
                storage.remove_folder(storage.join(folder, name))


def load(engine: Engine, place: str) -> None:
    """Restore weights and optimizer from a state that `latest` found; every rank calls it."""
    with _local(place) as here:
        engine.load(here)


@contextmanager
def _local(place: str) -> Iterator[Path]:
    """The folder itself, or for an object store a copy while the context lasts."""
    if not storage.is_remote(place):
        yield Path(place)
        return
    with scratch("state") as folder:
        yield storage.fetch_folder(place, folder / "state")


@contextmanager
def _own_part(place: str, rank: int) -> Iterator[Path]:
    """A folder for the files of this rank, which are moved to `place` at the end, the manifest last."""
    if storage.is_remote(place):
        with scratch("state") as folder:
            yield folder
            storage.add_files(folder, place)
        return
    beside = Path(place).with_name(f"rank-{rank:05d}{PART}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        files = [path for path in beside.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: path.name.startswith("manifest-")):
            target = Path(place) / file.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
