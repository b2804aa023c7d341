"""The process that watches another one, and ends its run where that one cannot.

`python -m bft_ray.tracking.last_word` reads one line of JSON (address, run) from its standard input, then waits. The
word "done" ends it. "later" means that the server is away: it sends what the watched process left in its outbox. An end
of input without a word means that the watched process is gone: then the run and its trials that are RUNNING become
KILLED as well.
"""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any, BinaryIO

from bft_ray.config import TrackingConfig
from bft_ray.tracking.keeper import DONE, LATER

GONE = "the process ended without a word (killed?)"
_PATIENCE_S = 3600.0  # how long a server that is away is tried again
_LOOK_S = 1.0  # between two looks at whether the watched process lives
_TRY_S = 0.5  # wait for an answer of the server
_PAUSES_S = 0.5, 3.0  # between: the first, and the longest one


def main() -> None:
    """Wait for the last word of the watched process, and act on it."""
    with open(0, "rb", buffering=0) as words:  # a buffer would hide the last word from `select`
        task = json.loads(words.readline())
        word = _last_word(words, task["parent"])
    if word != DONE:
        _conclude(task, killed=word != LATER)


def _last_word(words: BinaryIO, parent: int) -> str:
    while True:
        gone = os.getppid() != parent  # looked at before the pipe: it may speak and leave in between
        if select.select([words], [], [], _LOOK_S)[0]:
            return words.readline().decode().strip()
        if gone:  # though a forked child of it holds the pipe open
            return ""


def _conclude(task: dict[str, Any], killed: bool) -> None:
    from bft_ray.tracking.sender import Sender  # late: MLflow is large, and mostly not needed

    tracking = TrackingConfig.model_validate(task["tracking"])
    spool = Path(task["spool"])
    sender = Sender(tracking, task["run_id"], spool, is_heir=True)
    if killed:
        sender.log_end("KILLED", GONE)
    deadline, (pause, longest) = time.monotonic() + _PATIENCE_S, _PAUSES_S
    while not sender.flush(_TRY_S) or any(spool.glob(f"{task['run_id']}*.{task['parent']}.jsonl")):
        if time.monotonic() > deadline:
            break
        time.sleep(pause)
        pause = min(2 * pause, longest)
        sender.adopt()  # what a process has let go of by now
    sender.close(timeout_s=0)


if __name__ == "__main__":
    main()
