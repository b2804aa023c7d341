"""The next batch in a thread: order, errors at their turn, and no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest

from bft_ray.data.prefetch import prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bft-ray-prefetch"]


def test_items_come_in_order_and_only_so_far_ahead():
    made = []

    def make(n: int) -> int:
        made.append(n)
        return n * n

    items = prefetch(make, range(3, 9), depth=2)
    assert next(items) == 9
    time.sleep(0.3)
    assert made == [3, 4, 5, 6]  # one taken, two ready, one in hand
    assert list(items) == [16, 25, 36, 49, 64]
    assert not threads()


def test_an_error_comes_at_its_turn():
    def make(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        return n

    items = prefetch(make, range(5))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(items)
    assert not threads()


def test_closing_ends_the_thread():
    items = prefetch(lambda n: n, range(1000))
    assert next(items) == 0
    items.close()
    assert not threads()
    assert list(prefetch(lambda n: n, range(0))) == []
