"""A machine whose clock jumps an hour forward and back while a study runs: the driver keeps its lease, no trial is lost or doubled,
and no jump counts towards the budget of time, which is shorter than one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bft_ray.study.records.database import Database
from bft_ray.study.records.store import Store
from tests.support.driver import Driver
from tests.support.paths import ROOT

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(LIBRARY is None, reason="Debian's libfaketime, which makes a clock jump, is not installed"),
]
LIMIT_S = 900
NUM_TRIALS = 18

#: `bft-ray search` with pretended trials of half a second
STUDY = """
import json, select, sys, time
time.sleep = lambda seconds: select.select([], [], [], seconds)  # libfaketime would move its end with the clock
from pathlib import Path
from tests.support.driver import Driver
from tests.support.executor import InProcess

def slowly(segment, walk):
    for run in walk(segment):
        time.sleep(0.5)
        yield run

folder, base = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
driver = Driver(folder, base)
print(driver.search(InProcess(slowly), budget={"trials": int(sys.argv[3]), "time_s": 1500}, confirmation=None, baselines=[]).text)
"""


class Clock:
    """The wall clock of processes with `env`, which can jump; the clock of waits (monotonic) does not, as on a real machine."""

    def __init__(self, folder: Path):
        self._file = folder / "clock"
        self.env = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.jump("+0")

    def jump(self, offset: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        os.replace(new, self._file)


def start(folder: Path, base: dict[str, Any], clock: Clock) -> subprocess.Popen:
    (folder / "base.json").write_text(json.dumps(base))
    words = [sys.executable, "-c", STUDY, str(folder), str(folder / "base.json"), str(NUM_TRIALS)]
    env = os.environ | clock.env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log)


def records(folder: Path) -> list:
    with Database(f"sqlite:///{folder}/studies.db") as database:
        return Store.find(database, "small/test").records()


def until_finished(folder: Path, process: subprocess.Popen, count: int) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        try:
            if sum(record.is_finished for record in records(folder)) >= count:
                return
        except Exception:  # not there yet
            pass
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        time.sleep(0.3)
    raise AssertionError((folder / "log").read_text()[-3000:])


def plain(found: list) -> list[tuple]:
    return [(one.number, dict(one.assignment), one.status, one.num_steps, one.value) for one in found]


def test_a_clock_that_jumps_an_hour_and_back(driver: Driver, make_tree, tmp_path):
    """Twice, the second time for a driver that is killed an hour ahead: the next one takes over when its lease is old."""
    base = driver.base.model_dump(mode="json")
    clock = Clock(tmp_path)
    process = start(tmp_path, base, clock)
    until_finished(tmp_path, process, 2)
    clock.jump("+3600s")
    until_finished(tmp_path, process, 7)
    clock.jump("+0")
    until_finished(tmp_path, process, 12)
    clock.jump("+3600s")
    until_finished(tmp_path, process, 15)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    clock.jump("+0")
    began = time.monotonic()
    again = start(tmp_path, base, clock)
    assert again.wait(LIMIT_S) == 0, (tmp_path / "log").read_text()[-3000:]
    assert time.monotonic() - began < 200
    found = records(tmp_path)
    assert len(found) == NUM_TRIALS == len({one.number for one in found})
    log = (tmp_path / "log").read_text()
    assert "another process drives" not in log and "Traceback" not in log

    calm = tmp_path / "calm"
    calm.mkdir()
    undisturbed = Driver(calm, base)
    undisturbed.search(budget={"trials": NUM_TRIALS}, confirmation=None, baselines=[])
    assert plain(found) == plain(undisturbed.records())
