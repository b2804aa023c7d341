"""Who may read what is written: only its user, or a group too (`cluster.file_mode`), with any umask of the shell.

The umask of the process does most of it. What it does not reach, such as files that a library makes for its user alone,
`settle` gives the same rights.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_MASKS = {"owner": 0o077, "group": 0o007}
_who = "owner"  # of this process, as the umask is


def keep_for(who: str) -> None:
    """From now on this process, and those that it starts, write for `owner` or for `group`."""
    global _who
    _who = who
    os.umask(_MASKS[who])


@contextlib.contextmanager
def kept_for(who: str) -> Iterator[None]:
    """Write for `owner` or for `group` while the context lasts."""
    global _who
    before, umask = _who, os.umask(_MASKS[who])
    _who = who
    try:
        yield
    finally:
        _who = before
        os.umask(umask)


def settle(path: str | Path) -> None:
    """Give a file, or a folder with its contents, the rights of `kept_for`; files of other users stay unchanged."""
    _give(Path(path))
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            _give(Path(folder, name))


def own_file(path: Path) -> None:
    """A database of SQLite with these rights: an empty file where there is none, for one that SQLite makes no group may
    write to. One that every user of the machine may read, as an earlier version left it, gets them too, and is named.
    """
    with contextlib.suppress(OSError):  # it exists, or cannot be made: whoever opens it gets the error
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        _give(path)
    with contextlib.suppress(OSError):
        state = path.stat()
        if not state.st_mode & stat.S_IRWXO:
            return
        if state.st_uid != os.getuid():
            _tell_of_another_s(path, state.st_uid)
            return
        for own in (path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))):
            _give(own)
        log.warning(
            "%s could be read by every user of this machine. From now on it can by its %s (cluster.file_mode)",
            path,
            {"owner": "owner alone", "group": "owner and group"}[_who],
        )


@functools.lru_cache(maxsize=64)
def _tell_of_another_s(path: Path, uid: int) -> None:
    """Once a process: databases are opened many times."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"the user {uid}"
    log.warning("%s can be read by every user of this machine. It belongs to %s, who can chmod o= it", path, name)


def _give(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile, or another's
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):  # the bit that passes on a folder's group stays
            path.chmod((0o777 & ~_MASKS[_who]) | (mode & stat.S_ISGID))
        elif stat.S_ISREG(mode):
            path.chmod(0o666 & ~_MASKS[_who])
