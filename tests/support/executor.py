"""A study whose segments are carried out in this process, in any order, with a truth that is known."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bft_ray.config import ClusterConfig, Config, make_config
from bft_ray.space.definition import SearchSpace
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.definition import Study
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Run, Segment
from bft_ray.study.records.store import SEARCH, Store

METRIC = "choices/probability"
STEPS = 24


def make_study(folder: Path, base: dict[str, Any] | None = None, **more: Any) -> Study:
    tree = {
        "name": "small",
        "parameters": {
            "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
            "loss.window": {"kind": "categorical", "values": [16, 64, 256, 512, 1024]},
            "loss.epsilon": {"kind": "categorical", "values": [0.05, 0.1], "when": {"loss.method": ["bft_inverse"]}},
            "optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 1e-3]},
        },
        "objective": {"metric": METRIC},
        "budget": {"trials": 20, "steps": STEPS},
        "sampler": {"kind": "tpe", "startup_trials": 6},
        "scheduler": {"kind": "asha", "grace_steps": 4, "reduction": 3},
        "confirmation": {"top_k": 2, "overrides": {"evaluation.tasks.0.path": "other.jsonl"}},
    }
    config = {
        "domain": "test",
        "data": {"train": [{"path": "rows.jsonl"}]},
        "checkpoint": {"export": "last", "keep": 2},
        "evaluation": {"tasks": [{"kind": "choice", "path": "choices.jsonl"}]},
        "cluster": {"storage_path": str(folder)},
    }
    space = SearchSpace.model_validate(tree | more)
    return Study("an-id", space, make_config(config | (base or {})), 400, (160,), str(folder / "study"))


def quality(tree: dict[str, Any], step: int) -> float:
    """What a setting is worth after so many steps: 64 is the best window, the inverse form a little better."""
    loss = tree["loss"]
    worth = 0.5 - 0.02 * abs(math.log2(loss["window"] / 64)) + 0.05 * (loss["method"] == "bft_inverse")
    worth += 0.04 * (tree["optimizer"]["learning_rate"] == 1e-3) - 0.2 * (loss["method"] == "dft")
    return worth * (1 - math.exp(-step / 10))


def noise(*what: Any) -> float:
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:8], "big") / 2**64 - 0.5


#: (segment, what a pretended worker does with it) -> the reports of this segment
Worker = Callable[[Segment, Callable[[Segment], Iterator[Run]]], Iterator[Run]]


class Executor:
    """Carries out segments, `slots` at a time, in an order that is drawn; every measurement is a turn of its own."""

    def __init__(
        self, study: Study, url: str, *, slots: int = 3, seed: int = 0, ahead: int = 0, worker: Worker | None = None
    ):
        self.study, self.url, self.slots, self.ahead = study, url, slots, ahead
        self.worker: Worker = worker or (lambda segment, plain: plain(segment))
        self.draw = random.Random(seed)
        self.trained: list[tuple[str, int, int, int]] = []  # (trial, seed, from, to)
        self.events: list[tuple[str, str]] = []
        self.broken: dict[str, int] = {}

    def run(self, turns: float = math.inf) -> bool:
        """Drive the study for so many turns, then be killed; whether it came to its end."""
        with Database(self.url) as database:
            store = Store.create(database, self.study.space, self.study.base, {"train": "f1"})
            self.controller = Controller(
                self.study,
                store,
                lambda: self.slots,
                lambda event, record: self.events.append((event, record.id)),
                ahead=self.ahead,
            )
            try:
                return self.drive(self.controller, turns)
            finally:
                store.lease.drop()  # as if the process were gone

    def drive(self, controller: Controller, turns: float = math.inf) -> bool:
        """Carry out what this controller gives out, for so many turns; whether the study came to its end."""
        self.controller = controller
        running: list[tuple[Segment, Iterator[Run]]] = []
        waited = 0
        while turns > 0:
            turns -= 1
            segment = self.controller.next()
            if segment == OVER:
                assert not running
                return True
            if segment is not None:
                waited = 0
                self.controller.begun(segment)
                running.append((segment, self.worker(segment, self.walk)))
            elif not running:
                waited += 1
                assert waited < 3, "nothing runs, and nothing comes"
            if running and (segment is None or self.draw.random() < 0.5):
                self._turn(running)
        return False

    def _turn(self, running: list[tuple[Segment, Iterator[Run]]]) -> None:
        place = self.draw.randrange(len(running))
        segment, reports = running[place]
        if self.broken.get(segment.trial, 0) > 0:
            self.broken[segment.trial] -= 1
            del running[place]
            return self.controller.broke(segment, "killed")
        reached = next(reports)
        if reached.status != "running" or not self.controller.is_promoted(segment, reached):
            del running[place]
            self.controller.ended(segment, reached)

    def walk(self, segment: Segment) -> Iterator[Run]:
        """In the place of a worker: what `bft_ray.study.execute.segments.run_segment` tells of a segment, without training."""
        run = Run.read(segment.files, segment.key)
        if run is None or run.status == "running":
            run = Run(segment.key)
        elif run.status == "complete":
            yield run.report  # an earlier driver was killed before it heard of it
            return
        elif segment.until is not None and segment.until in run.metrics:
            yield run.at(segment.until)
            return
        for step in [step for step in [*segment.rungs, STEPS] if step > run.num_steps]:
            self.trained.append((segment.trial, segment.seed, run.num_steps, step))
            run.num_steps = step
            run.status = "paused" if step == segment.until else "complete" if step == STEPS else "running"
            run.records = self._records(segment, step)
            value = sum(record["probability"] for record in run.records) / len(run.records)
            run.metrics[step] = {METRIC: value}
            run.write(segment.files)
            if segment.keep and step == STEPS:
                Path(segment.files.weights).mkdir(parents=True, exist_ok=True)
            yield run.report
            if run.status != "running":
                return

    def _records(self, segment: Segment, step: int) -> list[dict[str, Any]]:
        where = segment.tree["evaluation"]["tasks"][0]["path"]
        loss = segment.tree["loss"] | {"window": min(segment.tree["loss"]["window"], 400)}  # as on data of that length
        return [
            {
                "set": "choices",
                "id": str(item),
                "group": f"patient {item // 2}" if item < 10 else None,
                "probability": quality(segment.tree | {"loss": loss}, step)
                + 0.02 * noise(where, item)
                + 0.01 * noise(loss, segment.seed, where, item),
            }
            for item in range(30)
        ]

    def records(self, part: str) -> list[TrialRecord]:
        with Database(self.url) as database:
            store = Store.find(database, self.study.name)
            return (store if part == SEARCH else store.open_part(part)).records()


class InProcess:
    """A place without Ray: segments are carried out in this process, as `Executor` does."""

    def __init__(self, worker: Worker | None = None):
        self.worker = worker

    def connected(self, cluster: ClusterConfig) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def told(self, cluster: ClusterConfig, *, deterministic: bool) -> list[str]:
        return []

    def num_slots(self, cluster: ClusterConfig) -> Callable[[], int]:
        return lambda: 2

    def run(self, controller: Controller, first: Config, look: Callable[[], None]) -> None:
        look()
        Executor(controller.study, "", worker=self.worker).drive(controller)
