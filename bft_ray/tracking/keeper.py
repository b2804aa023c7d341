"""A true final status even when the process of a run is killed: another process (`last_word`) watches."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from bft_ray.config import TrackingConfig

DONE, LATER = "done", "later"  # last words


class Keeper:
    """The watching process as the watched one sees it. It has a session of its own: Ctrl-C does not reach it."""

    def __init__(self, tracking: TrackingConfig, run_id: str, spool: Path):
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bft_ray.tracking.last_word"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        # through the pipe, not as arguments: addresses may hold passwords, and everyone can read arguments
        task = {"tracking": tracking.model_dump(mode="json"), "run_id": run_id, "spool": str(spool)}
        self._say(json.dumps(task | {"parent": os.getpid()}))

    def release(self, done: bool) -> None:
        """All is done; or the server is away, and what is left in the outbox is to be sent as soon as it is back."""
        self._say(DONE if done else LATER)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if done:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5.0)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # someone ended the keeper: the run goes on without it
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
