"""What the bookkeeping of a search costs: trials that do nothing, through database, sampler and rungs.

    python -m jobs.bench.store [--database URL] [--trials 500] [--slots 8] [--space medical_qa] [--deterministic]
                               [--out bench_store]

There are no duplicates: each trial is proposed from all earlier records, inserted, started, judged at the rungs and finished;
its values are drawn from its settings. Prints seconds a trial around trial 50 and before the last one (target: at most
0.1 s, and flat), and where they go; writes OUT.json with the machine. Without --database: SQLite in a new folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bft_ray.config import Config
from bft_ray.places.addresses import redact
from bft_ray.space.assign import config_of
from bft_ray.space.definition import SearchSpace
from bft_ray.space.load import load_study
from bft_ray.space.parts import Asha
from bft_ray.study.propose.duplicates import key_of, original_of
from bft_ray.study.propose.halving import is_promoted, survivors
from bft_ray.study.propose.sampler import batch_of, is_ready, num_trials, propose, rung_metric
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import Store

TARGET_S = 0.1
METRICS = ("train/loss", "train/nll", "train/grad_norm", "train/learning_rate")  # of a step that does nothing
#: (assignment, seed, step) -> value of the metric
Score = Callable[[dict[str, Any], int, int], float]


def score(assignment: dict[str, Any], seed: int, step: int) -> float:
    """A value in 0..1 that rises with the steps, and is the same whenever it is asked for; NaN for one in 50."""
    text = json.dumps(assignment, sort_keys=True) + f" {seed}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    if drawn % 50 == 0:
        return math.nan
    return 0.2 + 0.6 * (drawn / 2**64) * (1 - math.exp(-step / 100)) + 0.1 * (assignment.get("loss.window") == 128)


class DoNothing:
    """A driver whose trials do nothing: the smallest one there is. Which possible move comes next is drawn."""

    def __init__(
        self,
        store: Store,
        space: SearchSpace,
        base: Config,
        *,
        slots: int = 8,
        seed: int = 0,
        longest: int | None = None,
        merge: bool = True,
    ):
        self.merge = merge
        self.store, self.space, self.base, self.slots, self.longest = store, space, base, slots, longest
        self.draw = random.Random(seed)
        self.total = num_trials(space)
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.added_at: dict[int, float] = {}

    def run(self, before_move: Callable[[], None] = lambda: None) -> list[TrialRecord]:
        """All trials to their end; returns their records."""
        with self._timed("reconcile"):
            self.store.reconcile()
        while moves := self._moves():
            before_move()
            self.draw.choice(moves)()
        return self.store.records()

    def _moves(self) -> list[Callable[[], None]]:
        records = self.store.records()
        open_ones = [record for record in records if not record.is_finished and not record.duplicate_of]
        moves: list[Callable[[], None]] = []
        active = 0
        for record in open_ones:
            move = self._move(record, records)
            if move is not None:
                active += 1
                moves.append(move)
        if len(records) < self.total and active < self.slots and is_ready(self.space, len(records), records):
            moves.append(self._propose)
        return moves

    def _propose(self) -> None:
        records = self.store.records()
        number = len(records)
        self.added_at[number] = time.perf_counter()
        with self._timed("propose"):
            assignment = propose(self.space, number, records)
        assert assignment is not None
        with self._timed("key"):
            config = config_of(self.base, self.space, assignment)
            key = key_of(config, self.space.seeds, self.longest)
            original = original_of(records, key) if self.merge else None
        with self._timed("add"):
            new = TrialRecord(
                self.store.part, number, assignment, tuple(self.space.seeds), key, planned_steps=config.schedule.steps
            )
            self.store.add(
                new,
                space=self.space,
                original=original,
                duplicate_because="the same run" if original else "",
            )

    def _move(self, record: TrialRecord, records: Sequence[TrialRecord]) -> Callable[[], None] | None:
        """What can happen to an unfinished trial next; None while it waits for others."""
        if record.state == "waiting":
            return lambda: self._call("start", self.store.start, record.number)
        steps = record.planned_steps or 100
        rungs = self.space.scheduler.rungs(steps) if isinstance(self.space.scheduler, Asha) else []
        reached = record.last_rung
        if reached is not None:
            on = self._decide(record, records, rungs, reached[0])
            if on is None:
                return None
            if not on:
                paid, why = reached[0] * len(record.seeds), f"not among the best at step {reached[0]}"
                return lambda: self._call("finish", self._settled(self.store.prune), record.number, paid, why)
        step = next((rung for rung in rungs if reached is None or rung > reached[0]), None)
        if step is not None:
            values = {seed: score(dict(record.assignment), seed, step) for seed in record.seeds}
            return lambda: self._call("report", self.store.report, record.number, step, values)
        name = self.space.objective.metric
        by_seed = {seed: {name: score(dict(record.assignment), seed, steps)} for seed in record.seeds}
        return lambda: self._call(
            "finish", self._settled(self.store.complete), record.number, by_seed, steps * len(record.seeds)
        )

    def _decide(
        self, record: TrialRecord, records: Sequence[TrialRecord], rungs: Sequence[int], step: int
    ) -> bool | None:
        assert isinstance(self.space.scheduler, Asha)
        reduction, metric = self.space.scheduler.reduction, rung_metric(self.space)
        with self._timed("judge"):
            if not self.space.deterministic:
                return is_promoted(records, record.number, step, reduction, metric)
            batch = batch_of(self.space, record.number, records)
            on = survivors(batch, rungs, step, reduction, metric) if batch else None
            return None if on is None else record.number in on

    def _settled(self, finish: Callable[..., None]) -> Callable[..., None]:
        """Finish, and give the result to duplicates that wait for it."""

        def call(*arguments: Any) -> None:
            finish(*arguments)
            if any(record.duplicate_of and not record.is_finished for record in self.store.records()):
                self.store.settle()

        return call

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> None:
        with self._timed(what):
            function(*arguments)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - begin


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="address of the study's database")
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--slots", type=int, default=8, help="trials at a time")
    parser.add_argument("--space", default="medical_qa")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--out", default="bench_store")
    options = parser.parse_args(argv)
    from jobs.bench.machine import machine  # imports torch, which the study itself does without

    about = machine(1, ["optuna", "sqlalchemy", "psycopg"])
    space, base = load_study(
        options.space, overrides=[f"budget.trials={options.trials}", f"name=bench-{time.time_ns()}"]
    )
    space = space.model_copy(update={"deterministic": options.deterministic})
    with tempfile.TemporaryDirectory() as folder:
        database = Database(options.database or f"sqlite:///{folder}/study.db")
        driver = DoNothing(Store.create(database, space, base, {}), space, base, slots=options.slots, merge=False)
        begin, cpu = time.perf_counter(), time.process_time()
        records = driver.run()
        whole, cpu = time.perf_counter() - begin, time.process_time() - cpu
        database.close()
    times = [driver.added_at[number] for number in range(len(records))] + [begin + whole]

    def around(first: int, last: int) -> float:
        return (times[last] - times[first]) / (last - first)

    count = len(records)
    at = min(50, count // 4)
    quarter = max(1, at // 2)
    early, late = around(at - quarter, at + quarter), around(count - 2 * quarter, count)
    report = {
        "database": redact(options.database or "sqlite").partition("@")[2] or "sqlite",
        "space": options.space,
        "sampler": space.sampler.kind,
        "deterministic": options.deterministic,
        "trials": count,
        "slots": options.slots,
        "seconds_a_trial": {f"at_{at}": early, f"at_{count}": late, "mean": whole / count},
        "cpu_seconds_a_trial": cpu / count,  # of this process; the load of the machine does not count
        "milliseconds_a_trial_in": {
            name: 1e3 * spent / count for name, spent in sorted(driver.spent.items(), key=lambda pair: -pair[1])
        },
        "target_s": TARGET_S,
        "machine": about,
    }
    Path(f"{options.out}.json").write_text(json.dumps(report, indent=1))
    print(
        f"{count} trials, {report['database']}: {early:.4f} s a trial at {at}, {late:.4f} s at {count} (target {TARGET_S})"
    )
    print(f"  this process took {cpu / count:.4f} s of CPU a trial; load before {about['load_before']:.1f}")
    for name, spent in sorted(driver.spent.items(), key=lambda pair: -pair[1]):
        print(f"  {name:<10} {1e3 * spent / count:7.2f} ms a trial")


if __name__ == "__main__":
    main()
