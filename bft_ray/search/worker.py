"""A process of a cluster that runs one trial after the other, and the place where trials wait for their driver."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from bft_ray.config import ClusterConfig, make_config
from bft_ray.search.trial import Report, TrialResult, run_trial
from bft_ray.search.warm import Warm
from bft_ray.spread import worker_resources


class TrialWorker:
    """What stays loaded from trial to trial, in a process of its own; `hire` makes it a Ray actor."""

    def __init__(self) -> None:
        self._warm = Warm()

    def run(
        self,
        tree: dict[str, Any],
        rungs: Sequence[int],
        report: Report | None = None,
        keep: str | None = None,
        pause: str | None = None,
        at_rungs: Collection[str] | None = None,
    ) -> TrialResult:
        """Run the trial of a plain config tree; see `run_trial`.

        Args:
            report: such as `Ask`; None: the trial runs to its end.
        """
        kept, paused = (None if folder is None else Path(folder) for folder in (keep, pause))
        told = report or _goes_on
        return run_trial(make_config(tree), rungs, told, self._warm, keep=kept, pause=paused, at_rungs=at_rungs)


def hire(cluster: ClusterConfig) -> Any:
    """A `TrialWorker` on Ray with the CPUs, GPUs (or the part of one) and resources of `cluster`; kill it in the end."""
    need = worker_resources(cluster)
    more = {name: amount for name, amount in need.items() if name not in ("CPU", "GPU")}
    actor = ray.remote(TrialWorker)
    return actor.options(num_cpus=need.get("CPU", 0), num_gpus=need.get("GPU", 0), resources=more).remote()


def _goes_on(step: int, metrics: dict[str, float]) -> bool:
    return True


# --- at a rung --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A trial has measured this after so many steps; it waits to be told whether it goes on."""

    trial: str
    step: int
    metrics: dict[str, float]


class Rungs:
    """Where trials wait at a rung until the driver has answered. Make it with `open_rungs`."""

    def __init__(self) -> None:
        self._asked: list[Question] = []
        self._waiting: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._is_asked = asyncio.Event()

    async def ask(self, question: Question) -> bool:
        """For trials: the driver's answer, whenever it comes."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting[question.trial, question.step] = answer
        self._asked.append(question)
        self._is_asked.set()
        return await answer

    async def take(self) -> list[Question]:
        """For the driver: the questions asked since the last call; waits until there is one."""
        await self._is_asked.wait()
        self._is_asked.clear()
        taken, self._asked = self._asked, []
        return taken

    async def answer(self, question: Question, goes_on: bool) -> None:
        """For the driver: let a trial go on, or stop it. Also the last question of a trial wants an answer."""
        waiting = self._waiting.pop((question.trial, question.step))
        if not waiting.done():
            waiting.set_result(goes_on)


def open_rungs() -> Any:
    """The `Rungs` of a driver, as a Ray actor; it lives as long as the driver does."""
    return ray.remote(Rungs).options(num_cpus=0, max_concurrency=10_000).remote()


@dataclass(frozen=True)
class Ask:
    """The `report` of a trial on Ray: waits in `rungs` for the answer."""

    rungs: Any
    trial: str

    def __call__(self, step: int, metrics: dict[str, float]) -> bool:
        return bool(ray.get(self.rungs.ask.remote(Question(self.trial, step, metrics))))
