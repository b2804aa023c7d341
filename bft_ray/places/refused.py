"""A path that the system refuses, whatever stands there: too long a name, a circle of links, no rights."""

from __future__ import annotations

import errno

from bft_ray.errors import BadInput

_RULES = {
    errno.ENAMETOOLONG: ("a path whose names have at most 255 bytes each", "Shorten it."),
    errno.ELOOP: ("a path without a circle of links", "Name the file itself."),
    errno.EACCES: ("a path that this user may use", "Change its rights or its owner, or name another one."),
    errno.EPERM: ("a path that this user may use", "Change its rights or its owner, or name another one."),
}


def refused_path(error: BaseException) -> BadInput | None:
    """What to tell of such an error; None for any other one, and for one that names no path."""
    if not isinstance(error, OSError) or error.errno not in _RULES or not isinstance(error.filename, str | bytes):
        return None
    path = error.filename if isinstance(error.filename, str) else error.filename.decode(errors="replace")
    return BadInput("path", path, *_RULES[error.errno])
