"""One queue to the tracking server with a thread of its own: what waits in one lane holds up no other."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bft_ray.errors import first_line
from bft_ray.tracking.journal import Journal
from bft_ray.tracking.server import redact

_log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # records are gathered this long before they are sent
LONGEST_PAUSE_S = 15.0  # between two tries while the server is away


class Lane:
    """Records in the order they came, sent in the background, again and again while the server is away.

    Args:
        folder, name: of the journal.
        send: sends some records; what it raises means that they are to be sent again later.
        told: what to say when it raises, with the error's first line and the journal's path put in.
    """

    def __init__(self, folder: Path, name: str, send: Callable[[list[dict[str, Any]]], None], told: str):
        self._journal = Journal(folder, name)
        self._send, self._told = send, told
        self._nudge, self._ended = threading.Event(), threading.Event()
        self._is_away = False
        self._journal.adopt()
        self._thread = threading.Thread(target=self._work, name="bft-tracking", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended.is_set()

    @property
    def is_away(self) -> bool:
        """Whether the last try failed."""
        return self._is_away

    @property
    def empty(self) -> bool:
        """Whether everything is sent."""
        return self._journal.empty

    def queue(self, record: dict[str, Any]) -> None:
        """Add a record; returns at once, whatever the state of the server."""
        self._journal.append(record)

    def adopt(self) -> bool:
        """Take over what dead processes left; whether there was anything."""
        return self._journal.adopt()

    def nudge(self) -> None:
        """Try now."""
        self._nudge.set()

    def end(self) -> None:
        """Stop; what is not sent stays in the journal for a later process."""
        self._ended.set()
        self._nudge.set()
        self._thread.join(1.0)
        if not self._thread.is_alive():  # else it hangs in a call: it, and its lock, end with this process
            self._journal.close()

    def _work(self) -> None:
        pause = INTERVAL_S
        while not self._ended.is_set():
            self._nudge.wait(pause)
            self._nudge.clear()
            try:
                while not self._ended.is_set() and (records := self._journal.next()):
                    self._send(records)
                    self._journal.done()
            except Exception as error:
                if not self._is_away:
                    _log.warning(self._told, redact(first_line(error)), self._journal.path)
                pause, self._is_away = min(2 * pause, LONGEST_PAUSE_S), True
            else:
                if self._is_away and not self._ended.is_set():
                    _log.warning("the tracking server is back; everything is sent")
                pause, self._is_away = INTERVAL_S, False


def wait_for(lanes: tuple[Lane, ...], timeout_s: float, even_away: bool = True) -> bool:
    """Wait until all is sent, at most so long; whether it is.

    Args:
        even_away: also for lanes whose last try failed.
    """
    deadline = time.monotonic() + timeout_s
    while (open_lanes := [lane for lane in lanes if not lane.empty and (even_away or not lane.is_away)]) and (
        time.monotonic() < deadline
    ):
        for lane in open_lanes:
            lane.nudge()
        time.sleep(0.05)
    return all(lane.empty for lane in lanes)
