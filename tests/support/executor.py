"""A study whose legs are carried out in this process, in any order, with a truth that is known."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from bft_ray.config import make_config
from bft_ray.space.definition import SearchSpace
from bft_ray.study.controller import OVER, Conductor
from bft_ray.study.definition import Study
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Leg, Reached, Run
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


class Executor:
    """Carries out legs, `slots` at a time, in an order that is drawn; every measurement is a turn of its own."""

    def __init__(self, study: Study, url: str, *, slots: int = 3, seed: int = 0, ahead: int = 0):
        self.study, self.url, self.slots, self.ahead = study, url, slots, ahead
        self.draw = random.Random(seed)
        self.trained: list[tuple[str, int, int, int]] = []  # (trial, seed, from, to)
        self.events: list[tuple[str, str]] = []
        self.broken: dict[str, int] = {}

    def run(self, turns: float = math.inf) -> bool:
        """Drive the study for so many turns, then be killed; whether it came to its end."""
        with Database(self.url) as database:
            store = Store.create(database, self.study.space, self.study.base, {"train": "f1"})
            self.conductor = Conductor(
                self.study,
                store,
                lambda: self.slots,
                lambda event, record: self.events.append((event, record.id)),
                ahead=self.ahead,
            )
            try:
                return self._drive(turns)
            finally:
                store.lease.drop()  # as if the process were gone

    def _drive(self, turns: float) -> bool:
        running: dict[Leg, Any] = {}
        waited = 0
        while turns > 0:
            turns -= 1
            leg = self.conductor.next()
            if leg == OVER:
                assert not running
                return True
            if leg is not None:
                waited = 0
                self.conductor.begun(leg)
                running[_Same(leg)] = self._walk(leg)
            elif not running:
                waited += 1
                assert waited < 3, "nothing runs, and nothing comes"
            if running and (leg is None or self.draw.random() < 0.5):
                self._turn(running)
        return False

    def _turn(self, running: dict) -> None:
        same = self.draw.choice(list(running))
        if self.broken.get(same.leg.trial, 0) > 0:
            self.broken[same.leg.trial] -= 1
            del running[same]
            return self.conductor.broke(same.leg, "killed")
        reached = next(running[same])
        if reached.status != "running" or not self.conductor.goes_on(same.leg, reached):
            del running[same]
            self.conductor.ended(same.leg, reached)

    def _walk(self, leg: Leg):
        """In the place of a worker: what `bft_ray.study.execute.work.walk` tells of a leg, without training."""
        run = Run.read(leg)
        if run is None or run.status == "running":
            run = Run(leg.key)
        elif run.status == "complete":
            yield run.reached  # an earlier driver was killed before it heard of it
            return
        elif leg.until is not None and leg.until in run.metrics:
            yield Reached(leg.until, run.metrics[leg.until], "paused")
            return
        for step in [step for step in [*leg.rungs, STEPS] if step > run.num_steps]:
            self.trained.append((leg.trial, leg.seed, run.num_steps, step))
            run.num_steps = step
            run.status = "paused" if step == leg.until else "complete" if step == STEPS else "running"
            run.records = self._records(leg, step)
            value = sum(record["probability"] for record in run.records) / len(run.records)
            run.metrics[step] = {METRIC: value}
            run.write(leg)
            if leg.keep and step == STEPS:
                Path(leg.weights).mkdir(parents=True, exist_ok=True)
            yield run.reached
            if run.status != "running":
                return

    def _records(self, leg: Leg, step: int) -> list[dict[str, Any]]:
        where = leg.tree["evaluation"]["tasks"][0]["path"]
        loss = leg.tree["loss"] | {"window": min(leg.tree["loss"]["window"], 400)}  # as on data of that length
        return [
            {
                "set": "choices",
                "id": str(item),
                "group": f"patient {item // 2}" if item < 10 else None,
                "probability": quality(leg.tree | {"loss": loss}, step)
                + 0.02 * noise(where, item)
                + 0.01 * noise(loss, leg.seed, where, item),
            }
            for item in range(30)
        ]

    def records(self, part: str) -> list[TrialRecord]:
        with Database(self.url) as database:
            store = Store.find(database, self.study.name)
            return (store if part == SEARCH else store.open_part(part)).records()


class _Same:
    """A leg as a key: its tree cannot be hashed."""

    def __init__(self, leg: Leg):
        self.leg = leg
