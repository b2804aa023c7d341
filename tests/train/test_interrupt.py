"""Ctrl-C while Ray Train's call waits in its thread: the call ends before this process takes leave of Ray, which it may crash otherwise."""

from __future__ import annotations

import _thread
import asyncio
import logging
import signal
import threading

import pytest

from bft_ray.train import workers
from bft_ray.workers.ray_private import end_train_controllers


class TrainController:
    """As Ray Train's: an actor that waits, whose handle only its call has."""

    async def run(self) -> None:
        await asyncio.sleep(60)


class Other(TrainController):
    """One that is not to be ended."""


@pytest.fixture(scope="module")
def ray_of_one_cpu():
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()


@pytest.fixture(autouse=True)
def own_handler():
    """Python's own: a test before may have had Ray Train in the main thread, which leaves its own there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_the_call_ends_with_its_controller(ray_of_one_cpu):
    ray, ends, waits = ray_of_one_cpu, [], threading.Event()
    other = ray.remote(num_cpus=0)(Other).remote()

    def fit() -> None:
        controller = ray.remote(num_cpus=0)(TrainController).remote()
        threading.Timer(1.0, _thread.interrupt_main).start()
        waits.set()
        try:
            ray.get(controller.run.remote())
        except ray.exceptions.RayActorError as error:
            ends.append(error)
            raise

    with pytest.raises(KeyboardInterrupt):
        workers._interruptibly(fit, lambda: None)
    assert waits.is_set() and len(ends) == 1
    for thread in threading.enumerate():
        if thread.name == "bft-ray-fit":
            thread.join(10)
            assert not thread.is_alive()
    with pytest.raises(ray.exceptions.GetTimeoutError):  # it still waits
        ray.get(other.run.remote(), timeout=1.0)
    ray.kill(other)


def test_a_call_that_does_not_end_is_not_waited_for(monkeypatch):
    """As where the head of the cluster is away; and where nothing of Ray is there, the reason of the end is what is told."""
    monkeypatch.setattr(workers, "_END_S", 1.0)
    never = threading.Event()
    threading.Timer(0.5, _thread.interrupt_main).start()
    with pytest.raises(KeyboardInterrupt):
        workers._interruptibly(lambda: never.wait(60), lambda: None)
    never.set()
    end_train_controllers()
