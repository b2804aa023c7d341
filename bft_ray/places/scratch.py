"""Temporary folders that are removed with their process: those of a killed process are removed by the next one.

Each is locked for as long as its process lives: a lock ends with the process, whatever ends it. Its name says on which
start of which machine it was made, for on a folder that machines share a lock of one may not be seen by the others; the
system says whose it is. So nothing is removed that belongs to another user, machine or living process, in whatever
container that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

_NAME = "bft_ray_"


@contextlib.contextmanager
def scratch(kind: str, within: Path | None = None) -> Iterator[Path]:
    """A new folder `bft_ray_KIND...`, removed at the end of the context. It may be moved away before.

    What processes that are gone have left beside it is removed first.

    Args:
        kind: a word that says what it holds.
        within: where it is made; None: the folder for temporary files.

    Raises:
        OSError: it cannot be made there.
    """
    place = within or Path(tempfile.gettempdir())
    remove_dead(place)
    unlocked = Path(tempfile.mkdtemp(prefix=f".{_NAME}{kind}_", dir=place))  # no process searches for such a name
    folder, handle = unlocked, os.open(unlocked, os.O_RDONLY)
    try:
        if (mark := _mark()) and _lock(handle):
            folder = place / f"{_NAME}{kind}_{mark}_{uuid.uuid4().hex[:12]}"
            os.rename(unlocked, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def is_scratch(folder: Path, kind: str) -> bool:
    """Whether a path is that of such a folder, by its name alone."""
    return folder.name.lstrip(".").startswith(f"{_NAME}{kind}_")


def remove_dead(place: Path | None = None) -> int:
    """Remove the folders of `scratch` whose process is gone, as far as that can be known; returns their number.

    Args:
        place: where; None: the folder for temporary files.
    """
    mark, removed = _mark(), 0
    for folder in (place or Path(tempfile.gettempdir())).glob(f"{_NAME}*_{mark}_*") if mark else []:
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid() and _lock(handle):
                    shutil.rmtree(folder, ignore_errors=True)
                    removed += 1
            finally:
                os.close(handle)
    return removed


def _lock(handle: int) -> bool:
    """Whether the folder is locked by this process now; False where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _mark() -> str:
    """An id of this boot of the machine; "" where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "").strip()
    except OSError:
        return ""
