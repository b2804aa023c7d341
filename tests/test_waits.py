"""No long wait without a word: the watch itself, and a whole run whose workers hang, die and come back."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import yaml

from bft_ray.waits import call_again, describe, report_waits, waiting
from tests.support.family import train_workers

QUIET_S = 4.0
LATE_S = 8.0  # that a line may come later on a loaded machine: libraries are loaded without letting others go on


def until(condition: Callable[[], object], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())


def test_a_silent_command_says_what_it_waits_for(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with report_waits(quiet_s=0.2):
        assert until(lambda: "still at work\n" in stream.getvalue(), 10)
        with waiting("evaluating"), waiting("loading") as wait:
            wait.now("with 1 of 4 shards done")
            wait.since -= 75
            assert until(lambda: "still evaluating: with 1 of 4 shards done, for 7" in stream.getvalue(), 10)
    assert sys.stderr is stream
    told = stream.getvalue()
    time.sleep(0.5)
    assert stream.getvalue() == told and describe() == "still at work"


def test_a_call_is_repeated_after_pauses_that_double():
    """The first pause, twice it, and then the longest one; the third error ends it where only two may pass."""
    at, told = [], []

    def call() -> int:
        at.append(time.monotonic())
        if len(at) < 4:
            raise ConnectionError(f"try {len(at)}")
        return len(at)

    found = call_again(
        call, 60, lambda error: True, pauses_s=(0.1, 0.25), before_pause=lambda error: told.append(str(error))
    )
    assert found == 4 and told == ["try 1", "try 2", "try 3"]
    pauses = [later - before for before, later in itertools.pairwise(at)]
    assert all(wanted <= pause < wanted + LATE_S for pause, wanted in zip(pauses, (0.1, 0.2, 0.25), strict=True))


def test_a_call_is_given_up():
    """At once where waiting does not help; and before a pause that would end after the time."""
    num, pauses_s = itertools.count(1), (1.0, 5.0)

    def call() -> None:
        raise ConnectionError(f"try {next(num)}")

    with pytest.raises(ConnectionError, match="try 1"):
        call_again(call, 60, lambda error: False, pauses_s=pauses_s)
    began = time.monotonic()
    with pytest.raises(ConnectionError, match="try 2"):
        call_again(call, 0.5, lambda error: True, pauses_s=pauses_s)
    assert time.monotonic() - began < 4  # the second pause is longer


def test_a_command_that_speaks_is_left_alone(monkeypatch, capsys):
    with report_waits(quiet_s=1.0):
        for number in range(15):  # to either stream
            print(number, file=sys.stdout if number % 2 else sys.stderr)
            time.sleep(0.1)
    assert "still" not in "".join(capsys.readouterr())


def test_what_another_thread_waits_for_is_told():
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        with waiting("fetching"):
            inside.set()
            go.wait(10)

    thread = threading.Thread(target=work)
    with waiting("training"):
        thread.start()
        assert inside.wait(10) and describe().startswith("still training: fetching, for ")
        go.set()
        thread.join(10)
        assert describe().startswith("still training, for ")


@pytest.mark.release
def test_a_run_whose_workers_hang_and_die_is_never_silent(make_tree, tmp_path):
    """One worker is stopped, and then killed; the other has to start anew with a third. Every pause is measured."""
    tree = make_tree(
        cluster={"num_workers": 2, "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")},
        schedule={"steps": 200},
        evaluation={"every_steps": 20},
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    code = f"import bft_ray.waits as w; w.QUIET_S = {QUIET_S}; from bft_ray.cli import main; raise SystemExit(main())"
    said: list[tuple[float, str]] = [(time.monotonic(), "")]
    command = [sys.executable, "-c", code, "train", str(config)]
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True) as driver:
        try:

            def listen() -> None:
                for line in driver.stdout or ():
                    said.append((time.monotonic(), line.rstrip()))

            listener = threading.Thread(target=listen)
            listener.start()

            def heard(text: str, after: int = 0) -> bool:
                return any(text in line for _, line in said[after:])

            def text() -> str:
                return "\n".join(line for _, line in said)

            assert (
                until(lambda: heard("checkpoint of step 20 saved") or driver.poll() is not None, 120)
                and driver.poll() is None
            ), "\n".join(line for _, line in said)
            (worker, *_) = train_workers(driver.pid)
            stopped = len(said)
            worker.suspend()
            assert until(lambda: heard("still training: ", stopped), QUIET_S + LATE_S), "\n".join(
                line for _, line in said
            )
            os.kill(worker.pid, signal.SIGKILL)
            assert until(lambda: heard("workers ended: a worker died", stopped), 60), text()
            assert until(lambda: heard("resumes after step"), 90), text()
            assert driver.wait(120) == 0, text()
        finally:
            driver.kill()
            listener.join(10)
    said.append((time.monotonic(), ""))
    pauses = [(later - at, text) for (at, text), (later, _) in itertools.pairwise(said)]
    assert max(pauses)[0] < QUIET_S + LATE_S, max(pauses)
