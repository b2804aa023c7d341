"""What of a folder goes to the cluster, and what stays here: Ray's own zip, made by its own rules."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.workers.ray_private import largest_upload_bytes, zip_folder

MIB = 1 << 20
LARGE_BYTES = 100 * MIB  # more is said before the upload starts
_SHOWN = 6  # of what is left out, the largest
_RULES = "Name what the job does not need in .rayignore (as in .gitignore), or give --working-dir a smaller folder."


@dataclass(frozen=True)
class Upload:
    """A zip of a folder.

    Args:
        names: its files, relative to the folder.
        left_out: (file, or folder of which nothing is in the zip; bytes), largest first.
    """

    folder: Path
    path: Path
    names: frozenset[str]
    left_out: tuple[tuple[str, int], ...]

    @property
    def size_bytes(self) -> int:
        """Of the packed file."""
        return self.path.stat().st_size

    def describe(self) -> str:
        """Lines on its size, and on what it leaves out."""
        lines = [f"upload  {size(self.size_bytes)}, {len(self.names):,} files of {self.folder}"]
        if self.left_out:
            shown = ", ".join(f"{name} ({size(count)})" for name, count in self.left_out[:_SHOWN])
            more = f" and {len(self.left_out) - _SHOWN} more" if len(self.left_out) > _SHOWN else ""
            lines.append(f"        left out by .gitignore, .rayignore and Ray: {shown}{more}")
        if self.size_bytes > LARGE_BYTES:
            lines.append(f"note: more than {size(LARGE_BYTES)}. {_RULES}")
        return "\n".join(lines)


def pack(folder: Path, target: Path) -> Upload:
    """Zip `folder` as Ray does: without what `.gitignore` and `.rayignore` name, and `.git`, `.venv`, `__pycache__`.

    Raises:
        BadInput: no folder, or more than a Ray cluster takes.
    """
    if not folder.is_dir():
        raise BadInput("--working-dir", str(folder), "a folder")
    folder = folder.resolve()
    quiet = logging.getLogger("bft_ray.quiet_ray")  # what it says is in `Upload.describe`
    quiet.setLevel(logging.ERROR)
    zip_folder(folder, target, _obeys_gitignore(), quiet)
    with zipfile.ZipFile(target) as packed:
        names = frozenset(name for name in packed.namelist() if not name.endswith("/"))
    left_out = tuple(sorted(_left_out(folder, names), key=lambda one: -one[1]))
    upload = Upload(folder, target, names, left_out)
    if upload.size_bytes >= largest_upload_bytes():
        largest = ", ".join(f"{name} ({size(count)})" for name, count in _largest(folder, names))
        rule = f"less than {size(largest_upload_bytes())} to upload, and is {size(upload.size_bytes)}; its largest: {largest}"
        raise BadInput("--working-dir", str(folder), rule, _RULES)
    return upload


def require_files(words: Sequence[str], upload: Upload) -> None:
    """Raise BadInput for a word of the command that names a file of this machine which is not uploaded.

    Absolute paths are not looked at: they may be on a storage that all machines share.
    """
    for word in words:
        if word.startswith(("-", "/")) or "=" in word or "://" in word:
            continue
        if os.path.normpath(word) in upload.names or not any(
            (at / word).is_file() for at in (upload.folder, Path.cwd())
        ):
            continue
        rule = f"a file of the upload, relative to {upload.folder}"
        raise BadInput("COMMAND", word, rule, "Is it named in .gitignore or .rayignore? Or give another --working-dir.")


def _obeys_gitignore() -> bool:
    return os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"


def _left_out(folder: Path, names: frozenset[str]) -> Iterator[tuple[str, int]]:
    kept = {str(parent) for name in names for parent in Path(name).parents}
    for at, folders, files in os.walk(folder):
        here = Path(at).relative_to(folder)
        for name in files:
            if str(here / name) not in names:
                yield str(here / name), _bytes(Path(at) / name)
        for name in list(folders):
            if str(here / name) not in kept:
                folders.remove(name)
                if count := sum(_bytes(Path(top) / one) for top, _, own in os.walk(Path(at) / name) for one in own):
                    yield f"{here / name}/", count


def _largest(folder: Path, names: frozenset[str]) -> list[tuple[str, int]]:
    return sorted(((name, _bytes(folder / name)) for name in names), key=lambda one: -one[1])[:3]


def _bytes(path: Path) -> int:
    return path.lstat().st_size


def size(count: float) -> str:
    """`12.3 MiB`, `210 kiB`."""
    for unit, word in ((1 << 30, "GiB"), (MIB, "MiB"), (1 << 10, "kiB")):
        if count >= unit:
            return f"{count / unit:.1f} {word}"
    return f"{count:.0f} bytes"
