"""One driver at a time: who has the lease, how long a dead one is waited for, and what a woken one may still write."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from multiprocessing import get_context

import pytest
from sqlalchemy import update

from bft_ray.errors import BadInput
from bft_ray.study.records import lease as module
from bft_ray.study.records.database import Database
from bft_ray.study.records.lease import Lease, Owner, Replaced
from bft_ray.study.records.store import Store, studies
from tests.support.records import new

pytestmark = pytest.mark.usefixtures("short")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "LEASE_S", 1.5)
    monkeypatch.setattr(module, "RENEW_S", 0.2)


def test_a_second_driver_is_refused_while_the_first_renews(url):
    with Database(url) as database:
        first = Lease(database, "small/test")
        first.take()
        with first.kept(), pytest.raises(BadInput, match=f"but process {os.getpid()} on .* drives it"):
            Lease(database, "small/test").take()
        assert first.holder() is None  # given back


def test_of_two_that_find_a_dead_driver_one_takes_its_place(url):
    with Database(url) as database:
        dead, *rivals = (Lease(database, "small/test") for _ in range(3))
        dead.take()
        _age(database, 5.0)
        assert sorted(rival._try() for rival in rivals) == [False, True]
        with pytest.raises(Replaced, match="another process drives the study small/test now"):
            dead.renew()


def test_a_dead_driver_is_waited_for_no_longer_than_its_lease(url, caplog):
    with Database(url) as database, caplog.at_level(logging.WARNING):
        Lease(database, "small/test").take()  # and never heard of again
        rival, began = Lease(database, "small/test"), time.monotonic()
        rival.take()
        assert 1.0 < time.monotonic() - began < 30
        assert f"process {os.getpid()} on " in caplog.text and "to see whether it still does" in caplog.text
        holder = rival.holder()
        assert holder is not None and holder.owner == rival.owner and holder.is_alive


def test_a_dead_driver_whose_clock_was_ahead_is_waited_for_no_longer(url, caplog):
    """Its last renewal lies an hour in the future; one that renews there is alive."""
    with Database(url) as database, caplog.at_level(logging.WARNING):
        first, rival = Lease(database, "small/test"), Lease(database, "small/test")
        first.take()
        _age(database, -3600.0)
        began = time.monotonic()
        rival.take()
        assert 1.0 < time.monotonic() - began < 30 and "waiting at most 2 s" in caplog.text
        with pytest.raises(Replaced):
            first.renew()
        _age(database, -3600.0)
        beats = threading.Thread(target=lambda: [(time.sleep(0.3), _age(database, -0.3)) for _ in range(8)])
        beats.start()
        with pytest.raises(BadInput, match="drives it"):
            first.take()
        beats.join()


@pytest.mark.slow
def test_a_study_whose_clock_was_ahead_is_deleted_only_when_its_driver_is_dead(url):
    """The last renewal lies an hour in the future: of a driver that still renews, and then of one that does not."""
    new(url)  # its driver is this process
    with Database(url) as database:
        _age(database, -3600.0)
        beats = threading.Thread(target=lambda: [(time.sleep(0.3), _age(database, -0.3)) for _ in range(8)])
        beats.start()
        with pytest.raises(BadInput, match="drives it"):
            Store.find(database, "small/test").delete()
        beats.join()
        assert "small/test" in studies(database)
        began = time.monotonic()
        store = Store.find(database, "small/test")
        store.delete()
        assert 1.0 < time.monotonic() - began < 30
        assert "small/test" not in studies(database) and store.lease.holder() is None


def test_a_row_of_an_earlier_version_is_read(url):
    """It named more of the process."""
    own = Owner.of_text('{"host": "node", "boot": "b", "pid": 7, "born": "1", "token": "t"}')
    assert own == Owner("node", 7, "t")


def _drive(url: str, moves) -> None:
    """A driver that writes as fast as it can; tells how often it did, and that it was replaced."""
    with Database(url) as database:
        lease = Lease(database, "small/test")
        lease.take()
        while True:
            try:
                lease.hold()
            except Replaced:
                moves.value = -1
                return
            moves.value += 1
            time.sleep(0.01)


def test_a_driver_that_was_stopped_writes_no_more_when_it_wakes(url):
    """SIGSTOP for longer than the lease: another one takes over meanwhile, by the database alone."""
    fork = get_context("fork")
    moves = fork.Value("i", 0)
    process = fork.Process(target=_drive, args=(url, moves))
    process.start()
    try:
        _wait(lambda: moves.value > 3)
        os.kill(process.pid, signal.SIGSTOP)
        with Database(url) as database:
            rival = Lease(database, "small/test")
            rival.take()
            os.kill(process.pid, signal.SIGCONT)
            _wait(lambda: moves.value == -1)
            rival.renew()
    finally:
        process.kill()
        process.join(10)


def _age(database: Database, seconds: float) -> None:
    with database.engine.begin() as connection:
        connection.execute(update(module._TABLE).values(beat=module._TABLE.c.beat - seconds))


def _wait(done) -> None:
    end = time.monotonic() + 30
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
