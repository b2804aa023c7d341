"""The clock of a driver. It measures how long trials ran; a change of the system clock does not change that."""

from __future__ import annotations

import time

_offset = time.time() - time.monotonic()


def now() -> float:
    """Seconds since 1970 as the system had them when this process began; from then on they advance with the monotonic clock."""
    return _offset + time.monotonic()


def start_after(moment: float) -> None:
    """Set the clock forward to `moment` where that lies ahead: to the last time that earlier drivers of a study recorded, so
    that the time of one driver is not taken for that of another where the system clock was set back between them.
    """
    global _offset
    _offset = max(_offset, moment - time.monotonic())
