"""A thread that looks for something again and again while its process works."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def watching(look: Callable[[], bool], every_s: float, name: str) -> Iterator[Callable[[], bool]]:
    """A function that costs nothing: whether `look` has found what it looks for. The first look is before the context begins, the
    others are those of a thread, until one finds it or the context ends.

    Args:
        look: an error means that it has not found it.
        every_s: seconds between two looks.
        name: of the thread.
    """
    seen, ended = threading.Event(), threading.Event()

    def once() -> None:
        with contextlib.suppress(Exception):
            if look():
                seen.set()

    def work() -> None:
        while not seen.is_set() and not ended.wait(every_s):
            once()

    once()
    threading.Thread(target=work, name=name, daemon=True).start()
    try:
        yield seen.is_set
    finally:
        ended.set()
