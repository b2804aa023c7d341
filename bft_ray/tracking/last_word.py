"""The process that watches another one, and ends its run where that one cannot.

`python -m bft_ray.tracking.last_word` reads one line of JSON (address, run) from its standard input, then waits. The
word "done" ends it. An end of input without that word means that the watched process is gone: then it sends what
that one left in its journal, and sets the run KILLED. Nested runs that are still RUNNING become KILLED either way.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time
from pathlib import Path
from typing import Any, BinaryIO

from bft_ray.config import TrackingConfig
from bft_ray.tracking.keeper import DONE

GONE = "the process ended without a word (killed?)"
_ENDED = "its driver ended while the tracking server was away"
_PATIENCE_S = 3600.0  # how long a server that is away is tried again
_LOOK_S = 1.0  # between two looks at whether the watched process lives


def main() -> None:
    """Wait for the last word of the watched process, and act on it."""
    with open(0, "rb", buffering=0) as words:  # a buffer would hide the last word from `select`
        task = json.loads(words.readline())
        word = _last_word(words, task["parent"])
    if word != DONE:
        _conclude(task, json.loads(word)["status"] if word else None)


def _last_word(words: BinaryIO, parent: int) -> str:
    while True:
        gone = os.getppid() != parent  # looked at before the pipe: it may speak and leave in between
        if select.select([words], [], [], _LOOK_S)[0]:
            return words.readline().decode().strip()
        if gone:  # though a forked child of it holds the pipe open
            return ""


def _conclude(task: dict[str, Any], status: Any) -> None:
    from bft_ray.tracking.children import end_children  # late: MLflow is large, and mostly not needed
    from bft_ray.tracking.run import Tracker

    tracking = TrackingConfig.model_validate(task["tracking"] | {"system_metrics": False})
    tracker = Tracker.attach(tracking, task["run_id"], Path(task["spool"]))
    reason = GONE if status is None else _ENDED  # of nested runs that nobody has ended
    deadline, pause = time.monotonic() + _PATIENCE_S, 1.0
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # away
            run = tracker.client.get_run(task["run_id"]).info
            now = run.status
            end_children(tracker.client, run.experiment_id, run.run_id, "KILLED", reason)
            if now == "RUNNING" and status is None:
                tracker.set_tags({"bft.reason": GONE})
                status = "KILLED"
            if tracker.conclude(status if now == "RUNNING" else None):
                break
        time.sleep(pause)
        pause = min(2 * pause, 30.0)
    tracker.close(timeout_s=0)


if __name__ == "__main__":
    main()
