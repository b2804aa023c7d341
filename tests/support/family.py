"""The processes below one, while they come and go."""

from __future__ import annotations

import psutil


def command_of(process: psutil.Process) -> str:
    """Its command line; "" when it has ended, also when its parent has not yet asked how."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie is one as well
        return ""


def train_workers(pid: int | None = None) -> list[psutil.Process]:
    """Living workers of Ray Train below a process (None: this one)."""
    return [one for one in psutil.Process(pid).children(recursive=True) if "RayTrainWorker" in command_of(one)]
