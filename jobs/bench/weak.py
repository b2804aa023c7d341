"""Weak scaling on one machine: what more workers cost a step, beside bare processes that do the least.

    python -m jobs.bench.weak [--config FILE] [--stages zero0,zero1] [--workers 2] [--rounds 3] [--steps 8] [--out bench_weak]

n workers train on n times the global batch of one, each on one core and with one thread. Peers take turns, each rank in a process of
its own, joined by gloo:

    bare    a plain PyTorch loop over the same micro-batches with the same fused loss; one all-reduce sums the gradients
    STAGE   the DeepSpeed engine and the step of bft-ray, without Ray
    whole   the first stage as `bft-ray train` runs it, through Ray Train

Efficiency: step time of one worker over that of n. Beside bare: step time of n bare processes over that of n of ours. Medians over
rounds count. Needs n cores that nothing else uses. Writes OUT.json with the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bft_ray.config import Config, load_config, make_config
from bft_ray.data.dataset import prepare
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.train.loop import Data
from bft_ray.train.ranks import join
from bft_ray.workers.connect import connect
from jobs.bench.machine import machine
from jobs.bench.train import PEERS
from jobs.scaling import measure

_TURN_S = 600  # longest turn


def changed(config: Config, stage: str, batch: int, cache: str) -> Config:
    """The config with this stage and global batch, one core and thread a worker, tokens in `cache`."""
    tree = config.model_dump()
    tree["deepspeed"] |= {"preset": stage}
    tree["cluster"] |= {"cpus_per_worker": 1.0}
    tree["data"] |= {"global_batch_size": batch, "cache_dir": cache, "validation": []}
    tree["checkpoint"] |= {"export": "last"}
    return make_config(tree)


def _rank(peer: str, config: Config, rank: int, num_workers: int, meeting: str, steps: int) -> float:
    """Seconds a step of this rank."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    join(meeting, rank, num_workers, _TURN_S)
    tokenizer = load_tokenizer(config.model)
    data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
    seconds, _ = PEERS[peer](config, data, torch.device("cpu"), steps)
    return seconds / steps


def turn(peer: str, config: Config, num_workers: int, steps: int) -> float:
    """Seconds a step of `num_workers` processes: the slowest rank's."""
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(num_workers, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        meeting = f"file://{folder}/meeting"
        ranks = [pool.submit(_rank, peer, config, rank, num_workers, meeting, steps) for rank in range(num_workers)]
        return max(rank.result(timeout=_TURN_S) for rank in ranks)


def measure_all(
    config: Config, stages: Sequence[str], num_workers: int, rounds: int, steps: int, cache: str
) -> dict[str, dict[int, list[float]]]:
    """peer -> number of workers -> seconds a step, by round."""
    batch = config.data.global_batch_size
    found: dict[str, dict[int, list[float]]] = {}

    def note(name: str, number: int, seconds: float) -> None:
        found.setdefault(name, {}).setdefault(number, []).append(seconds)
        print(f"{name}, {number} worker{'s' if number > 1 else ''}: {seconds:.4f} s a step", flush=True)

    for _ in range(rounds):
        for number in (1, num_workers):
            note("bare", number, turn("bare", changed(config, "zero0", batch * number, cache), number, steps))
            for stage in stages:
                note(stage, number, turn("bft-ray", changed(config, stage, batch * number, cache), number, steps))
    with connect(config.cluster):
        for _ in range(rounds):
            for number in (1, num_workers):
                own = changed(config, stages[0], batch * number, cache)
                point = measure(own, "weak", stages[0], number, batch * number, steps)
                if point.step_s is None:
                    raise RuntimeError(f"{number} workers: {point.reason}")
                note("whole", number, point.step_s[1])
    return found


def table(found: dict[str, dict[int, list[float]]], num_workers: int) -> str:
    """Step times, efficiency, and step time beside that of the bare processes."""
    medians = {name: {number: statistics.median(own) for number, own in by.items()} for name, by in found.items()}
    lines = [f"{'':8}{'s, 1 worker':>14}{f's, {num_workers} workers':>14}{'efficiency':>12}{'beside bare':>13}"]
    for name, by in medians.items():
        beside = medians["bare"][num_workers] / by[num_workers]
        lines.append(f"{name:8}{by[1]:14.4f}{by[num_workers]:14.4f}{by[1] / by[num_workers]:12.2f}{beside:13.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="starter", help="a config, or the name of a recipe (default: starter)")
    parser.add_argument("--stages", default="zero0,zero1", help="ZeRO stages (default: zero0,zero1)")
    parser.add_argument("--workers", type=int, default=2, help="workers beside one (default: 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn that count, after two that do not")
    parser.add_argument("--out", type=Path, default=Path("bench_weak"), help="path of the results, without suffix")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the config")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    described = machine(1)
    with tempfile.TemporaryDirectory() as cache:
        found = measure_all(config, args.stages.split(","), args.workers, args.rounds, args.steps, cache)
    results: dict[str, Any] = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "machine": described,
        "step_s": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(found, args.workers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
