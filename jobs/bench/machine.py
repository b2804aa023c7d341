"""What the benchmarks share: a description of the machine that measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def machine(threads: int, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Processor, cores, memory, load, GPU, and the versions of what is measured and of `packages`."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    wanted = ["bft-ray", "torch", "transformers", "deepspeed", "ray", "mlflow", *packages]
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": threads,
        "load_before": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in wanted if name in installed},
    }
