"""Calls to the tracking server that are made again: for how long, and what no repetition helps."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from bft_ray.tracking.server import SERVER
from bft_ray.waits import waiting

T = TypeVar("T")

LONGEST_PAUSE_S = 15.0  # between two tries while the server is away
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@waiting(SERVER)
def patiently(patience_s: float, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call, again and again for so long as the server is away; raises the last error."""
    deadline, pause = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if is_refusal(error) or is_forbidden(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_S)


def is_forbidden(error: BaseException) -> bool:
    """Whether a store of artifacts will never take what it did not take now: no right, no such bucket, no folder."""
    if getattr(error, "errno", None) in _FORBIDDEN:
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)  # of requests
    if status in (401, 403, 404, 405):
        return True
    return any(word in str(error) for word in ("AccessDenied", "NoSuchBucket", "InvalidAccessKeyId", "NoCredentials"))


def is_refusal(error: BaseException) -> bool:
    """Whether to try again is useless: the server understood, and said no."""
    return getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
