"""The queue between training and the tracking server: a local file, so that neither can hurt the other."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
import zlib
from pathlib import Path
from typing import Any

from bft_ray.places.cache import cache_folder

_log = logging.getLogger(__name__)


def spool_folder() -> Path:
    """Default folder of the journals: local, private, outlives a killed process."""
    return cache_folder("spool")


class Journal:
    """Records of one run that wait to be sent: a line each of a file, read in order, gone once sent.

    A line is a CRC-32 and JSON. One that is damaged, or that its process could not finish, is left out with a warning
    that names the file. Written first and sent later, records outlive a server that is away and a process that is killed: `adopt` takes
    over what dead processes left behind. The file is empty whenever all is sent, so it stays small. A lock that ends
    with its process tells a living owner from a dead one.
    """

    def __init__(self, folder: Path, run_id: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{run_id}.{time.time_ns():020d}.{os.getpid()}.jsonl"  # names sort by age
        self._run_id = run_id
        self._lock = threading.Lock()
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        _try_lock(self._handle)
        self._sent = 0  # bytes
        self._read = 0  # bytes given out by `next`
        self._size = 0  # bytes

    @property
    def empty(self) -> bool:
        """Whether everything is sent."""
        with self._lock:
            return self._sent == self._size

    def append(self, *records: dict[str, Any]) -> None:
        """Add records; never raises: training goes on when the disk is full, with a warning."""
        data = b"".join(_line(record) for record in records)
        with self._lock:
            try:
                _write_all(self._handle, data)
                self._size += len(data)
            except OSError as error:
                _log.warning("metrics of run %s are lost: %s cannot be written (%s)", self._run_id, self.path, error)
                with contextlib.suppress(OSError):
                    os.ftruncate(self._handle, self._size)

    def next(self, limit_bytes: int = 1 << 20) -> list[dict[str, Any]]:
        """The oldest records not yet sent, as many whole lines as fit the limit (at least one)."""
        with self._lock:
            data = os.pread(self._handle, min(limit_bytes, self._size - self._sent), self._sent)
            while data and not data.endswith(b"\n") and b"\n" not in data:  # one line longer than the limit
                more = os.pread(self._handle, limit_bytes, self._sent + len(data))
                if not more:
                    break
                data += more
            data = data[: data.rfind(b"\n") + 1]
            self._read = self._sent + len(data)
        return _parse(data, self.path)

    def done(self) -> None:
        """The records that `next` gave are sent: forget them."""
        with self._lock:
            self._sent = self._read
            if self._sent == self._size:
                os.ftruncate(self._handle, 0)
                self._sent = self._read = self._size = 0

    def adopt(self) -> bool:
        """Take over the records of dead processes of the same run, the oldest first; True if there were any."""
        found = False
        for path in sorted(self.path.parent.glob(f"{self._run_id}.*.jsonl")):
            if path == self.path:
                continue
            with contextlib.suppress(OSError), open(path, "rb") as left:
                if not _try_lock(left.fileno()):
                    continue  # its process lives
                self.append(*_parse(left.read(), path))
                path.unlink()
                found = True
        return found

    def close(self) -> None:
        """Let go of the file; what is not sent stays for the next process that adopts it."""
        with self._lock:
            if self._sent == self._size:
                self.path.unlink(missing_ok=True)
            os.close(self._handle)


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(data: bytes, path: Path) -> list[dict[str, Any]]:
    lines = data.splitlines()
    records = [record for line in lines if (record := _record(line)) is not None]
    if len(records) < len(lines):
        _log.warning("%d of %d lines of %s are damaged: they are left out", len(lines) - len(records), len(lines), path)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        if line.startswith(b"{"):  # of an earlier version, without a sum
            return json.loads(line)
        total, _, text = line.partition(b" ")
        return json.loads(text) if int(total, 16) == zlib.crc32(text) else None
    except ValueError:
        return None


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks: sending a record twice is harmless, see Tracker
    return True
