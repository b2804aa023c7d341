"""A folder of an object store as a folder of this machine: fetched once, and shared by its processes.

A copy is known by its URI and by names, sizes and times of the files there: where these change, another one is made. So
every node that is handed a URI finds the same content, whichever node wrote it. Checksums beside a copy are compared once a
process: a flipped bit in a model would load without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bft_ray.places.cache import cache_folder, sha256_of
from bft_ray.places.modes import settle
from bft_ray.places.scratch import scratch
from bft_ray.waits import waiting

log = logging.getLogger(__name__)

_whole: dict[Path, str] = {}  # copy -> its checksums, sizes and times when this process read it and found it whole
_KEPT = 4  # copies that stay, those used last: a base model, and what is measured on it
_IN_USE_S = 3600.0  # one that was asked for so lately stays too: a process may be about to read it


def is_remote(path: str) -> bool:
    """Whether the path is a URI of an object store rather than a folder."""
    return "://" in path and not path.startswith("file://")


def filesystem_at(path: str) -> tuple[Any, str]:
    """pyarrow's file system, and the path on it."""
    import pyarrow.fs

    if is_remote(path):
        return pyarrow.fs.FileSystem.from_uri(path)
    return pyarrow.fs.LocalFileSystem(), path


@waiting("fetching from the object store")
def local_copy(uri: str, cache: Path | None = None) -> Path:
    """A folder of this machine with the present contents of a URI: the files of a folder, or the one file.

    Args:
        cache: folder of the copies; None: ~/.cache/bft_ray/fetched. The oldest ones are deleted when a new one is made.

    Raises:
        FileNotFoundError: the store holds nothing there.
        OSError, ValueError: it does not answer, refuses, or the copy cannot be written.
    """
    filesystem, place = filesystem_at(uri)
    cache = cache or cache_folder("fetched")
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / _key(uri, filesystem, place)
    for _ in range(3):
        with locked(cache):  # the others on this machine wait for the one that fetches
            if not (copy.is_dir() and _sums_of(copy).is_file()):
                _forget_old(cache)
                _fetch(filesystem, place, copy)
            os.utime(copy)
        if _is_whole(copy):  # without the lock: all processes look at once
            return copy
        with locked(cache):
            if not _is_whole(copy):  # nobody has fetched it again meanwhile
                log.warning("%s, the copy of %s, is damaged: fetching it again", copy, uri)
                shutil.rmtree(copy, ignore_errors=True)
    raise OSError(f"{cache} does not return what was written to it")


def _fetch(filesystem: Any, place: str, copy: Path) -> None:
    import pyarrow.fs

    shutil.rmtree(copy, ignore_errors=True)  # of an earlier version, without checksums
    with scratch("fetching", copy.parent) as temporary:
        is_file = filesystem.get_file_info(place).is_file
        target = temporary / place.rsplit("/", 1)[-1] if is_file else temporary
        pyarrow.fs.copy_files(place, str(target), source_filesystem=filesystem)
        settle(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        sums = {str(path.relative_to(temporary)): sha256_of(path) for path in files}
        _sums_of(copy).write_text(json.dumps(sums))
        with contextlib.suppress(OSError):  # where nothing can be locked, another process was quicker
            os.rename(temporary, copy)


def _sums_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.sha256.json")


def _is_whole(copy: Path) -> bool:
    """Its files are read once a process, and again where one of them was touched: a model is asked for many times."""
    try:
        sums = json.loads(_sums_of(copy).read_text())
        files = [(name, (copy / name).stat()) for name in sums]
        touched = json.dumps([sums, [(name, state.st_size, state.st_mtime_ns) for name, state in files]])
        if _whole.get(copy) != touched and all(sha256_of(copy / name) == wanted for name, wanted in sums.items()):
            _whole[copy] = touched
        return copy.is_dir() and _whole.get(copy) == touched
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _key(uri: str, filesystem: Any, place: str) -> str:
    """Of the URI and the file there, or all files below it."""
    import pyarrow.fs

    found = [filesystem.get_file_info(place)]
    if not found[0].is_file:
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(place, allow_not_found=True, recursive=True))
    files = sorted((info.path, info.size, str(info.mtime)) for info in found if info.is_file)
    if not files:
        raise FileNotFoundError(f"there are no files at {uri}")
    return hashlib.sha256(json.dumps([uri, files]).encode()).hexdigest()[:32]


def _forget_old(cache: Path) -> None:
    """Also what a process that was killed has left half fetched."""
    copies = [(path.stat().st_mtime, path) for path in cache.iterdir() if path.is_dir()]
    for used, path in sorted(copies, reverse=True)[_KEPT:]:
        if time.time() - used > _IN_USE_S:
            shutil.rmtree(path, ignore_errors=True)
            _sums_of(path).unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder of this machine: other processes that ask for it wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks on folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
