"""What a search costs beside training, and what it saves.

    python -m jobs.bench.search [--part warm study grid merge kills bookkeeping] [--lora] [--out bench_search]

- warm: trials of one worker, 20 steps of 8 rows x 128 tokens, starter model, each with a window, an epsilon and a cap of
  its own, in one process; the first few again, each in a process of its own. Losses must be the same.
- study: the same trials in a study on all cores, against a fresh TorchTrainer with DeepSpeed for each; with --workers 2
  each trial runs on a group of two ranks.
- grid: 45 configurations of 60 steps, from the command to the best, against one fresh run after another.
- merge: windows 64 to 1024 on short samples, with and without duplicates taking results. Files: --merge-data.
- kills: a deterministic study of 24 trials, its driver killed ten times, against an undisturbed one.
- bookkeeping: 500 trials that do nothing, through Tune, database and MLflow (--database, --tracking: PostgreSQL).

Prints a table for each part and writes OUT.json, with the machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bft_ray.config import SourceConfig, make_config
from bft_ray.data.rows import BadRow, read_rows
from jobs.bench import study as bench_study
from jobs.bench.machine import machine

ROWS, TOKENS = 8, 128  # of a step
WINDOWS, EPSILONS, CAPS = (8, 16, 32, 64, 128), (0.01, 0.05, 0.2), (2.0, 4.0, 8.0)


def full_rows(source: str, path: Path) -> None:
    """Rows with more tokens than are used: completions joined until they are long enough."""
    rows = [row for row in read_rows(SourceConfig(path=source)) if not isinstance(row, BadRow)]
    text = itertools.cycle([str(row.completion) for row in rows])
    lines = []
    for row in rows:
        completion = ""
        while len(completion) < 8 * TOKENS:  # bytes; a token of the starter model has about 3.5
            completion += next(text) + " "
        lines.append(json.dumps({"id": row.id, "prompt": row.prompt, "completion": completion}))
    path.write_text("\n".join(lines))


def trees(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The config of each trial; every step has 8 rows of exactly 128 tokens."""
    full_rows("starter:gene_interaction/train", folder / "rows.jsonl")
    base = {
        "domain": "bench",
        "model": {"path": "starter", "dtype": args.dtype, "attention": args.attention},
        "lora": {"rank": 16} if args.lora else None,
        "data": {
            "train": [{"path": str(folder / "rows.jsonl")}],
            "validation": [{"path": "starter:gene_interaction/validation", "limit": args.items}],
            "max_length": TOKENS,
            "global_batch_size": ROWS,
            "micro_batch_tokens": ROWS * TOKENS,
            "packing": False,
            "cache_dir": str(folder / "cache"),
        },
        "schedule": {"steps": args.steps},
        "deepspeed": {"preset": args.preset},
        "evaluation": {"batch_tokens": ROWS * TOKENS},
        "cluster": {"cpus_per_worker": float(args.threads), "num_workers": args.workers},
    }
    settings = list(itertools.product(WINDOWS, EPSILONS, CAPS))
    chosen = [settings[place * len(settings) // args.trials] for place in range(args.trials)]
    return [
        base | {"loss": {"method": "bft_inverse", "window": window, "epsilon": epsilon, "weight_cap": cap}}
        for window, epsilon, cap in chosen
    ]


def run_in_turn(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials of this process, one after the other: losses, seconds in all and by part, memory after each."""
    from bft_ray.study.execute.warm import Warm
    from jobs.bench.one_trial import run_trial

    warm, done = Warm(), []
    for tree in trials:
        began = time.perf_counter()
        result = run_trial(make_config(tree), [], lambda step, metrics: True, warm)
        assert result.status == "complete", result.reason
        done.append(
            {
                "losses": [step["train/loss"] for step in result.train],
                "metrics": result.metrics,
                "seconds": result.seconds | {"trial": time.perf_counter() - began},
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    return done


def warm_part(args: argparse.Namespace, folder: Path, trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds a trial in a warm process and in fresh ones; the tokenised data is there before either begins."""
    context = multiprocessing.get_context("spawn")

    def in_process(some: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        began = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            done = pool.submit(run_in_turn, some).result()
        return done, time.perf_counter() - began

    in_process([trials[0] | {"schedule": {"steps": 1}}])  # fills the caches of files
    warm, whole = in_process(trials)
    fresh = [in_process([tree]) for tree in trials[: args.fresh]]
    later = warm[1:]
    same = all(
        (own["losses"], own["metrics"]) == (again[0]["losses"], again[0]["metrics"])
        for own, (again, _) in zip(warm, fresh, strict=False)
    )
    warm_s = statistics.mean(one["seconds"]["trial"] for one in later)
    fresh_s = statistics.mean(seconds for _, seconds in fresh)
    parts = {part: statistics.median(one["seconds"][part] for one in later) for part in later[0]["seconds"]}
    return {
        "warm_start_s": parts["start"],
        "slowest_warm_start_s": max(one["seconds"]["start"] for one in later),
        "first_start_s": warm[0]["seconds"]["start"],
        "warm_trial_s": warm_s,
        "fresh_trial_s": fresh_s,
        "process_of_all_s": whole,
        "warm_trials_per_hour": 3600 / warm_s,
        "fresh_trials_per_hour": 3600 / fresh_s,
        "ratio": fresh_s / warm_s,
        "losses_identical": same,
        "num_compared": len(fresh),
        "median_s_by_part": parts,
        "memory_grew_bytes": warm[-1]["peak_memory_bytes"] - warm[min(2, len(warm) - 1)]["peak_memory_bytes"],
    }


def warm_table(found: dict[str, Any]) -> str:
    by_part = ", ".join(f"{part} {seconds:.2f}" for part, seconds in found["median_s_by_part"].items())
    return "\n".join(
        [
            f"{'':10} {'s/trial':>9} {'trials/h':>9} {'start s':>9}",
            f"{'warm':10} {found['warm_trial_s']:9.2f} {found['warm_trials_per_hour']:9,.0f} {found['warm_start_s']:9.2f}",
            f"{'fresh':10} {found['fresh_trial_s']:9.2f} {found['fresh_trials_per_hour']:9,.0f} {'':>9}",
            f"{found['ratio']:.1f} times the trials an hour; the slowest warm start took "
            f"{found['slowest_warm_start_s']:.2f} s, the first {found['first_start_s']:.2f} s",
            f"losses and metrics of {found['num_compared']} trials identical: {found['losses_identical']}",
            f"a warm trial, median seconds: {by_part}",
            f"most memory grew by {found['memory_grew_bytes'] / 2**20:.0f} MiB from the third trial to the last",
        ]
    )


#: part -> what measures it, and what prints it
PARTS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "warm": (warm_part, warm_table),
    "study": (bench_study.study_part, bench_study.study_table),
    "grid": (bench_study.grid_part, bench_study.grid_table),
    "merge": (bench_study.merge_part, bench_study.merge_table),
    "kills": (bench_study.kills_part, bench_study.kills_table),
    "bookkeeping": (bench_study.bookkeeping_part, bench_study.bookkeeping_table),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=["warm", "study"])
    parser.add_argument("--trials", type=int, default=12, help="in the warm process")
    parser.add_argument("--fresh", type=int, default=4, help="of them also in a process of their own")
    parser.add_argument("--steps", type=int, default=20, help="of a trial")
    parser.add_argument("--items", type=int, default=32, help="rows that each trial is measured on at its end")
    parser.add_argument("--lora", action="store_true", help="adapters of rank 16 instead of all weights")
    usual = "bf16" if torch.cuda.is_available() else "fp32"
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default=usual)
    parser.add_argument(
        "--attention", choices=["sdpa", "eager"], default="sdpa", help="on CPU in bf16, sdpa's backward pass is slow"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    parser.add_argument("--workers", type=int, default=1, help="of a trial; several: the part study alone")
    parser.add_argument("--preset", choices=["zero0", "zero1", "zero2", "zero3"], default="zero1")
    parser.add_argument("--grid-steps", type=int, default=60)
    parser.add_argument(
        "--exhaustive", action="store_true", help="the grid also without early stops: what there was to find"
    )
    parser.add_argument("--merge-data", nargs="+", default=[], metavar="FILE", help="training rows")
    parser.add_argument(
        "--merge-length", nargs="+", type=int, default=[], help="tokens of the longest rows kept, by file"
    )
    parser.add_argument("--merge-steps", type=int, default=20)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kill-after", nargs=2, type=float, default=[12.0, 30.0], metavar="S", help="of each start")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--nothing", type=int, default=500, help="trials that do nothing")
    parser.add_argument("--slots", type=int, default=2, help="of them at a time")
    parser.add_argument("--database", metavar="URL", help="of the studies' records in the part bookkeeping")
    parser.add_argument("--tracking", metavar="URI", help="MLflow server in the part bookkeeping")
    parser.add_argument("--out", type=Path, default=Path("bench_search"), help="path of the results, without suffix")
    args = parser.parse_args(argv)
    if args.workers > 1 and args.part != ["study"]:
        parser.error("--workers is for --part study")
    results: dict[str, Any] = {
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "machine": machine(args.threads, ["peft", "optuna"]),
    }
    args.merge_longest = dict(zip(args.merge_data, args.merge_length, strict=False))
    for part in args.part:
        measure, table = PARTS[part]
        with tempfile.TemporaryDirectory() as folder:
            results[part] = measure(args, Path(folder), trees(args, Path(folder)))
            print(f"{part}\n{table(results[part])}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
