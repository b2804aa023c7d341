"""Who runs a study: one driver at a time, told apart from one that was killed.

A row beside Optuna's tables names the driver: host, process, when that process began, and its last sign of life. A
driver on this start of this host is alive while its process is; any other one while its last sign is younger than
`LEASE_S` (clocks are taken to agree to seconds): hosts of one name are told apart by their boot id, and after a reboot
the driver of before is waited for like one elsewhere. Whoever finds a dead driver takes its place by comparing and
setting the row, so of two only one does; a driver that was replaced learns so at its next sign of life.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Column, Float, MetaData, String, Table, Text, delete, insert, inspect, select, update
from sqlalchemy.exc import IntegrityError

from bft_ray.errors import BadInput, BftError
from bft_ray.study.records.database import Database

LEASE_S = 60.0
_BEAT_S = 5.0  # signs of life are this far apart, however often `beat` is called

_TABLE = Table(
    "bft_ray_leases",
    MetaData(),
    Column("study", String(512), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("beat", Float(53), nullable=False),
)

_log = logging.getLogger(__name__)


class Replaced(BftError):
    """Another driver runs the study now; this one must stop."""


@dataclass(frozen=True)
class Owner:
    """A process that drives a study; `token` tells attempts apart."""

    host: str
    boot: str
    pid: int
    born: str
    token: str

    @classmethod
    def of_this_process(cls) -> Owner:
        """This process, with a new token."""
        return cls(socket.gethostname(), _boot(), os.getpid(), _born(os.getpid()) or "", uuid.uuid4().hex)

    @classmethod
    def of_text(cls, text: str) -> Owner:
        """As the row names it. Of a damaged row nothing is known but its last sign of life; its token is the row's text."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            _log.warning("the row of %s that names a study's driver is damaged: %.80r", _TABLE.name, text)
            return cls("a host that is not known", "", 0, "", text)

    @property
    def text(self) -> str:
        """As the row names it."""
        return json.dumps(asdict(self)) if self.pid else self.token

    @property
    def is_here(self) -> bool:
        """Whether its process can be looked up from this one. A name alone says little: two machines may share it."""
        return bool(self.boot) and (self.host, self.boot) == (socket.gethostname(), _boot())

    def is_alive(self, beat: float) -> bool:
        """Whether it still runs, as far as can be told from here; `beat`: its last sign of life."""
        return self.born == _born(self.pid) if self.is_here else _left_s(beat) > 0


class Lease:
    """The right of this process to drive one study."""

    def __init__(self, database: Database, study: str):
        self._database, self._study = database, study
        self.owner = Owner.of_this_process()
        self._text = self.owner.text
        self._last = 0.0

    def holder(self) -> tuple[Owner, float] | None:
        """Who drives the study, dead or alive, and its last sign of life (seconds since 1970)."""
        query = select(_TABLE.c.owner, _TABLE.c.beat).where(_TABLE.c.study == self._study)

        def read() -> tuple[Owner, float] | None:
            if not inspect(self._database.engine).has_table(_TABLE.name):
                return None  # nobody has driven a study here
            with self._database.engine.connect() as connection:
                row = connection.execute(query).one_or_none()
            return None if row is None else (Owner.of_text(row.owner), row.beat)

        return self._database.patiently("looking who drives the study", read)

    def take(self) -> None:
        """Become the driver.

        One on another host that has given no sign of life lately is waited for, until it counts as dead.

        Raises:
            BadInput: another one is alive.
        """
        engine = self._database.engine
        self._database.patiently("opening it", lambda: _TABLE.create(engine, checkfirst=True), opening=True)
        for _ in range(3):  # the row may change hands between looking and taking
            held = self._silent(self.holder())
            if held and held[0] == self.owner:
                return self.beat()
            if held and held[0].is_alive(held[1]):
                raise self._driven(*held)
            if self._database.patiently("taking the study", partial(self._replace, held)):
                self._last = time.monotonic()
                return
        raise BadInput("study", self._study, "driven by one process at a time", "Another one has just begun.")

    def _driven(self, owner: Owner, beat: float) -> BadInput:
        """What a second driver is told."""
        wait = "" if owner.is_here else f" One that was killed there counts as dead in {max(_left_s(beat), 0):.0f} s."
        return BadInput(
            "study",
            self._study,
            f"but process {owner.pid} on {owner.host} drives it (last sign of life {time.time() - beat:.0f} s ago)",
            f"Look at it with --status, or end it.{wait}",
        )

    def _silent(self, held: tuple[Owner, float] | None) -> tuple[Owner, float] | None:
        """The holder as it is when it has moved, or counts as dead; one whose process can be looked up is known at
        once.
        """
        told = False
        while held and held[0] != self.owner and not held[0].is_here and held[0].is_alive(held[1]):
            if time.time() - held[1] < 2 * _BEAT_S:
                break  # it has moved lately
            if not told:
                owner, left = held[0], _left_s(held[1])
                told = True
                _log.warning(
                    "process %d on %s, which drove %s, is silent (this host may have been restarted since); "
                    "it counts as dead in %.0f s: waiting",
                    *(owner.pid, owner.host, self._study, left),
                )
            time.sleep(1.0)
            now = self.holder()
            if now != held:
                return now
        return held

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Gives signs of life by itself, for as long as the context lasts; then drops the study."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(_BEAT_S):
                with suppress(Exception):  # the driver's own calls meet it
                    self.beat()

        thread = threading.Thread(target=work, name="bft-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_BEAT_S)
            with suppress(BftError):  # the database is away, or another driver has taken over
                self.drop()

    def _replace(self, held: tuple[Owner, float] | None) -> bool:
        row = {"owner": self._text, "beat": time.time()}
        try:
            with self._database.engine.begin() as connection:
                if held is None:
                    return connection.execute(insert(_TABLE).values(study=self._study, **row)).rowcount == 1
                old = (_TABLE.c.study == self._study) & (_TABLE.c.owner == held[0].text)
                return connection.execute(update(_TABLE).where(old).values(**row)).rowcount == 1
        except IntegrityError:
            return False

    def beat(self, always: bool = False) -> None:
        """Give a sign of life; cheap, to be called in every turn of the driver's loop.

        Args:
            always: also where the last one is only seconds old: to be sure that the study is still ours.

        Raises:
            Replaced: another driver has taken the study.
        """
        if not always and self._last and time.monotonic() - self._last < _BEAT_S:
            return
        mine = (_TABLE.c.study == self._study) & (_TABLE.c.owner == self._text)

        def write() -> int:
            with self._database.engine.begin() as connection:
                return connection.execute(update(_TABLE).where(mine).values(beat=time.time())).rowcount

        if self._database.patiently("giving a sign of life", write) != 1:
            raise Replaced(f"another process drives the study {self._study} now; this one has stopped")
        self._last = time.monotonic()

    def drop(self) -> None:
        """Give the study back; nothing where it is not ours."""
        mine = (_TABLE.c.study == self._study) & (_TABLE.c.owner == self._text)

        def write() -> None:
            with self._database.engine.begin() as connection:
                connection.execute(delete(_TABLE).where(mine))

        self._database.patiently("giving the study back", write)
        self._last = 0.0


def _left_s(beat: float) -> float:
    """Seconds until a driver of which only this sign of life is known counts as dead."""
    return LEASE_S - (time.time() - beat)


def _boot() -> str:
    """What tells one start of this machine from another, and within it containers that see no process of each other;
    "" where the system does not say.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; None where it is gone, or dead and not yet buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
