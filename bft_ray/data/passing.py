"""Tokens that do not outlast their command (`data.keep_tokens: false`): where nothing of the rows may stay in a cache.

They lie in a `scratch` folder of the driver, which the processes of its machine share, and go with the command. A process
of another machine, where there is no such folder, makes one of its own.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Iterator
from pathlib import Path

from bft_ray.places.scratch import is_scratch, scratch

_KIND = "tokens"
_made: dict[Path | None, Path] = {}  # where -> the folder of this process
_held = contextlib.ExitStack()
_depth = 0


@contextlib.contextmanager
def tokens_pass() -> Iterator[None]:
    """What the block tokenised under `data.keep_tokens: false` is gone at its end, or at that of the outermost one."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            _drop()


def passing_folder(cache_dir: str | None) -> Path:
    """The folder of tokens that are not kept: `cache_dir` where it is such a folder, or one in it that this process makes.

    Args:
        cache_dir: of the config; None: in the folder for temporary files.

    Raises:
        OSError: it cannot be made there.
    """
    given = Path(cache_dir).expanduser() if cache_dir else None
    if given is not None and is_scratch(given, _KIND):
        if given.is_dir():
            return given
        given = None  # of the driver, on another machine; or its command has ended
    if given not in _made:
        if given is not None:
            given.mkdir(parents=True, exist_ok=True)
        _made[given] = _held.enter_context(scratch(_KIND, given))
    return _made[given]


@atexit.register
def _drop() -> None:
    _made.clear()
    _held.close()
