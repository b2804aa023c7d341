"""The version of a database of studies, and the migrations from each version to the next.

The version is one row of the table `bft_ray_schema`, beside Optuna's own tables, whose version Optuna checks. A database
without the table was made before there were versions: it has version 0. `upgrade` runs the missing migrations in one
transaction, and writes the new version in it: a crash leaves the old database, and a second call finds nothing to do.

A new version is needed where a program of the old one would misread what the new one writes. It takes an entry at the
end of MIGRATIONS, and a test that makes a database of the version before.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy
from sqlalchemy import Connection, Engine, text

from bft_ray import __version__
from bft_ray.errors import BadInput

TABLE = "bft_ray_schema"
_FIELD = "database"
#: what each trial of bft-ray has noted since version 0 (`bft_ray.study.records.frozen`)
_NOTED = {"assignment", "seeds", "key", "name", "planned_steps", "created"}


class Unreadable(Exception):
    """A migration cannot bring this database to the next version; the text says why, to follow "but"."""


@dataclass(frozen=True)
class Migration:
    """From one version to the next.

    Args:
        run: does it, or raises Unreadable; repeated after a rollback it must do the same.
        writes: False: it only checks, so that a reader can do it too.
    """

    run: Callable[[Connection], None]
    writes: bool


def _check_notes(connection: Connection) -> None:
    """0 -> 1: the fields have not changed; a trial without them is of no version that can be read."""
    rows = connection.execute(
        text(
            "SELECT studies.study_name, trials.number, notes.value_json FROM studies "
            "JOIN study_user_attributes AS settings ON settings.study_id = studies.study_id AND settings.key = 'settings' "
            "JOIN trials ON trials.study_id = studies.study_id "
            "LEFT JOIN trial_user_attributes AS notes ON notes.trial_id = trials.trial_id AND notes.key = 'trial' "
            "WHERE studies.study_name LIKE '%/search' ORDER BY studies.study_name, trials.number"
        )
    )
    for study, number, noted in rows:
        if missing := sorted(_NOTED - set(json.loads(noted) if noted else ())):
            raise Unreadable(f"trial {number} of `{study}` has no {', '.join(missing)}")


#: entry n brings a database from version n to n + 1
MIGRATIONS: tuple[Migration, ...] = (Migration(_check_notes, writes=False),)


def upgrade(
    engine: Engine, shown: str, *, make: bool, migrations: tuple[Migration, ...] = MIGRATIONS
) -> tuple[int, int]:
    """Bring a database to the version of this program, or refuse it.

    Args:
        shown: its address without a password, for errors.
        make: False to read only: nothing is written, so a database that needs more than a check is refused.

    Returns:
        The version that was found, and the one that the database has now.

    Raises:
        BadInput: a newer version; one that cannot be migrated; without `make`, one that must be migrated first.
    """
    current = len(migrations)
    found, made_by = _version(engine)
    if found > current:
        _refuse_newer(shown, found, current, made_by)
    if found == current:
        return found, found
    if not make:
        pending = migrations[found:]
        if any(migration.writes for migration in pending):
            rule = f"of version {current} to be read: it has version {found}"
            raise BadInput(_FIELD, shown, rule, "`bft-ray search` of one of its studies migrates it; copy it first.")
        with engine.connect() as connection:
            _run(pending, connection, shown, found, current)
        return found, found
    _make_table(engine)
    with engine.begin() as connection:
        # a write first: it takes the lock, so that of two processes the second one finds the new version
        connection.execute(text(f"UPDATE {TABLE} SET version = version WHERE id = 1"))
        found, made_by = connection.execute(text(f"SELECT version, made_by FROM {TABLE} WHERE id = 1")).one()
        if found > current:
            _refuse_newer(shown, found, current, made_by)
        _run(migrations[found:], connection, shown, found, current)
        connection.execute(
            text(f"UPDATE {TABLE} SET version = :version, made_by = :by WHERE id = 1"),
            {"version": current, "by": __version__},
        )
    return found, current


def _version(engine: Engine) -> tuple[int, str]:
    """The version, and the version of bft-ray that wrote it; (0, "") of a database without one."""
    if not sqlalchemy.inspect(engine).has_table(TABLE):
        return 0, ""
    with engine.connect() as connection:
        row = connection.execute(text(f"SELECT version, made_by FROM {TABLE} WHERE id = 1")).one_or_none()
    return (int(row[0]), str(row[1])) if row else (0, "")


def _make_table(engine: Engine) -> None:
    """The table with version 0, where it is missing; of two processes one may fail, and finds it when it tries again."""
    with engine.begin() as connection:
        columns = "id INTEGER PRIMARY KEY, version INTEGER NOT NULL, made_by VARCHAR(64) NOT NULL"
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {TABLE} ({columns})"))
        connection.execute(
            text(f"INSERT INTO {TABLE} (id, version, made_by) SELECT 1, 0, '' WHERE NOT EXISTS (SELECT 1 FROM {TABLE})")
        )


def _run(pending: tuple[Migration, ...], connection: Connection, shown: str, found: int, current: int) -> None:
    for migration in pending:
        try:
            migration.run(connection)
        except Unreadable as error:
            rule = f"but it has version {found}, and cannot be brought to version {current}: {error}"
            remedy = "Read it with the bft-ray that made it, or begin a study in another database."
            raise BadInput(_FIELD, shown, rule, remedy) from None


def _refuse_newer(shown: str, found: int, current: int, made_by: str) -> None:
    rule = f"but it has version {found}, and bft-ray {__version__} knows versions up to {current}"
    raise BadInput(_FIELD, shown, rule, f"Install bft-ray {made_by or 'of a later version'} or later.")
