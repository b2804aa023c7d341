"""The version of a database of studies: one of the version before, a newer one, and a migration that fails half-way."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from bft_ray import __version__
from bft_ray.errors import BadInput
from bft_ray.study.records import schema
from bft_ray.study.records.database import Database
from bft_ray.study.records.schema import MIGRATIONS, TABLE, Migration, Unreadable, upgrade
from bft_ray.study.records.store import Store
from tests.support.records import METRIC, add, new

pytestmark = pytest.mark.slow

CURRENT = len(MIGRATIONS)


def ask(database: Database, statement: str) -> list[tuple]:
    with database.engine.begin() as connection:
        found = connection.execute(text(statement))
        return [tuple(row) for row in found] if found.returns_rows else []


def make_version_0(url: str) -> None:
    """A study of one finished and one waiting trial, in a database as it was before there were versions."""
    store = new(url)
    add(store, 0)
    add(store, 1)
    store.start(0)
    store.complete(0, {0: {METRIC: 0.5}}, 24)
    ask(store.database, f"DROP TABLE {TABLE}")
    store.database.close()


def test_a_database_of_the_version_before_is_read_as_it_is_and_goes_on_as_one_of_this_version(url):
    make_version_0(url)
    with Database(url, make=False) as reader:
        assert [record.value for record in Store.find(reader, "small/test").records()] == [0.5, None]
        assert schema._version(reader.engine) == (0, "")  # a reader writes nothing
    store = new(url)
    assert ask(store.database, f"SELECT * FROM {TABLE}") == [(1, CURRENT, __version__)]
    assert [record.state for record in store.records()] == ["complete", "waiting"]
    assert upgrade(store.database.engine, "it", make=True) == (CURRENT, CURRENT)


@pytest.mark.parametrize("make", [True, False])
def test_a_database_whose_trials_lack_what_every_version_notes_is_refused(url, make):
    make_version_0(url)
    with Database(url) as database:
        ask(database, f"DROP TABLE {TABLE}")
        ask(database, "DELETE FROM trial_user_attributes WHERE key = 'trial' AND trial_id = 2")
    with pytest.raises(BadInput, match=r"version 0, and cannot be .* trial 1 of `small/test/search` has no assignment"):
        Database(url, make=make)


@pytest.mark.parametrize("make", [True, False])
def test_a_newer_database_is_refused_with_the_version_to_install(url, make):
    with Database(url) as database:
        ask(database, f"UPDATE {TABLE} SET version = {CURRENT + 1}, made_by = '7.8.9'")
    with pytest.raises(BadInput, match=rf"has version {CURRENT + 1}, .* Install bft-ray 7\.8\.9 or later"):
        Database(url, make=make)


def test_migrations_run_in_order_once_and_together_or_not_at_all(url):
    calls: list[str] = []
    fails = True

    def first(connection) -> None:
        calls.append("first")
        connection.execute(text("CREATE TABLE made (value INTEGER)"))
        connection.execute(text("INSERT INTO made VALUES (7)"))

    def second(connection) -> None:
        calls.append("second")
        if fails:
            raise Unreadable("of a reason")
        connection.execute(text("UPDATE made SET value = value + 1"))

    with Database(url) as database:
        later = (*MIGRATIONS, Migration(first, writes=True), Migration(second, writes=True))
        with pytest.raises(BadInput, match="must be of version 3 to be read: it has version 1"):
            upgrade(database.engine, "it", make=False, migrations=later)
        with pytest.raises(BadInput, match="of a reason"):
            upgrade(database.engine, "it", make=True, migrations=later)
        assert schema._version(database.engine) == (CURRENT, __version__)
        fails = False
        assert upgrade(database.engine, "it", make=True, migrations=later) == (CURRENT, CURRENT + 2)
        assert upgrade(database.engine, "it", make=True, migrations=later) == (CURRENT + 2, CURRENT + 2)
        assert ask(database, "SELECT value FROM made") == [(8,)]  # the table of the failed try is gone
    assert calls == ["first", "second", "first", "second"]
