"""Whether a disk is full: from the error of a write, and, where that does not show it, by a write to the same place."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bft_ray.errors import DiskFull
from bft_ray.places.cache import try_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)
#: of writers that hand on the words of the system, and of databases
_SAYS_SO = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b|database or disk is full", re.IGNORECASE
)
#: of writers that only say that something could not be written: torch's, SQLite's, those of C libraries
_MAY_BE = re.compile(
    r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed|file write failed|disk I/O error|short write|"
    r"unable to open database file|Input/output error",
    re.IGNORECASE,
)


def full_disk(error: BaseException, places: Mapping[str, str | Path] | None = None) -> DiskFull | None:
    """DiskFull if a full disk, or a used-up quota, is the cause of an error; None for any other error.

    Call it before what was half written is removed: the room that this gives would hide why the write failed.

    Args:
        places: field of the config, or name in the environment -> folder or file, of where it may have been written.
    """
    if isinstance(error, DiskFull):
        return error
    chain = list(_chain(error))
    says_so = [one for one in chain if _is_certain(one)]
    telling = says_so or [one for one in chain if _MAY_BE.search(str(one))]
    if not telling:
        return None
    named = [one.filename for one in chain if isinstance(one, OSError) and isinstance(one.filename, str)]
    known = {"": named[0]} if named else {}
    asked = known | {name: str(place) for name, place in (places or {}).items() if "://" not in str(place)}
    full = next((name for name, place in asked.items() if is_full(place)), None)
    if full is None and not says_so:
        return None
    return DiskFull(_text(_line(telling[-1]), full, asked))  # the deepest: those above it may guess at the reason


def full_place(places: Mapping[str, str | Path]) -> DiskFull | None:
    """DiskFull if one of these disks is full, whatever has failed; None otherwise; see `full_disk`."""
    asked = {name: str(place) for name, place in places.items() if "://" not in str(place)}
    full = next((name for name, place in asked.items() if is_full(place)), None)
    return None if full is None else DiskFull(_text("", full, asked))


def is_full(place: str | Path) -> bool:
    """Whether the disk of a folder or file has no room for 1 MiB: by a write, because free space does not show a quota."""
    try:
        try_folder(_folder(place))
    except OSError as error:
        return error.errno in _FULL
    return False


def free_bytes(place: str | Path) -> int:
    """Free bytes on the disk of a folder or file, which need not exist yet."""
    return shutil.disk_usage(_folder(place)).free


def _folder(place: str | Path) -> Path:
    """The place, or what is to hold it: a folder that is there."""
    folder = Path(place).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and then those that led to it."""
    seen: set[int] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        one = ahead.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            ahead += [one.__context__, one.__cause__]


def _is_certain(error: BaseException) -> bool:
    number = getattr(error, "errno", None)
    return isinstance(error, DiskFull) or number in _FULL or _SAYS_SO.search(str(error)) is not None


def _text(what: str, full: str | None, asked: Mapping[str, str]) -> str:
    """The message: on the place that is full, or else that the system named, or else that has the least room."""
    name, is_sure = full, True
    if full is None and asked:
        name = "" if "" in asked else min(asked, key=lambda name: free_bytes(asked[name]))
        is_sure = name == "" or len(asked) == 1
    if name is None:
        where = "a disk"
    else:
        field = f" ({name})" if name else ""
        where = f"{'' if is_sure else 'a disk, probably '}the disk that holds {asked[name]}{field},"
        where += f" with {free_bytes(asked[name]) / 1e6:.1f} MB free,"
    why = f": {what}" if what else ""
    return f"{where} is full or its quota used up{why}. Make room there, and give the same command again."


def _line(error: BaseException) -> str:
    """Class and first line, which of these errors holds no more than a path."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
