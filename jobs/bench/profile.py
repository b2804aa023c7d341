"""What a profile costs beside its forward pass: all windows 8 to 1024 and every form of the weights.

    python -m jobs.bench.profile [--samples 12000] [--repeat 3] [--out bench_profile]

Samples have drawn lengths as long medical answers have them (median 200 supervised tokens, longest 2,048) and drawn
log-probabilities. Prints the median seconds of each part (target: all windows in less than 2 s); writes OUT.json with
the machine. Set OMP_NUM_THREADS=1 for figures of one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import load_config
from bft_ray.config.profile import ProfileConfig
from bft_ray.page.html import to_html
from bft_ray.profile.analyse import analyse
from bft_ray.profile.page import page_of
from bft_ray.profile.weights import TokenLogps

TARGET_S = 2.0
WINDOWS = [8, 16, 32, 64, 128, 256, 512, 1024]


def draw_tokens(num_samples: int, seed: int = 0) -> TokenLogps:
    """Log-probabilities of samples with log-normal lengths; the same whenever they are asked for."""
    draws = np.random.default_rng(seed)
    lengths = np.clip(np.exp(draws.normal(np.log(200), 0.9, num_samples)), 1, 2048).astype(np.int64)
    logp = -draws.gamma(0.4, 1.5, lengths.sum()).astype(np.float32)
    return TokenLogps([f"sample-{index}" for index in range(num_samples)], logp, lengths)


def measure(num_samples: int) -> dict[str, float]:
    """Seconds of each part, from tokens that nothing is known of yet."""
    taken: dict[str, float] = {}

    def timed(part: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = call()
        taken[part] = time.perf_counter() - began
        return made

    for mean in ("geometric", "arithmetic"):
        timed(f"all windows, {mean}", partial(_all_windows, draw_tokens(num_samples), mean))
    tokens, config = draw_tokens(num_samples), load_config("starter")
    looked = ProfileConfig(windows=WINDOWS)
    profile = timed("whole analysis", lambda: analyse(tokens, looked, "drawn", config, "starter"))
    timed("page", lambda: to_html(page_of(profile.to_dict(), profile.proposal)))
    return taken


def _all_windows(tokens: TokenLogps, mean: str) -> None:
    for window in WINDOWS:
        tokens.confidence(window, mean)


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", default="bench_profile")
    options = parser.parse_args(argv)
    import torch

    from jobs.bench.machine import machine

    about = machine(torch.get_num_threads(), ["numpy", "scipy"])
    measure(min(100, options.samples))  # what is loaded at first use is not a cost of the data
    runs = [measure(options.samples) for _ in range(options.repeat)]
    seconds = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    tokens = int(draw_tokens(options.samples).num_tokens.sum())
    report = {
        "samples": options.samples,
        "supervised_tokens": tokens,
        "windows": WINDOWS,
        "seconds": seconds,
        "runs": runs,
        "target_s": TARGET_S,
        "machine": about,
    }
    Path(f"{options.out}.json").write_text(json.dumps(report, indent=1))
    print(f"{options.samples:,} samples, {tokens:,} supervised tokens, windows {WINDOWS[0]} to {WINDOWS[-1]}")
    for part, value in seconds.items():
        print(f"  {part:<26} {value:7.3f} s" + (f"   (target {TARGET_S:g} s)" if "windows" in part else ""))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
