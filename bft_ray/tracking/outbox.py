"""What waits to be sent to MLflow: a file that outlives its process, and a thread that sends its records in order."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bft_ray.errors import first_line
from bft_ray.places.addresses import redact
from bft_ray.tracking.retry import LONGEST_PAUSE_S

_log = logging.getLogger(__name__)

INTERVAL_S = 1.0  # records are gathered this long before they are sent
_BATCH_BYTES = 1 << 20

Record = dict[str, Any]


class Outbox:
    """Records in the order in which they came, delivered in the background, again and again while the server is away.

    They are written first and sent later, so neither a server that is away nor a process that is killed costs any. A
    record is a line of a file, a CRC-32 and JSON. A line that is damaged, or that its process could not finish, is left
    out with a warning that names the file. The file is empty whenever all is sent. A lock that ends with its process
    tells a living owner from a dead one: `adopt` takes over what dead processes left.

    Args:
        folder, name: of the file.
        deliver: delivers some records, the oldest first; what it raises means that they are to be delivered again later.
        told: warning for an error of `deliver`; its two `%s` are the error's first line and the path.
    """

    def __init__(self, folder: Path, name: str, deliver: Callable[[list[Record]], None], told: str):
        folder.mkdir(parents=True, exist_ok=True)
        self._name, self._deliver, self._told = name, deliver, told
        self.path, self._handle = _create(folder, name)
        self._sent = self._size = 0  # bytes
        self._lock = threading.Lock()
        self._nudge, self._ended = threading.Event(), threading.Event()
        self._is_away = False  # whether the last try failed
        self.adopt()
        self._thread = threading.Thread(target=self._work, name="bft-outbox", daemon=True)
        self._thread.start()

    @property
    def empty(self) -> bool:
        """Whether everything is sent."""
        with self._lock:
            return self._sent == self._size

    @property
    def ended(self) -> bool:
        """Whether `end` was called."""
        return self._ended.is_set()

    def queue(self, *records: Record) -> None:
        """Add records; returns at once and never raises: a full disk costs them, with a warning, and not the training."""
        try:
            self._append(records)
        except OSError as error:
            _log.warning("records of run %s are lost: %s cannot be written (%s)", self._name, self.path, error)

    def adopt(self) -> None:
        """Take over what dead processes left, the oldest first; each of these records gets the mark `inherited`."""
        for path in sorted(self.path.parent.glob(f"{self._name}.*.jsonl")):
            with contextlib.suppress(OSError), open(path, "rb") as left:
                if path != self.path and _try_lock(left.fileno()):
                    self._append([record | {"inherited": True} for record in _parse(left.readlines(), path)])
                    path.unlink()

    def wait(self, timeout_s: float, even_away: bool = True) -> bool:
        """Wait until everything is sent, at most so long; whether it is.

        Args:
            even_away: False: only for as long as the tries succeed.
        """
        deadline, nudged = time.monotonic() + timeout_s, -math.inf
        while not self.empty and (even_away or not self._is_away) and (now := time.monotonic()) < deadline:
            if not self._is_away or now - nudged >= INTERVAL_S:  # a try in vain costs milliseconds of a core
                self._nudge.set()
                nudged = now
            time.sleep(0.05)
        return self.empty

    def end(self) -> None:
        """Stop; what is not sent stays in the file for a later process."""
        self._ended.set()
        self._nudge.set()
        self._thread.join(1.0)
        if not self._thread.is_alive():  # else it hangs in a call: it, and its lock, end with this process
            if self.empty:
                self.path.unlink(missing_ok=True)
            os.close(self._handle)

    def _append(self, records: Any) -> None:
        data = memoryview(b"".join(map(_line, records)))
        with self._lock:
            size = self._size + len(data)
            try:
                while data:
                    data = data[os.write(self._handle, data) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._size)
                raise
            self._size = size

    def _work(self) -> None:
        pause = INTERVAL_S
        while not self.ended:
            self._nudge.wait(pause)
            self._nudge.clear()
            try:
                while not self.ended and not self.empty:
                    self._send_some()
            except Exception as error:
                if not self._is_away:
                    _log.warning(self._told, redact(first_line(error)), self.path)
                pause, self._is_away = min(2 * pause, LONGEST_PAUSE_S), True
            else:
                if self._is_away and not self.ended:
                    _log.warning("the tracking server is back; everything is sent")
                pause, self._is_away = INTERVAL_S, False

    def _send_some(self) -> None:
        with self._lock, open(self._handle, "rb", closefd=False) as file:
            file.seek(self._sent)
            lines = file.readlines(_BATCH_BYTES)  # whole ones
        self._deliver(_parse(lines, self.path))
        with self._lock:
            self._sent += sum(map(len, lines))
            if self._sent == self._size or not lines:  # none: somebody has emptied the file
                os.ftruncate(self._handle, 0)
                self._sent = self._size = 0


def _create(folder: Path, name: str) -> tuple[Path, int]:
    """A new file, locked. Between its creation and its lock it looks like that of a dead process: where somebody adopted
    it in that moment, there is another one.
    """
    while True:
        path = folder / f"{name}.{time.time_ns():020d}.{os.getpid()}.jsonl"  # names sort by age
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return path, handle
        os.close(handle)


def _line(record: Record) -> bytes:
    text = json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(lines: list[bytes], path: Path) -> list[Record]:
    records = [record for line in lines if (record := _record(line)) is not None]
    if len(records) < len(lines):
        _log.warning("%d of %d lines of %s are damaged: they are left out", len(lines) - len(records), len(lines), path)
    elif lines and not lines[-1].endswith(b"\n"):
        _log.warning("%s is cut off at its end: records after its %d lines may be lost", path, len(lines))
    return records


def _record(line: bytes) -> Record | None:
    try:
        if line.startswith(b"{"):  # of an earlier version, without a sum
            return json.loads(line)
        total, _, text = line.rstrip(b"\n").partition(b" ")
        return json.loads(text) if int(total, 16) == zlib.crc32(text) else None
    except ValueError:
        return None


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: a record that is sent twice is stored once
    return True
