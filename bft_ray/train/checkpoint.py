"""What makes a checkpoint whole: a manifest with checksums from every rank, and the state of the loop."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, BftError
from bft_ray.places import storage
from bft_ray.places.kept import read_kept, write_kept
from bft_ray.places.scratch import scratch

log = logging.getLogger(__name__)

STEP = "step-"  # how the name of a checkpoint begins
_MANIFEST = "manifest-{:05d}.json"  # of a rank
_NEEDS = ("world_size", "files", "num_bytes")  # of a manifest
_DAMAGED = "damaged"  # why the checkpoint is set aside


@dataclass(frozen=True)
class LoopState:
    """The progress of a run: steps done, and the best value of the checkpoint metric so far (None: not measured)."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Flaw:
    """Why a checkpoint is not whole.

    Args:
        why: as a clause.
        is_damage: it was changed since it was written; else it was cut off by the end of its writer.
    """

    why: str
    is_damage: bool = False


class Damaged(BadInput):
    """A file of the checkpoint that a run was to resume from is not as it was written.

    Args:
        place: of the checkpoint: a folder or URI.
        file, rule: the file at fault, and what it must be.
    """

    def __init__(self, place: str, file: Any, rule: str):
        self.place = place
        super().__init__(
            "checkpoint", file, rule, f"There is no earlier one. Delete {place}: the run then starts again."
        )

    def __reduce__(self):
        return type(self), (self.place, self.value, self.rule)


def write_manifest(folder: Path, rank: int, world_size: int) -> None:
    """`manifest-<rank>.json`: the SHA-256 of every file that this rank wrote below `folder`."""
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("manifest-")]
    files = {str(path.relative_to(folder)): checksum(path) for path in written}
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in written}
    manifest = {"world_size": world_size, "files": files, "num_bytes": sizes}
    write_kept(folder / _MANIFEST.format(rank), manifest, indent=1)


def verify_manifest(folder: Path, rank: int, world_size: int, remedy: str = "") -> None:
    """Check that a checkpoint is whole, whatever the number of ranks that wrote it: all manifests present, files unchanged.
    Rank 0 checks all files, the others deal them out.

    Args:
        rank, world_size: of the reader.
        remedy: what to do about a damaged one; "": delete it.

    Raises:
        BadInput: a missing shard, or a changed file.
    """
    manifests = {path.name: read_kept(path, _NEEDS) for path in sorted(folder.glob("manifest-*.json"))}
    remedy = remedy or f"Delete {folder}: the run then resumes from an earlier checkpoint, or from its start."
    if damaged := [name for name, manifest in manifests.items() if manifest is None]:
        raise BadInput("checkpoint", folder / damaged[0], "unchanged since it was written", remedy)
    whole = [manifest for manifest in manifests.values() if manifest]
    if not whole:
        raise BadInput("checkpoint", folder, "a folder with a manifest of every rank", remedy)
    if len(whole) != whole[0]["world_size"]:
        rule = f"whole, but has shards of {len(whole)} of {whole[0]['world_size']} ranks"
        raise BadInput("checkpoint", folder, rule, remedy)
    for manifest in whole if rank == 0 else whole[rank::world_size]:
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file() or checksum(path) != expected:
                raise BadInput("checkpoint", path, "unchanged since it was written (its checksum differs)", remedy)


def step_name(step: int) -> str:
    """Name of a checkpoint's folder; names sort as the steps do."""
    return f"{STEP}{step:08d}"


def last_complete(folder: str, line: Callable[[str], None] = log.warning) -> str | None:
    """The latest checkpoint below a folder or URI that was written to its end: all manifests, every file in full length.

    One that was cut off by the end of its writer, or damaged since, is passed over. `verify_manifest` checks whether the
    content is unchanged.

    Args:
        line: called with a line on each checkpoint that is passed over.
    """
    for name in sorted(storage.folders_in(folder, STEP), reverse=True):
        place = storage.join(folder, name)
        if (flaw := flaw_of(place)) is None:
            return place
        line(passed_over(place, flaw))
    return None


def passed_over(place: str | Path, flaw: Flaw) -> str:
    """The line on a checkpoint that is passed over."""
    return f"the checkpoint {place} is passed over: {flaw.why}"


def set_aside(damaged: Damaged) -> bool:
    """Mark a damaged checkpoint in its manifest, so that a run resumes from the one before it; False, and nothing is done,
    where none before it is whole. It stays, to be examined, until the run saves the same step again.

    Raises:
        BftError: it is whole as this process reads it: the fault is in the worker's node.
    """
    folder, _, own = damaged.place.rstrip("/").rpartition("/")
    earlier = [name for name in storage.folders_in(folder, STEP) if name < own]
    if all(flaw_of(storage.join(folder, name)) for name in earlier):
        return False
    if _is_whole(damaged.place):
        what = f"a worker reads {Path(str(damaged.value)).name} of {damaged.place} as damaged, and here it is as it was written"
        raise BftError(f"{what}: check disk and memory of the workers' nodes")
    path = storage.join(damaged.place, _MANIFEST.format(0))
    manifest = read_kept(path, _NEEDS) or dict.fromkeys(_NEEDS)
    write_kept(path, manifest | {_DAMAGED: f"{Path(str(damaged.value)).name} must be {damaged.rule}"}, indent=1)
    return True


def _is_whole(place: str) -> bool:
    """Whether every file is as it was written, as this process reads them."""
    with scratch("checkpoint") as copy:
        here = storage.fetch_folder(place, copy / "copy" if storage.is_remote(place) else None)
        try:
            verify_manifest(here, 0, 1)
        except BadInput:
            return False
    return True


def remove_cut_off(folder: str) -> None:
    """Delete the checkpoints below a folder or URI that were cut off by the end of their writer; no process may write there.
    Damaged ones stay, to be examined.
    """
    for name in storage.folders_in(folder, STEP):
        place = storage.join(folder, name)
        if (flaw := flaw_of(place)) and not flaw.is_damage:
            log.warning("the checkpoint %s is removed: %s", place, flaw.why)
            storage.remove_folder(place)


def flaw_of(place: str) -> Flaw | None:
    """Why the checkpoint at a folder or URI is not whole; None where it is. Of its files, only manifests are read."""
    sizes = storage.sizes_in(place)
    manifests: list[dict[str, Any]] = []
    for name in sorted(name for name in sizes if fnmatch(name, "manifest-*.json")):
        if (manifest := read_kept(storage.join(place, name), _NEEDS)) is None:
            return Flaw(f"{name} is damaged", is_damage=True)
        if why := manifest.get(_DAMAGED):
            return Flaw(why, is_damage=True)
        manifests.append(manifest)
    if not manifests:
        return Flaw("it has no manifest")
    if len(manifests) != manifests[0]["world_size"]:
        return Flaw(f"it has shards of {len(manifests)} of {manifests[0]['world_size']} workers")
    for name, size in ((name, size) for manifest in manifests for name, size in manifest["num_bytes"].items()):
        if name not in sizes:
            return Flaw(f"{name} is missing")
        if sizes[name] != size:
            return Flaw(f"{name} has {sizes[name]} of {size} bytes")
    return None


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def improves(value: float | None, best: float | None, higher: bool) -> bool:
    """Whether `value` is measured and better than `best`."""
    if value is None or value != value:
        return False
    return best is None or (value > best if higher else value < best)


def to_delete(scores: list[float | None], keep: int, higher: bool) -> list[int]:
    """Indices of the checkpoints, oldest first, that are neither the last nor among the `keep` best. Pure."""
    measured = [index for index, score in enumerate(scores) if score is not None]
    measured.sort(key=lambda index: float(scores[index] or 0.0), reverse=higher)
    kept = {*measured[:keep], len(scores) - 1}
    return [index for index in range(len(scores)) if index not in kept]
