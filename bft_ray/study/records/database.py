"""The database of a study: opened, and called again while it is away. Its password is in no message."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import exc

from bft_ray.errors import BadInput, BftError, DiskFull, first_line
from bft_ray.places.addresses import absolute_uri, driver_package, redact, sqlite_path
from bft_ray.places.disk import full_disk
from bft_ray.places.modes import own_file
from bft_ray.places.mounts import is_own_disk, require_lockable
from bft_ray.study.records import schema
from bft_ray.waits import call_again, waiting

if TYPE_CHECKING:
    from sqlalchemy import Engine

T = TypeVar("T")

FIELD = "database"
DEFAULT_DATABASE = "sqlite:///bft_studies.db"
_SCHEME = "postgresql"  # beside SQLite; the text columns of others are too short for scores of many items
#: errors of the database that last: waiting does not help
_FINAL = ("authentication failed", "does not exist", "unknown database", "access denied", "readonly", "read-only")
_ERRORS = (exc.SQLAlchemyError, StorageInternalError)
_PAUSES_S = 0.05, 5.0  # the first, and the longest one
_OPENING_S = 10.0  # a wrong address is reported soon; one that has answered before is waited for

_log = logging.getLogger(__name__)


def check_place(url: str) -> None:
    """Raise BadInput for an SQLite file on a file system that machines share; nothing is opened."""
    if (path := sqlite_path(url)) is not None:
        require_lockable(path, FIELD, redact(absolute_uri(url)))


def database_url(given: str | None) -> str:
    """The address of the database of studies: `given`, else STUDY_DATABASE, else a file. In the environment no list of
    processes and no record of a job shows its password.
    """
    return given or os.environ.get("STUDY_DATABASE") or DEFAULT_DATABASE


class DatabaseAway(BftError, ConnectionError):
    """The study's database did not answer within the time limit. What was written before is kept."""


class Database:
    """An Optuna storage, and calls of it that wait through a short absence of the server.

    Args:
        url: `sqlite:///FILE`, or the address of a PostgreSQL server. Missing tables are made.
        wait_s: how long a call waits for a database that does not answer; the first call at most 10 s.
        make: False to read only: nothing is made, and nothing is written.

    Raises:
        BadInput: an invalid address, a missing driver, a database that refuses, or one of another Optuna version or a newer
            bft-ray; without `make` also one that holds no studies; with it also an SQLite file on a file system that machines share.
        DatabaseAway: it does not answer.
    """

    def __init__(self, url: str, wait_s: float = 60.0, *, make: bool = True):
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs every study that `propose` replays
        self.url, self.wait_s = absolute_uri(url), wait_s
        self.shown = redact(self.url)
        path = sqlite_path(self.url)
        scheme = self.url.partition(":")[0].partition("+")[0]
        if path is None and scheme != _SCHEME:
            rule = "an address that begins with sqlite:/// (a file) or postgresql:// (a server)"
            raise BadInput(FIELD, self.shown, rule, f"For example {DEFAULT_DATABASE}.")
        if path is not None:
            _require_file(path, self.shown, make)
        self._rdb = self.retry("opening it", partial(self._open, make), opening=True, wait_s=min(wait_s, _OPENING_S))
        self.engine: Engine = self._rdb.engine
        self.retry("reading its version", partial(schema.upgrade, self.engine, self.shown, make=make), opening=True)
        self.storage: BaseStorage = get_storage(self._rdb)
        if make and path is not None and is_own_disk(path):
            self.retry("opening it", self._log_ahead)

    def _log_ahead(self) -> None:
        """SQLite's write-ahead log: a write then takes one sync of the disk, not four. It needs a file system that
        is not shared by machines.
        """
        with self.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def _open(self, make: bool) -> RDBStorage:
        """The storage. Where two processes make its tables at once, one of them fails; its second try finds the tables."""
        if sqlite_path(self.url) is not None:
            limit: dict[str, float] = {"timeout": self.wait_s}
        else:  # no ping before each call: a call that meets a lost connection is repeated
            limit = {"connect_timeout": max(2, min(5, int(self.wait_s)))}
        options = {"connect_args": limit}
        try:
            if not make:
                self._require_tables(options)
            # Optuna formats the address as a template: braces in a password must be doubled
            return RDBStorage(
                self.url.replace("{", "{{").replace("}", "}}"), engine_kwargs=options, skip_table_creation=not make
            )
        except ImportError as error:
            cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
            remedy = f"pip install {driver_package(cause)}."
            raise BadInput(FIELD, self.shown, "a database whose Python driver is installed", remedy) from None
        except exc.ArgumentError as error:  # no such dialect or driver, or no address at all
            rule = "an address that SQLAlchemy reads"
            raise BadInput(FIELD, self.shown, rule, redact(first_line(error)) + ".") from None
        except RuntimeError as error:  # Optuna's check of its tables' version
            rule = "a database of the installed version of Optuna"
            raise BadInput(FIELD, self.shown, rule, redact(first_line(error, 300)) + ".") from None

    def _require_tables(self, options: dict) -> None:
        """Raise BadInput where they are missing: Optuna would make them in any database that it is given."""
        engine = sqlalchemy.create_engine(self.url, **options)
        try:
            if not sqlalchemy.inspect(engine).has_table("version_info"):
                raise BadInput(FIELD, self.shown, "a database that holds studies", "Is the address right?")
        finally:
            engine.dispose()

    @waiting("waiting for the database of studies")
    def retry(self, doing: str, call: Callable[[], T], *, opening: bool = False, wait_s: float | None = None) -> T:
        """Call `call`, and repeat it after growing pauses while the database is away. It must be safe to repeat.

        Args:
            doing: for the message, such as `writing a result`.
            opening: whether tables are being made; another process may make them at the same time.
            wait_s: how long; None: the limit that the database was opened with.

        Raises:
            BadInput: the database answers and refuses.
            DiskFull: it has no room; what was written before is kept.
            DatabaseAway: it was away for `wait_s`.
        """
        wait_s = self.wait_s if wait_s is None else wait_s

        def may_pass(error: Exception) -> bool:
            return isinstance(error, _ERRORS) and self._is_full(error) is None and _is_away(_cause(error), opening)

        def tell(error: Exception) -> None:
            _log.warning("the database %s is away while %s (%s); waiting", self.shown, doing, _text_of(error))

        try:
            return call_again(call, wait_s, may_pass, pauses_s=_PAUSES_S, before_pause=tell)
        except _ERRORS as error:
            if full := self._is_full(error):
                raise DiskFull(f"{doing} failed, for {redact(str(full))}") from None
            if not _is_away(_cause(error), opening):
                rule = "a database that accepts what is written to it"
                raise BadInput(FIELD, self.shown, rule, f"{doing}: {_text_of(error)}.") from None
            raise DatabaseAway(
                f"the database {self.shown} was away for {wait_s:g} s while {doing}: {_text_of(error)}. "
                "What was written before is kept. Start the database, and give the same command again."
            ) from None

    def _is_full(self, error: Exception) -> DiskFull | None:
        path = sqlite_path(self.url)
        return full_disk(error, {FIELD: self.url if path is None else path})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._rdb.remove_session()
        self.engine.dispose()


def _require_file(path: Path, shown: str, make: bool) -> None:
    """Make the file's folder and the file; without `make`, raise BadInput unless the file exists."""
    if not make:
        if not path.is_file():
            raise BadInput(FIELD, shown, "a file that exists, to be read", f"Paths are relative to {Path.cwd()}.")
        return
    require_lockable(path, FIELD, shown)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own_file(path)
    except OSError as error:
        raise BadInput(FIELD, shown, "in a folder that can be written", first_line(error)) from None


def _cause(error: BaseException) -> BaseException:
    """The error of the database below Optuna's."""
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _text_of(error: BaseException) -> str:
    """The first line of the driver's own error, without secrets."""
    cause = _cause(error)
    return redact(first_line(getattr(cause, "orig", None) or cause))


def _is_away(error: BaseException, opening: bool) -> bool:
    """Whether waiting may help: no connection, a lost one, a lock; and, while tables are made, a clash."""
    text = str(error).lower()
    if any(final in text for final in _FINAL) and not (opening and "already exists" in text):
        return False
    if isinstance(getattr(error, "orig", None), sqlite3.Error):
        exists = isinstance(error, exc.OperationalError) and "exists" in text
        return "locked" in text or "busy" in text or (opening and (exists or isinstance(error, exc.IntegrityError)))
    if isinstance(error, (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, exc.DisconnectionError)):
        return True
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return True
    return opening and isinstance(error, (exc.ProgrammingError, exc.IntegrityError))
