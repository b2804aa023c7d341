"""Who may read what is written: its user alone, or a group too (`cluster.file_mode`); whatever the umask of the shell.

The umask of the process does most of it. What it does not reach, such as files that a library makes for its user alone,
`settle` gives the same rights.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_MASKS = {"owner": 0o077, "group": 0o007}
_who = "owner"  # of this process, as the umask is


def keep_for(who: str) -> None:
    """From now on this process, and those that it starts, write for `owner` or for `group`."""
    global _who
    _who = who
    os.umask(_MASKS[who])


@contextlib.contextmanager
def kept_for(who: str) -> Iterator[None]:
    """The same for as long as the context lasts."""
    global _who
    before, umask = _who, os.umask(_MASKS[who])
    _who = who
    try:
        yield
    finally:
        _who = before
        os.umask(umask)


def settle(path: str | Path) -> None:
    """Give a file, or a folder and all that lies in it, the rights of `kept_for`; what is another user's stays as it is."""
    _give(Path(path))
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            _give(Path(folder, name))


def make_file(path: Path) -> None:
    """An empty file with these rights, where there is none: one that SQLite makes no group may write to."""
    with contextlib.suppress(OSError):  # it is there, or cannot be: who opens it will tell
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
        _give(path)


def _give(path: Path) -> None:
    with contextlib.suppress(OSError):  # gone meanwhile, or another's
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):  # the bit that hands a folder's group on stays
            path.chmod((0o777 & ~_MASKS[_who]) | (mode & stat.S_ISGID))
        elif stat.S_ISREG(mode):
            path.chmod(0o666 & ~_MASKS[_who])
