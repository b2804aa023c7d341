"""Which process drives a study: one at a time, by a lease that expires.

A row beside Optuna's tables holds the token of the driver, and the time of its last renewal by the clock of the database
(for SQLite that of the machine). A driver renews it every few seconds. A process that finds a row not renewed for `LEASE_S`
sets its own token. One statement compares and sets, so of two processes only one succeeds. No driver looks for the process
of another: it may run on another machine or in another container. A clock that jumps back can leave a renewal in the future:
so a row that stays as it is for `LEASE_S` of the waiting process's own time counts as not renewed, too.

A driver whose lease may have expired (it was stopped, or the database was away) reads the row before it writes anything
else. It stops if the row has another token (a fencing token: Kleppmann, "How to do distributed locking", 2016).
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
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Engine,
    Float,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    inspect,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from bft_ray.errors import BadInput, BftError
from bft_ray.study.records.database import Database

LEASE_S = 10.0  # after this time without a renewal a driver counts as dead
RENEW_S = 2.0  # between two renewals
_LOOK_S = 0.5  # between two reads of a lease that is waited for

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
    """A process that drives a study. Only `token` identifies it; the rest is for people."""

    host: str
    pid: int
    token: str

    @classmethod
    def of_text(cls, text: str) -> Owner:
        """From the text of the row; of a damaged row the text is the token, and nothing else is known."""
        try:
            tree = json.loads(text)
            return cls(str(tree["host"]), int(tree["pid"]), str(tree["token"]))
        except (ValueError, TypeError, KeyError):
            _log.warning("the row of %s that names a study's driver is damaged: %.80r", _TABLE.name, text)
            return cls("an unknown host", 0, text)


class Holder(NamedTuple):
    """The row: which process drives or drove the study, the row's text, the seconds since the last renewal, and its time."""

    owner: Owner
    text: str
    silent_s: float
    beat: float

    @property
    def is_alive(self) -> bool:
        """Whether its lease has not expired."""
        return abs(self.silent_s) < LEASE_S


class Lease:
    """The right of this process to drive one study."""

    def __init__(self, database: Database, study: str):
        self._database, self._study = database, study
        self.owner = Owner(socket.gethostname(), os.getpid(), uuid.uuid4().hex)
        self._text = json.dumps(asdict(self.owner))
        self._row = _TABLE.c.study == study
        self._mine = self._row & (_TABLE.c.owner == self._text)
        self._renewed: float | None = None  # by this machine's clock, before the database was asked

    def holder(self) -> Holder | None:
        """The process that drives the study, dead or alive; None where there was none, or the last one released it."""
        engine = self._database.engine
        query = select(_TABLE.c.owner, _now(engine) - _TABLE.c.beat, _TABLE.c.beat).where(self._row)

        def read() -> Holder | None:
            if not inspect(engine).has_table(_TABLE.name):
                return None  # nobody has driven a study here
            with engine.connect() as connection:
                row = connection.execute(query).one_or_none()
            return None if row is None else Holder(Owner.of_text(row[0]), row[0], float(row[1]), float(row[2]))

        return self._database.retry("looking who drives the study", read)

    def take(self) -> None:
        """Become the driver. If another driver ended without releasing the study, wait `LEASE_S` at most.

        Raises:
            BadInput: another driver is alive: it renews its lease.
        """
        engine = self._database.engine
        self._database.retry("opening it", lambda: _TABLE.create(engine, checkfirst=True), opening=True)
        self.holder()  # names a row that is damaged
        first: Holder | None = None
        since = time.monotonic()
        while not self._try(first if time.monotonic() - since >= LEASE_S else None):
            now = self.holder()
            if now is None:
                continue  # released at this moment
            if first is not None and (now.text, now.beat) != (first.text, first.beat):  # renewed meanwhile
                raise BadInput(
                    "study",
                    self._study,
                    f"but process {now.owner.pid} on {now.owner.host} drives it",
                    "Look at it with --status, or end it with --cancel.",
                )
            if first is None:
                _log.warning(
                    "process %d on %s drove %s %.0f s ago: waiting at most %.0f s to see whether it still does",
                    now.owner.pid,
                    now.owner.host,
                    self._study,
                    max(0.0, now.silent_s),
                    min(LEASE_S, LEASE_S - now.silent_s),
                )
                first, since = now, time.monotonic()
            time.sleep(_LOOK_S)

    def _try(self, silent: Holder | None = None) -> bool:
        """Take the study if it has no driver, if this process is the driver, or if the lease has expired; whether it is
        this process's now.

        Args:
            silent: take it from this driver too, if it has not renewed since.
        """
        engine, began = self._database.engine, time.monotonic()
        now = _now(engine)
        may = (_TABLE.c.owner == self._text) | (now - _TABLE.c.beat >= LEASE_S)
        if silent is not None:
            may |= (_TABLE.c.owner == silent.text) & (_TABLE.c.beat == silent.beat)
        free = self._row & may

        def write() -> bool:
            with engine.begin() as connection:
                if connection.execute(update(_TABLE).where(free).values(owner=self._text, beat=now)).rowcount == 1:
                    return True
            try:
                with engine.begin() as connection:
                    connection.execute(insert(_TABLE).values(study=self._study, owner=self._text, beat=now))
                return True
            except IntegrityError:  # another process has it
                return False

        taken = self._database.retry("taking the study", write)
        if taken:
            self._renewed = began
        return taken

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the lease in a thread while the context lasts; then release the study."""
        ended = threading.Event()

        def work() -> None:
            while not ended.wait(RENEW_S):
                with suppress(Exception):  # the driver's own calls raise it
                    self.renew()

        thread = threading.Thread(target=work, name="bft-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(LEASE_S)
            with suppress(BftError):  # the database is away, or another driver has taken over
                self.drop()

    def hold(self) -> None:
        """Call this before each write: it costs nothing while the last renewal is fresh.

        Raises:
            Replaced: another driver has taken the study.
        """
        if self._renewed is None or time.monotonic() - self._renewed >= RENEW_S + 1:
            self.renew()

    def renew(self) -> None:
        """Renew the lease.

        Raises:
            Replaced: another driver has taken the study.
        """
        engine, began = self._database.engine, time.monotonic()

        def write() -> int:
            with engine.begin() as connection:
                return connection.execute(update(_TABLE).where(self._mine).values(beat=_now(engine))).rowcount

        if self._database.retry("renewing the lease", write) != 1:
            raise Replaced(f"another process drives the study {self._study} now; this one has stopped")
        self._renewed = began

    def drop(self) -> None:
        """Release the study; nothing where another process has it."""

        def write() -> None:
            with self._database.engine.begin() as connection:
                connection.execute(delete(_TABLE).where(self._mine))

        self._database.retry("releasing the study", write)
        self._renewed = None


def _now(engine: Engine) -> ColumnElement[Any]:
    """Seconds since 1970 by the clock of the database."""
    if engine.dialect.name == "sqlite":
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)")
    return literal_column("cast(extract(epoch from clock_timestamp()) as double precision)")
