"""Calls to the tracking server that are made again: for how long, and what no repetition helps."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from bft_ray.tracking.server import SERVER
from bft_ray.waits import call_again, waiting

T = TypeVar("T")

LONGEST_PAUSE_S = 15.0  # between two tries while the server is away
_FIRST_PAUSE_S = 0.5
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@waiting(SERVER)
def patiently(patience_s: float, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call, again and again for so long as the server is away; raises the last error."""
    return call_again(
        partial(call, *args, **kwargs),
        patience_s,
        lambda error: not (is_refusal(error) or is_forbidden(error)),
        pauses_s=(_FIRST_PAUSE_S, LONGEST_PAUSE_S),
    )


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
