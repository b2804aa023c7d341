"""What a trial needs, measured before the study begins: a few steps and one measurement, in a process of its own.

In a process of its own the peak of memory is the trial's, and nothing stays loaded. It runs `trial`, as a worker does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from bft_ray.config import Config, make_config
from bft_ray.errors import BftError
from bft_ray.places.kept import read_kept, write_kept
from bft_ray.places.scratch import scratch
from bft_ray.study.records.segment import Run

LIMIT_S = 120.0  # of the whole measurement
_STEPS = 3  # the first, which warms up, does not count


@dataclass(frozen=True)
class Measured:
    """What one run needs.

    Args:
        step_s: of a training step, after the first one.
        measure_s: of one measurement of all sets.
        start_s: from one trial to the next in a process that is warm.
        memory_bytes: peak of the process (resident).
        gpu_bytes: peak that torch held on the GPU; 0 without one.
        weights_bytes: of the final weights that a trial may leave.
        state_bytes: of weights and optimizer of a trial that waits at a rung.
        device: where it ran.
        took_s: the whole measurement.
    """

    step_s: float
    measure_s: float
    start_s: float
    memory_bytes: int
    gpu_bytes: int
    weights_bytes: int
    state_bytes: int
    device: str
    took_s: float


def measure(config: Config, line: Callable[[str], None], limit_s: float = LIMIT_S) -> Measured | str:
    """Measure the config of a trial; where that is not possible, a clause that says why.

    Args:
        config: with paths of this machine.
        line: called with a line when it begins.
        limit_s: seconds after which the measurement is stopped.
    """
    if config.cluster.num_workers > 1:
        return "trials of several workers are not tried in one process: the first trial will show it"
    if config.cluster.gpus_per_worker and not torch.cuda.device_count():
        return "trials use a GPU, and this machine has none: the first trial will show it"
    line(f"measuring {_STEPS} training steps and one measurement ({limit_s:g} s at most; --no-measure leaves it out)")
    began = time.monotonic()
    with scratch("measure") as folder:
        # without passwords; what it prints is not for the user
        (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json", exclude={"tracking"})))
        command = [sys.executable, "-m", "bft_ray.study.execute.measure", str(folder)]
        try:  # whatever ends the wait, the process is killed
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=limit_s)
        except subprocess.TimeoutExpired:
            return f"it took more than {limit_s:g} s"
        found = folder / "measured.json"
        if done.returncode == -9:
            return "the process was killed, perhaps because memory was full"
        if not found.exists():
            return f"the process ended with status {done.returncode}"
        tree = read_kept(found)
    if tree is None:
        return "the file with its results is damaged"
    if "why" in tree:
        return f"it failed: {tree['why']}"
    return Measured(**tree, took_s=time.monotonic() - began)


# ---- in the process ----------------------------------------------------------------------------------------------------


def _main(folder: Path) -> None:
    config = make_config(json.loads((folder / "config.json").read_text()))
    schedule = config.schedule.model_copy(update={"steps": _STEPS})
    try:
        found = _tried(config.model_copy(update={"schedule": schedule}), folder)
    except (BftError, RuntimeError, OSError, MemoryError) as error:  # whose texts hold no rows of the data
        lines = str(error).strip().splitlines()
        found = {"why": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    write_kept(folder / "measured.json", found)


def _tried(config: Config, folder: Path) -> dict[str, float | int | str]:
    from bft_ray.study.execute.trial import trial
    from bft_ray.study.execute.warm import Warm

    warm, whole, paused = Warm(), Run(), Run()
    first: dict[str, float] = {}
    with closing(trial(config, [1], warm, whole, keep=str(folder / "weights"), at_rungs=())) as stops:
        for _ in stops:
            first = first or dict(whole.seconds)
    with closing(trial(config, [1], warm, paused, until=1, pause=str(folder / "state"), at_rungs=())) as stops:
        for _ in stops:
            pass
    has_gpu = warm.device.type == "cuda"
    return {
        "step_s": (whole.seconds["train"] - first["train"]) / (_STEPS - 1),
        "measure_s": whole.seconds["measure"] - first.get("measure", 0.0),
        "start_s": paused.seconds["start"],
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_bytes": torch.cuda.max_memory_reserved() if has_gpu else 0,
        "weights_bytes": _size(folder / "weights"),
        "state_bytes": _size(folder / "state"),
        "device": torch.cuda.get_device_name() if has_gpu else f"{torch.get_num_threads()} CPU thread(s)",
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _main(Path(sys.argv[1]))
