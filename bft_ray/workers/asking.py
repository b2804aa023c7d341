"""The driver asks its workers to save and end: by an actor whose name a thread of each worker looks for, once a second."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from bft_ray.workers.watching import watching

_LOOK_S = 1.0  # between two looks of a worker


class _Request:
    """The actor. That it exists is all that it says."""


@contextlib.contextmanager
def asking(key: str) -> Iterator[Callable[[], None]]:
    """A function for the driver: the workers of `key` are asked from its call to the end of the context.

    Args:
        key: of the run or study; workers are those of the same Ray job.
    """
    import ray

    request: list[Any] = []

    def ask() -> None:
        if not request:
            request.append(ray.remote(num_cpus=0)(_Request).options(name=_name(key)).remote())

    try:
        yield ask
    finally:
        for actor in request:
            with contextlib.suppress(Exception):  # Ray is gone, and the actor with it
                ray.kill(actor)


@contextlib.contextmanager
def asked(key: str) -> Iterator[Callable[[], bool]]:
    """A function for a worker: whether the driver has asked the workers of `key`. It only reads what a thread has seen, at most
    a second ago. Without Ray nobody asks.
    """
    import ray

    def look() -> bool:  # without such an actor an error: nobody asks; without Ray this worker ends anyhow
        ray.get_actor(_name(key))
        return True

    if not key or not ray.is_initialized():
        yield lambda: False
        return
    with watching(look, _LOOK_S, "bft-ray-asked") as is_asked:
        yield is_asked


def _name(key: str) -> str:
    return f"bft_ray_save/{key}"
