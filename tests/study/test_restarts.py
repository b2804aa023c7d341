"""PostgreSQL ended and started again, twenty times in one search: the records are those of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from bft_ray.space.load import load_study
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import Store
from jobs.bench.store import DoNothing
from tests.support.servers import HAS_POSTGRES, postgres, restart_postgres

RESTARTS, TRIALS = 20, 60
MORE_CPU_S = 0.5  # of the driver, by each restart: a study of an hour with 20 of them takes at most 0.3 % more


class Restarts:
    """Ends the server every so many moves of the driver, and starts it half a second later, while the driver goes on."""

    def __init__(self, folder: Path, url: str, every: int):
        self._folder, self._url, self._every = folder, url, every
        self._moves = self.done = 0
        self._thread: threading.Thread | None = None
        self.server: subprocess.Popen | None = None

    def __call__(self) -> None:
        self._moves += 1
        if self._moves % self._every == 0 and self.done < RESTARTS and not self.is_busy:
            self._thread = threading.Thread(target=self._restart)
            self._thread.start()

    @property
    def is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def end(self) -> None:
        if self._thread is not None:
            self._thread.join(60)
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(60)

    def _restart(self) -> None:
        pid = int((self._folder / "pg" / "postmaster.pid").read_text().splitlines()[0])
        # in turn an orderly end, which breaks all connections, and one as of a crash
        os.kill(pid, signal.SIGINT if self.done % 2 == 0 else signal.SIGQUIT)
        if self.server is not None:
            self.server.wait(60)
        end = time.monotonic() + 60
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(0.5)
        self.server = restart_postgres(self._folder, self._url)
        self.done += 1


def search(url: str, before_move=lambda: None) -> tuple[list[TrialRecord], float, int]:
    """A search whose trials do nothing: its records, the CPU seconds of its driver, the number of its moves."""
    space, base = load_study("medical_qa", overrides=[f"budget.trials={TRIALS}", "name=restarts"])
    moves = 0

    def count() -> None:
        nonlocal moves
        moves += 1
        before_move()

    with Database(url, wait_s=60) as database:
        driver = DoNothing(Store.create(database, space, base, {}), space, base, merge=False)
        used = time.process_time()
        records = driver.run(count)
        return records, time.process_time() - used, moves


def plain(records: list[TrialRecord]) -> list[tuple]:
    """What a trial is and came to, without when. The order in which trials end is drawn, and the same."""
    return [
        (
            one.number,
            dict(one.assignment),
            one.status,
            one.num_steps,
            one.reason,
            one.value,
            dict(one.rungs),
            dict(one.by_seed),
        )
        for one in records
    ]


@pytest.mark.release
@HAS_POSTGRES
def test_a_search_over_twenty_restarts_of_its_database(tmp_path):
    calm, cpu_s, moves = search(f"sqlite:///{tmp_path}/studies.db")
    folder = tmp_path / "pg"
    folder.mkdir()
    with postgres(folder) as url:
        undisturbed, cpu_s, moves = search(url.rpartition("/")[0] + "/template1")
        restarts = Restarts(folder, url, every=moves // (RESTARTS + 4))
        try:
            records, disturbed_s, _ = search(url, restarts)
        finally:
            restarts.end()
    more_s = (disturbed_s - cpu_s) / RESTARTS
    print(
        f"{restarts.done} restarts; the driver took {cpu_s:.2f} s of CPU, {disturbed_s:.2f} s with them: {more_s:.3f} s each"
    )
    assert restarts.done == RESTARTS and more_s < MORE_CPU_S
    assert len(records) == TRIALS and repr(plain(records)) == repr(plain(undisturbed)) == repr(plain(calm))
