"""What the driver of a large study costs: a whole `bft-ray search` on pretend nodes, which do nothing.

    python -m jobs.bench.driver [--trials 1000] [--nodes 64] [--deterministic] [--database URL] [--tracking URI] [--out bench_driver]

Driver, database, sampler, rungs and MLflow are the real ones. Both databases are SQLite files of a new folder where no address is
given: then this process does an MLflow server's work as well. The place of the segments is this process:
each node holds one segment for a time that is drawn, on a clock that is only counted; its values are drawn from the settings. The
CPU time is that of this process with all of its threads, without that of the pretended workers. Prints seconds of CPU a trial
(target: at most 0.06; missed: exit status 1) by hundreds of trials, the memory after each, and what one look at the study costs;
writes OUT.json with the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import heapq
import io
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bft_ray.config import ClusterConfig, Config
from bft_ray.space.load import load_study
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.driver import search
from bft_ray.study.records.segment import Run, Segment
from bft_ray.study.report.live import Live
from jobs.bench.machine import machine
from jobs.bench.store import METRICS, score

TARGET_S = 0.06  # of CPU a trial
_EVERY = 100  # trials between two rows
_LOOK_S = 0.25  # between two looks, as on Ray
_ITEMS = 120


def pretended(segment: Segment) -> list[Run]:
    """The reports of a worker that trains nothing, and leaves the file that a worker leaves."""
    before = Run.read(segment.files, segment.key) or Run(segment.key)
    last = segment.tree["schedule"]["steps"]
    steps = [step for step in (*segment.rungs, last) if step > before.num_steps]
    if segment.until is not None:
        steps = [step for step in steps if step <= segment.until]
    loss = {f"loss.{field}": value for field, value in segment.tree["loss"].items()}
    reports, train = [], before.train
    for step in steps:
        value = score(loss, segment.seed, step)
        train = [*train, *[dict.fromkeys(METRICS, 1.0)] * (step - len(train))]
        metrics = before.metrics | {step: {"choices/probability": value}}
        status: Any = "complete" if step == last else "paused" if step == segment.until else "running"
        before = Run(segment.key, status, "", step, train, metrics, cards=["pretended"])
        if step == last:
            noise = random.Random(segment.seed)
            before.records = [
                {"set": "choices", "id": str(item), "probability": value + 0.1 * (noise.random() - 0.5)}
                for item in range(_ITEMS)
            ]
        before.write(segment.files)
        reports.append(before.report)
    return reports


@dataclass
class Row:
    """After so many trials: CPU of the driver with all of its threads and of its main one alone, wall time, resident memory."""

    trials: int
    cpu_s: float
    main_s: float
    wall_s: float
    memory_bytes: int


class Nodes:
    """A place without workers: so many nodes that each hold one segment at a time."""

    def __init__(self, num_nodes: int, seed: int = 0):
        self._num_nodes, self._draw = num_nodes, random.Random(seed)
        self._worked = 0.0  # CPU of the pretended workers
        self.rows: list[Row] = []
        self.look_s = 0.0

    def connected(self, cluster: ClusterConfig) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def told(self, cluster: ClusterConfig, *, deterministic: bool) -> list[str]:
        return []

    def num_slots(self, cluster: ClusterConfig) -> Callable[[], int]:
        return lambda: self._num_nodes

    def run(self, controller: Controller, first: Config, look: Callable[[], None]) -> None:
        """Give each free node a segment, then let the one end that ends first."""
        began, looked, now = time.perf_counter(), 0.0, 0.0
        running: list[tuple[float, int, Segment, list[Run]]] = []
        self._note(controller, began)
        for turn in range(1_000_000):
            while len(running) < self._num_nodes:
                segment = controller.next()
                if segment is None or segment == OVER:
                    break
                controller.begun(segment)
                entry = now + 0.5 + self._draw.random(), turn, segment, self._work(segment)
                heapq.heappush(running, entry)
                turn += 1
            if not running:
                break
            now, turn_of, segment, reports = heapq.heappop(running)
            report = reports.pop(0)
            if report.status == "running" and controller.is_promoted(segment, report):
                heapq.heappush(running, (now + 0.5 + self._draw.random(), turn_of, segment, reports))
            else:
                controller.ended(segment, report)
            if time.perf_counter() - looked >= _LOOK_S:
                looked = time.perf_counter()
                look()
            self._note(controller, began)
        self._note(controller, began, every=1)  # those after the last hundred
        times = []
        for _ in range(20):
            before = time.thread_time()
            look()
            times.append(time.thread_time() - before)
        self.look_s = sorted(times)[len(times) // 2]

    def _work(self, segment: Segment) -> list[Run]:
        before = time.thread_time()
        reports = pretended(segment)
        self._worked += time.thread_time() - before
        return reports

    def _note(self, controller: Controller, began: float, every: int = _EVERY) -> None:
        ended = sum(record.is_finished for own in controller.all_records().values() for record in own)
        if self.rows and ended < self.rows[-1].trials + every:
            return
        gc.collect()
        memory = psutil.Process().memory_info().rss
        cpu, main = time.process_time() - self._worked, time.thread_time() - self._worked
        self.rows.append(Row(ended, cpu, main, time.perf_counter() - began, memory))


def measure(
    trials: int, nodes: int, database: str | None, tracking: str | None = None, *, deterministic: bool, folder: Path
) -> dict[str, Any]:
    """One study in `folder`, from the command to its answer."""
    overrides = [f"budget.trials={trials}", "budget.steps=81", f"deterministic={str(deterministic).lower()}"]
    overrides += [
        f"tracking.uri={tracking or f'sqlite:///{folder}/mlflow.db'}",
        f"cluster.storage_path={folder}/results",
    ]
    overrides += ["confirmation.register_champion=false"]
    # values that are drawn from a range: no trial is a duplicate of another one
    inverse = "when: {loss.method: [bft_inverse]}"
    overrides.append(f"parameters.loss.weight_cap={{kind: float, low: 1.5, high: 20.0, {inverse}}}")
    overrides.append("parameters.loss.gamma={kind: float, low: 0.5, high: 2.0}")
    space, base = load_study("starter", overrides=[*overrides, f"name=driver-{time.time_ns()}"])
    assert space.confirmation is not None  # whose test split would measure weights, and there are none
    space = space.model_copy(update={"confirmation": space.confirmation.model_copy(update={"test": {}})})
    place, told = Nodes(nodes), io.StringIO()
    live = Live("bench", space.objective.metric, stream=told)
    cpu, began = time.process_time(), time.perf_counter()
    search(
        space,
        base,
        database or f"sqlite:///{folder}/study.db",
        profile=False,
        measure=False,
        live=live,
        place=place,
    )
    rows = place.rows
    each = [
        {
            "trials": later.trials,
            "cpu_s_a_trial": (later.cpu_s - earlier.cpu_s) / (later.trials - earlier.trials),
            "memory_mb": later.memory_bytes / 1e6,
        }
        for earlier, later in itertools.pairwise(rows)
    ]
    return {
        "trials": rows[-1].trials,
        "nodes": nodes,
        "deterministic": deterministic,
        "cpu_s_a_trial": (rows[-1].cpu_s - rows[0].cpu_s) / rows[-1].trials,
        "main_thread_s_a_trial": (rows[-1].main_s - rows[0].main_s) / rows[-1].trials,
        "wall_s_a_trial": rows[-1].wall_s / rows[-1].trials,
        "look_s": place.look_s,
        "whole_command_cpu_s": time.process_time() - cpu,
        "whole_command_s": time.perf_counter() - began,
        "target_s": TARGET_S,
        "by_hundreds": each,
    }


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, measure, print and write; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="of the search, at least 6")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--database", help="address of the study's database")
    parser.add_argument("--tracking", help="address of an MLflow server")
    parser.add_argument("--out", default="bench_driver")
    options = parser.parse_args(argv)
    about = machine(1, ["optuna", "sqlalchemy", "psycopg"])
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            options.trials,
            options.nodes,
            options.database,
            options.tracking,
            deterministic=options.deterministic,
            folder=Path(folder),
        )
    Path(f"{options.out}.json").write_text(json.dumps(found | {"machine": about}, indent=1))
    return tell(found)


def tell(found: dict[str, Any]) -> int:
    """Print what `measure` found; 1 where the target is missed."""
    print(
        f"{found['trials']} trials on {found['nodes']} pretend nodes: {found['cpu_s_a_trial']:.4f} s of CPU a trial (target {TARGET_S}), "
        f"{found['main_thread_s_a_trial']:.4f} s of it in the main thread (others send to MLflow)"
    )
    print(f"  one look: {1e3 * found['look_s']:.1f} ms")
    for row in found["by_hundreds"]:
        print(f"  to {row['trials']:5d}: {row['cpu_s_a_trial']:.4f} s a trial, {row['memory_mb']:,.0f} MB")
    if found["cpu_s_a_trial"] > TARGET_S:
        print(f"error: the target of {TARGET_S} s a trial is missed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
