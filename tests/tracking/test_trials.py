"""Nested runs of a study in a real MLflow store: each trial once, whatever dies, and with its true status."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from bft_ray.config import TrackingConfig
from bft_ray.tracking import delivery, outbox
from bft_ray.tracking.delivery import PARENT, TRIAL
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.sender import Sender
from bft_ray.tracking.server import connect, pages
from tests.support.paths import ROOT

PARAMS = {"loss.window": 128, "loss.epsilon": 0.05, "loss.weight_cap": None}
SERIES = [(step, {"train/nll": 3.0 / step, "train/grad_norm": float(step)}) for step in range(1, 21)]
BEGAN, ENDED_AT = 1_700_000_000.25, 1_700_000_060.5


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", timeout_s=30.0)


def drive(store, tmp_path, study: str | None = None) -> Tracker:
    """The driver of a new study, or the next one of a study."""
    spool = tmp_path / f"spool{time.time_ns()}"  # that of another machine: what an earlier driver left is not there
    return Tracker.start(store, "bft/test", "a study", {}, {}, run_id=study, keeper=False, spool=spool)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """40 metrics are more than one call takes."""
    monkeypatch.setitem(delivery._LIMITS, "metrics", 30)


def begin(own: Tracker, trial="search/0", **more) -> None:
    more = {"name": "w128 e0.05", "params": PARAMS, "tags": {}} | more
    own.log_trial(trial, "RUNNING", start_s=BEGAN, **more)


def end(own: Tracker, trial="search/0", status="FINISHED", series=SERIES[:5], **more) -> None:
    more = {"name": "w128 e0.05", "params": PARAMS, "tags": {"bft.part": "search"}} | more
    own.log_trial(trial, status, series=series, start_s=BEGAN, end_s=ENDED_AT, **more)


def runs_of(store, study) -> dict:
    """Trial -> its run; fails where a trial has two."""
    client = connect(store.uri)
    asked = f"tags.`{PARENT}` = '{study}'"
    runs = pages(client.search_runs, [client.get_run(study).info.experiment_id], asked)
    found = {run.data.tags[TRIAL]: run for run in runs}
    assert len(found) == len(runs), [run.data.tags for run in runs]
    return found


def history(store, run, metric) -> list[tuple[int, float]]:
    points = connect(store.uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


# ---- what is recorded


def test_a_trial_is_a_nested_run_with_its_true_times(store, tmp_path):
    own = drive(store, tmp_path)
    begin(own, tags={"bft.part": "search", "bft.status": "running"})
    assert own.flush(20)
    run = runs_of(store, own.run_id)["search/0"]
    assert run.info.status == "RUNNING"
    assert run.data.params == {key: str(value) for key, value in PARAMS.items()}  # seen while it runs
    assert own.logged_trials() == set()

    odd = [(6, {"train/nll": math.nan, "train/grad_norm": math.inf, "validation/nll": 2.5})]
    end(own, series=[*odd, *SERIES[:5]], tags={"bft.status": "complete", "at": "postgresql://u:s3cr3t@h/db"})
    assert own.flush(20) and own.logged_trials() == {"search/0"}
    run = runs_of(store, own.run_id)["search/0"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "w128 e0.05")
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_060_500)
    assert run.data.tags["bft.status"] == "complete" and run.data.tags["at"] == "postgresql://u:***@h/db"
    assert run.data.tags[PARENT] == own.run_id and run.data.tags["bft.part"] == "search"
    assert history(store, run, "train/nll") == [(step, 3.0 / step) for step in range(1, 6)]
    assert history(store, run, "train/grad_norm") == [(step, float(step)) for step in range(1, 6)]
    assert history(store, run, "validation/nll") == [(6, 2.5)]
    assert own.finish("FINISHED")


def test_a_trial_that_never_began_gets_its_run_at_the_end(store, tmp_path):
    own = drive(store, tmp_path)
    end(own, "search/1", "FAILED", series=[], reason="NonFinite: the loss\n of step 3 " + "x" * 1400)
    assert own.finish("FINISHED")
    run = runs_of(store, own.run_id)["search/1"]
    assert run.info.status == "FAILED" and run.info.start_time == 1_700_000_000_250
    assert run.data.params["loss.window"] == "128"
    assert run.data.tags["bft.reason"].startswith("NonFinite: the loss of step 3 xxx")
    assert len(run.data.tags["bft.reason"]) == 1000


def test_the_end_of_a_study_ends_what_is_still_running(store, tmp_path):
    own = drive(store, tmp_path)
    for number in range(3):
        begin(own, f"search/{number}", name=f"trial {number}")
    end(own, "search/1")
    assert own.finish("KILLED", "interrupted")
    assert own.finish("KILLED", "interrupted")  # again is nothing
    with pytest.raises(RuntimeError, match="closed"):
        end(own, "search/2")
    runs = runs_of(store, own.run_id)
    assert {trial: run.info.status for trial, run in runs.items()} == {
        "search/0": "KILLED",
        "search/1": "FINISHED",
        "search/2": "KILLED",
    }
    assert runs["search/0"].data.tags["bft.reason"] == "interrupted" and "bft.reason" not in runs["search/1"].data.tags

    late = drive(store, tmp_path, own.run_id)  # the next driver goes on with them
    assert late.logged_trials() == {"search/1"}
    begin(late, "search/0")
    begin(late, "search/1")
    assert late.flush(20)
    again = runs_of(store, own.run_id)
    assert again["search/0"].info.status == "RUNNING" and "bft.reason" not in again["search/0"].data.tags
    assert again["search/1"].info.status == "FINISHED"  # what is finished stays so
    end(late, "search/0")
    assert late.finish("KILLED", "interrupted")
    assert runs_of(store, own.run_id)["search/0"].info.status == "FINISHED"


def test_what_is_refused_costs_only_itself(store, tmp_path, caplog):
    own = drive(store, tmp_path)
    end(own, "search/0", series=[(1, {"a name with a ?": 1.0, "train/nll": 3.0}), (2, {"a name with a ?": 2.0})])
    end(own, "search/1")
    assert own.flush(20)
    connect(store.uri).delete_run(runs_of(store, own.run_id)["search/1"].info.run_id)
    end(own, "search/1", series=SERIES[:7])  # has ended: nothing to do
    begin(own, "search/2")
    assert own.flush(20)
    connect(store.uri).delete_run(runs_of(store, own.run_id)["search/2"].info.run_id)
    end(own, "search/2", series=SERIES[:1])
    end(own, "search/3")
    assert own.flush(20)
    assert "refuses one of the metrics, 'a name with a ?', of run" in caplog.text
    assert caplog.text.count("refuses the run of search/2: ") == 1 and caplog.text.count("refuses") == 2
    runs = runs_of(store, own.run_id)
    assert sorted(runs) == ["search/0", "search/3"] and runs["search/0"].info.status == "FINISHED"
    assert history(store, runs["search/0"], "train/nll") == [(1, 3.0)]
    assert history(store, runs["search/3"], "train/nll")[0] == (1, 3.0)


# ---- what dies


class Failing:
    """The client, of which one call goes wrong: before or after it did its work."""

    def __init__(self, client, at: int, after: bool, error: BaseException):
        self._client, self._left, self._after, self._error = client, at, after, error

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name == "log_batch" and not any(map(len, [*args[1:], *kwargs.values()])):
                return None  # reaches no server
            self._left -= 1
            if self._left == -1 and not self._after:
                raise self._error
            answer = getattr(self._client, name)(*args, **kwargs)
            if self._left == -1:
                raise self._error
            return answer

        return call

    @property
    def failed(self) -> bool:
        return self._left < 0


def settle(own: Tracker) -> None:
    """Wait until all is sent, or the thread is dead."""
    deadline = time.monotonic() + 20
    while not own.flush(0.02) and own._records._thread.is_alive():
        assert time.monotonic() < deadline


def _study_of_two(own: Tracker, logged: set[str]) -> None:
    """What a driver does; the next one repeats it, but for what is logged."""
    for trial in sorted({"search/0", "search/1"} - logged):
        begin(own, trial, tags={"bft.status": "running"})
        settle(own)
    if "search/0" not in logged:
        end(own, "search/0", series=SERIES, tags={"bft.status": "complete"})
    if "search/1" not in logged:
        end(own, "search/1", "FAILED", series=SERIES[:2], reason="NonFinite: loss")


def _check_study_of_two(store, study) -> None:
    runs = runs_of(store, study)
    assert {trial: run.info.status for trial, run in runs.items()} == {"search/0": "FINISHED", "search/1": "FAILED"}
    for trial, num_steps in (("search/0", 20), ("search/1", 2)):
        for metric in ("train/nll", "train/grad_norm"):
            expected = [(step, metrics[metric]) for step, metrics in SERIES[:num_steps]]
            assert history(store, runs[trial], metric) == expected, trial
        assert runs[trial].data.params == {key: str(value) for key, value in PARAMS.items()}
    assert "bft.reason" not in runs["search/0"].data.tags
    assert runs["search/1"].data.tags["bft.reason"] == "NonFinite: loss"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("heir", [False, True], ids=["left running", "taken over"])
def test_a_driver_that_dies_at_any_call_leaves_nothing_twice(store, tmp_path, after, heir):
    """The thread ends at its n-th call to the server, for all n; the next driver does the same again."""
    for at in range(100):
        dying = drive(store, tmp_path)
        settle(dying)
        client = dying._deliver.client = Failing(dying.client, at, after, SystemExit())
        _study_of_two(dying, set())
        settle(dying)
        if not client.failed:
            client._left = 1000
            assert at >= 8 and dying.finish("FINISHED")
            break
        dying.close(timeout_s=0)
        if heir:  # what `last_word` does
            late = Sender(store, dying.run_id, dying.spool, is_heir=True)
            late.log_end("KILLED", "killed?")
            assert late.close() and not list(dying.spool.iterdir())
            assert {run.info.status for run in runs_of(store, dying.run_id).values()} <= {
                "FINISHED",
                "FAILED",
                "KILLED",
            }
        late = drive(store, tmp_path, dying.run_id)
        _study_of_two(late, late.logged_trials())
        assert late.finish("FINISHED")
        _check_study_of_two(store, dying.run_id)
    else:
        raise AssertionError("it never came to an end")


@pytest.mark.parametrize("after", [False, True], ids=["not arrived", "answer lost"])
def test_a_call_that_fails_is_repeated_and_stores_nothing_twice(store, tmp_path, after, monkeypatch, caplog):
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr(outbox, "INTERVAL_S", 0.01)
    for at in range(100):
        own = drive(store, tmp_path)
        settle(own)
        client = own._deliver.client = Failing(own.client, at, after, MlflowException("away"))
        _study_of_two(own, set())
        settle(own)
        failed = client.failed
        client._left = 1000
        assert own.finish("FINISHED")
        _check_study_of_two(store, own.run_id)
        if not failed:
            assert at >= 8
            break
    assert caplog.text.count("does not answer (away)") == caplog.text.count("is back; everything is sent") == at


DRIVER = """
import sys, time, pathlib
from bft_ray.config import TrackingConfig
from bft_ray.tracking.run import Tracker
uri, spool = sys.argv[1:]
tracking = TrackingConfig(uri=uri)
with Tracker.start(tracking, "bft/test", "killed study", {}, {}, spool=pathlib.Path(spool)) as tracker:
    what = {"name": "", "params": {"a": 1}, "tags": {}, "start_s": time.time()}
    for number in range(3):
        tracker.log_trial(f"search/{number}", "RUNNING", **what)
    tracker.log_trial("search/1", "FINISHED", end_s=2.0, series=[(1, {"x": 1.0})], **what)
    assert tracker.flush(60)
    print(tracker.run_id, flush=True)
    time.sleep(300)
"""


def test_a_killed_driver_leaves_killed_children(store, tmp_path):
    connect(store.uri)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, store.uri, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    study = driver.stdout.readline().strip()
    assert {run.info.status for run in runs_of(store, study).values()} == {"RUNNING", "FINISHED"}
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(60)
    client = connect(store.uri)
    deadline = time.monotonic() + 60
    while client.get_run(study).info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    runs = runs_of(store, study)
    assert client.get_run(study).info.status == "KILLED"
    assert [runs[f"search/{n}"].info.status for n in range(3)] == ["KILLED", "FINISHED", "KILLED"]
    assert runs["search/0"].data.tags["bft.reason"] == "the process ended without a word (killed?)"
    assert Sender(store, study, tmp_path / "late").logged_trials() == {"search/1"}
