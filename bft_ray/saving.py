"""USR1, which a batch system sends before its time limit: save a checkpoint at the present step, and end.

Code whose workers can save runs within `listening`, and asks `asked` now and then. Elsewhere USR1 ends the command as SIGTERM does:
there is nothing to save.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from bft_ray.errors import BftError

#: exit status of a command that has saved and ended (EX_TEMPFAIL of sysexits.h): the same command goes on
STATUS = 75
#: longest time from USR1 until all is saved; less than the five minutes before the time limit of cluster/slurm/bft_ray.sbatch
PATIENCE_S = 200.0

_listeners = 0
_asked_at: float | None = None


class Saved(BftError):
    """A command was asked to save and end, and has done so."""


def on_signal(*_: Any) -> None:
    """The handler of USR1; call it in the main thread.

    Raises:
        KeyboardInterrupt: nothing listens, so there is nothing to save.
    """
    global _asked_at
    if not _listeners:
        raise KeyboardInterrupt
    _asked_at = _asked_at or time.monotonic()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While the context lasts, USR1 is kept for `asked`."""
    global _listeners, _asked_at
    _listeners += 1
    try:
        yield
    finally:
        _listeners -= 1
        if not _listeners:
            _asked_at = None


def asked() -> bool:
    """Whether USR1 has come within `listening`."""
    return _asked_at is not None


def is_overdue() -> bool:
    """Whether `PATIENCE_S` have passed since USR1."""
    return _asked_at is not None and time.monotonic() - _asked_at > PATIENCE_S
