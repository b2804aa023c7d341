"""The next thing made while the present one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.1  # how often a producer that waits for room looks whether it is still wanted


def prefetch(make: Callable[[int], T], numbers: range, depth: int = 1) -> Generator[T, None, None]:
    """`make(n)` for each n, in order, made in a thread up to `depth` ahead of the caller.

    An exception of `make` comes out here, at its turn. Close the iterator (or let it end) to end the thread.
    """
    ready: queue.Queue[tuple[bool, T | BaseException]] = queue.Queue(maxsize=depth)
    closed = threading.Event()

    def put(item: tuple[bool, T | BaseException]) -> bool:
        while not closed.is_set():
            try:
                ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        for number in numbers:
            try:
                item: tuple[bool, T | BaseException] = (True, make(number))
            except BaseException as error:
                item = (False, error)
            if not put(item) or not item[0]:
                return

    thread = threading.Thread(target=produce, name="bft-ray-prefetch", daemon=True)
    thread.start()
    try:
        for _ in numbers:
            good, item = ready.get()
            if not good:
                raise item  # type: ignore[misc]
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        thread.join()
