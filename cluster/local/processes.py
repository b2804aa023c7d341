"""Processes by pid and start time, so that a number that the system gave to another one is never taken for ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

KILL_S = 10.0  # longest wait for processes that got SIGKILL


class Process(NamedTuple):
    """One process of this boot; `started` is in clock ticks after the boot, which no change of the clock moves."""

    pid: int
    started: int


class _Row(NamedTuple):
    parent: int
    session: int
    started: int


def boot_id() -> str:
    """The id of this boot of the machine: pids and start times of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find(pid: int) -> Process | None:
    """The process that has this pid now; None where it has ended, though nobody may have collected its status."""
    row = _row(Path(f"/proc/{pid}/stat"))
    return None if row is None else Process(pid, row.started)


def family(roots: Iterable[Process]) -> set[Process]:
    """Who lives among the roots, their descendants, and the sessions of all of these."""
    rows = {int(path.parent.name): row for path in Path("/proc").glob("[0-9]*/stat") if (row := _row(path))}
    # no pid is given away while a session goes by it, so one that nobody has still stands for those it left behind
    ours = {root.pid for root in roots if root.pid not in rows or rows[root.pid].started == root.started}
    while more := {pid for pid, row in rows.items() if row.parent in ours or row.session in ours} - ours:
        ours |= more
    return {Process(pid, rows[pid].started) for pid in ours if pid in rows}


def stop(roots: Iterable[Process], how: int = signal.SIGTERM, patience_s: float = 10.0) -> set[Process]:
    """End the roots with a signal, after `patience_s` all of their family by force; returns who is still there."""
    roots = set(roots)
    ours = roots | family(roots)
    for root in roots:
        _send(root, how)
    if living := _wait(ours, patience_s):
        for process in living:
            _send(process, signal.SIGKILL)
        living = _wait(ours, KILL_S)
    return living


def _wait(ours: set[Process], patience_s: float) -> set[Process]:
    """Who of `ours`, which grows by those that they start meanwhile, lives after at most `patience_s`."""
    end = time.monotonic() + patience_s
    while living := family(ours):
        ours |= living
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return living


def _send(process: Process, number: int) -> None:
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)  # from here on it is this very process or none
        try:
            if find(process.pid) == process:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _row(path: Path) -> _Row | None:
    try:
        state, *rest = path.read_text().rpartition(")")[2].split()
    except (OSError, ValueError):  # it has just ended
        return None
    return None if state in "ZX" else _Row(int(rest[0]), int(rest[2]), int(rest[18]))
