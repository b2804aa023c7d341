"""On what a run was computed: the GPUs of its ranks, or the model of their CPUs."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from bft_ray.train import ranks

_CPUS = Path("/proc/cpuinfo")


def card_of(device: torch.device) -> str:
    """The type of a GPU, or the model of this machine's CPU, such as `NVIDIA H100 80GB HBM3`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if _CPUS.exists():
        for line in _CPUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def cards_of_ranks(device: torch.device) -> list[str]:
    """The types of all ranks, each once, on every rank; every rank calls it."""
    found = ranks.gather(card_of(device)) if ranks.world_size() > 1 else [card_of(device)]
    return ranks.from_first(sorted(set(found)))
