"""What makes a checkpoint whole: a manifest with checksums from every rank, and the state of the loop."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from bft_ray.errors import BadInput


@dataclass(frozen=True)
class LoopState:
    """Where a run stands: steps done, and the best value of the checkpoint metric so far (None: not measured)."""

    step: int = 0
    best_value: float | None = None
    best_step: int | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def write_manifest(folder: Path, rank: int, world_size: int) -> None:
    """`manifest-<rank>.json`: the SHA-256 of every file that this rank wrote below `folder`."""
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("manifest-")]
    files = {str(path.relative_to(folder)): checksum(path) for path in written}
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in written}
    text = json.dumps({"world_size": world_size, "files": files, "num_bytes": sizes}, indent=1)
    (folder / f"manifest-{rank:05d}.json").write_text(text)


def verify_manifest(folder: Path, rank: int, world_size: int) -> None:
    """Check what `rank` needs: all manifests present, the same number of ranks, its files unchanged.

    Raises:
        BadInput: a missing shard, a changed file, or a checkpoint of another number of workers.
    """
    manifests = sorted(folder.glob("manifest-*.json"))
    remedy = f"Delete {folder}: the run then goes on from an earlier checkpoint, or from its start."
    if not manifests:
        raise BadInput("checkpoint", str(folder), "a folder with a manifest of every rank", remedy)
    check_num_workers(folder, world_size)
    if len(manifests) != world_size:
        rule = f"whole, but has shards of {len(manifests)} of {world_size} ranks"
        raise BadInput("checkpoint", str(folder), rule, remedy)
    for manifest in manifests if rank == 0 else [folder / f"manifest-{rank:05d}.json"]:
        for name, expected in json.loads(manifest.read_text())["files"].items():
            path = folder / name
            if not path.is_file() or checksum(path) != expected:
                raise BadInput("checkpoint", str(path), "unchanged since it was written (its checksum differs)", remedy)


def check_num_workers(folder: Path, num_workers: int) -> None:
    """BadInput for a checkpoint of another number of workers; needs one manifest."""
    saved = json.loads(min(folder.glob("manifest-*.json")).read_text())["world_size"]
    if saved != num_workers:
        raise BadInput(
            "cluster.num_workers",
            num_workers,
            f"{saved}, the number of workers that wrote the checkpoint {folder.name}",
            f"Resume with cluster.num_workers={saved}, or start a run with another name.",
        )


def step_name(step: int) -> str:
    """Name of a checkpoint's folder; sorts as the steps do."""
    return f"step-{step:08d}"


def last_complete(folder: Path) -> Path | None:
    """The latest checkpoint below `folder` that was written to its end: all manifests, and every file in full length.

    One that was cut off by the end of its writer is passed over. Whether its content is unchanged, `verify_manifest`
    tells.
    """
    return next((path for path in sorted(folder.glob("step-*"), reverse=True) if _is_complete(path)), None)


def remove_cut_off(folder: Path) -> None:
    """Delete the checkpoints below `folder` that were cut off by the end of their writer; none may write there."""
    for path in folder.glob("step-*"):
        if not _is_complete(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_complete(folder: Path) -> bool:
    try:
        manifests = [json.loads(path.read_text()) for path in folder.glob("manifest-*.json")]
    except ValueError:
        return False
    sizes = {name: size for manifest in manifests for name, size in manifest["num_bytes"].items()}
    whole = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
    return bool(manifests) and len(manifests) == manifests[0]["world_size"] and whole


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
