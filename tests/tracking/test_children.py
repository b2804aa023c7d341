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
from bft_ray.tracking import children
from bft_ray.tracking.children import PARENT, TRIAL, Children, find_children
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import connect
from tests.support.paths import ROOT

PARAMS = {"loss.window": 128, "loss.epsilon": 0.05, "loss.weight_cap": None}
SERIES = [(step, {"train/nll": 3.0 / step, "train/grad_norm": float(step)}) for step in range(1, 21)]
BEGAN, ENDED_AT = 1_700_000_000.25, 1_700_000_060.5


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", timeout_s=30.0)


def begin_study(store, tmp_path) -> str:
    """Run id of a new study."""
    with Tracker.start(store, "bft/test", "a study", {}, {}, keeper=False, spool=tmp_path / "spool") as tracker:
        return tracker.run_id


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """40 metrics are more than one call takes."""
    monkeypatch.setattr(children, "_LAST", 30)


@pytest.fixture
def study(store, tmp_path) -> str:
    return begin_study(store, tmp_path)


def end(own: Children, trial="search/0", status="FINISHED", series=SERIES[:5], **more) -> None:
    more = {"name": "w128 e0.05", "params": PARAMS, "tags": {"bft.part": "search"}} | more
    own.end(trial, status, series=series, start_s=BEGAN, end_s=ENDED_AT, **more)


def runs_of(store, study) -> dict:
    """Trial -> its run; fails where a trial has two."""
    client = connect(store.uri)
    runs = find_children(client, client.get_run(study).info.experiment_id, study)
    found = {run.data.tags[TRIAL]: run for run in runs}
    assert len(found) == len(runs), [run.data.tags for run in runs]
    return found


def history(store, run, metric) -> list[tuple[int, float]]:
    points = connect(store.uri).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


# ---- what is recorded


def test_a_trial_is_a_nested_run_with_its_true_times(store, study):
    own = Children(store, study)
    own.begin("search/0", "w128 e0.05", PARAMS, {"bft.part": "search", "bft.status": "running"}, BEGAN)
    assert own.flush(20)
    run = runs_of(store, study)["search/0"]
    assert run.info.run_id == own.run_id("search/0") and run.info.status == "RUNNING"
    assert run.data.params == {key: str(value) for key, value in PARAMS.items()}  # seen while it runs
    assert not own.is_logged("search/0") and own.run_id("search/1") is None

    odd = [(6, {"train/nll": math.nan, "train/grad_norm": math.inf, "validation/nll": 2.5})]
    end(own, series=[*odd, *SERIES[:5]], tags={"bft.status": "complete", "at": "postgresql://u:s3cr3t@h/db"})
    assert own.flush(20) and own.is_logged("search/0")
    run = runs_of(store, study)["search/0"]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "w128 e0.05")
    assert (run.info.start_time, run.info.end_time) == (1_700_000_000_250, 1_700_000_060_500)
    assert run.data.tags["bft.status"] == "complete" and run.data.tags["at"] == "postgresql://u:***@h/db"
    assert run.data.tags[PARENT] == study and run.data.tags["bft.part"] == "search"
    assert history(store, run, "train/nll") == [(step, 3.0 / step) for step in range(1, 6)]
    assert history(store, run, "train/grad_norm") == [(step, float(step)) for step in range(1, 6)]
    assert history(store, run, "validation/nll") == [(6, 2.5)]
    assert own.close()


def test_a_trial_that_never_began_gets_its_run_at_the_end(store, study):
    own = Children(store, study)
    end(own, "search/1", "FAILED", series=[], reason="NonFinite: the loss\n of step 3 " + "x" * 1400)
    assert own.close()
    run = runs_of(store, study)["search/1"]
    assert run.info.status == "FAILED" and run.info.start_time == 1_700_000_000_250
    assert run.data.params["loss.window"] == "128"
    assert run.data.tags["bft.reason"].startswith("NonFinite: the loss of step 3 xxx")
    assert len(run.data.tags["bft.reason"]) == 1000


def test_close_ends_what_is_still_running(store, study):
    own = Children(store, study)
    for number in range(3):
        own.begin(f"search/{number}", f"trial {number}", PARAMS, {}, BEGAN)
    end(own, "search/1")
    assert own.close("KILLED", "interrupted")
    assert own.close()  # again is nothing
    with pytest.raises(RuntimeError, match="closed"):
        end(own, "search/2")
    runs = runs_of(store, study)
    assert {trial: run.info.status for trial, run in runs.items()} == {
        "search/0": "KILLED",
        "search/1": "FINISHED",
        "search/2": "KILLED",
    }
    assert runs["search/0"].data.tags["bft.reason"] == "interrupted" and "bft.reason" not in runs["search/1"].data.tags

    late = Children(store, study)  # the next driver goes on with them
    assert [late.is_logged(f"search/{number}") for number in range(3)] == [False, True, False]
    late.begin("search/0", "trial 0", PARAMS, {}, BEGAN)
    late.begin("search/1", "trial 1", PARAMS, {}, BEGAN)
    assert late.flush(20)
    again = runs_of(store, study)
    assert again["search/0"].info.status == "RUNNING" and "bft.reason" not in again["search/0"].data.tags
    assert again["search/1"].info.status == "FINISHED"  # what is finished stays so
    end(late, "search/0")
    assert late.close("KILLED", "interrupted")
    assert runs_of(store, study)["search/0"].info.status == "FINISHED"


def test_a_refused_metric_costs_only_its_trial_and_not_its_status(store, study, caplog):
    own = Children(store, study)
    end(own, "search/0", series=[(1, {"a name with a ?": 1.0})])
    end(own, "search/1")
    connect(store.uri).delete_run(_id_of(own, "search/1"))
    own.begin("search/1", "w128", PARAMS, {}, BEGAN)  # finished: nothing to do
    end(own, "search/2")
    assert own.close()
    assert "refuses the run of search/0" in caplog.text
    runs = runs_of(store, study)
    assert runs["search/0"].info.status == "FINISHED" and own.is_logged("search/0")
    assert history(store, runs["search/2"], "train/nll")[0] == (1, 3.0)


def _id_of(own: Children, trial: str) -> str:
    assert own.flush(20)
    run_id = own.run_id(trial)
    assert run_id is not None
    return run_id


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


def settle(own: Children) -> None:
    """Wait until all is sent, or the thread is dead."""
    deadline = time.monotonic() + 20
    while not own.flush(0.02) and own._thread.is_alive():
        assert time.monotonic() < deadline


def _study_of_two(own: Children) -> None:
    """What a driver does; the next one repeats it, but for what is logged."""
    for trial in ("search/0", "search/1"):
        if not own.is_logged(trial):
            own.begin(trial, "w128 e0.05", PARAMS, {"bft.status": "running"}, BEGAN)
            settle(own)
    if not own.is_logged("search/0"):
        end(own, "search/0", series=SERIES, tags={"bft.status": "complete"})
    if not own.is_logged("search/1"):
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
@pytest.mark.parametrize("kept", [False, True], ids=["left running", "set to KILLED"])
def test_a_driver_that_dies_at_any_call_leaves_nothing_twice(store, tmp_path, after, kept):
    """The thread ends at its n-th call to the server, for all n; the next driver does the same again."""
    for at in range(100):
        study = begin_study(store, tmp_path)
        dying = Children(store, study)
        client = dying._client = Failing(dying._client, at, after, SystemExit())
        _study_of_two(dying)
        settle(dying)
        if not client.failed:
            assert at >= 8 and dying.close()
            break
        if kept:
            client = connect(store.uri)
            children.end_children(client, client.get_run(study).info.experiment_id, study, "KILLED", "killed?")
        late = Children(store, study)
        _study_of_two(late)
        assert late.close()
        _check_study_of_two(store, study)
    else:
        raise AssertionError("it never came to an end")


@pytest.mark.parametrize("after", [False, True], ids=["not arrived", "answer lost"])
def test_a_call_that_fails_is_repeated_and_stores_nothing_twice(store, tmp_path, after, monkeypatch, caplog):
    from mlflow.exceptions import MlflowException

    monkeypatch.setattr(children, "_FIRST_PAUSE_S", 0.01)
    for at in range(100):
        study = begin_study(store, tmp_path)
        own = Children(store, study)
        client = own._client = Failing(own._client, at, after, MlflowException("away"))
        _study_of_two(own)
        assert own.close()
        _check_study_of_two(store, study)
        if not client.failed:
            assert at >= 8
            break
    assert caplog.text.count("does not answer (away)") == caplog.text.count("is back") == at


DRIVER = """
import sys, time, pathlib
from bft_ray.config import TrackingConfig
from bft_ray.tracking.children import Children
from bft_ray.tracking.run import Tracker
uri, spool = sys.argv[1:]
tracking = TrackingConfig(uri=uri)
with Tracker.start(tracking, "bft/test", "killed study", {}, {}, spool=pathlib.Path(spool)) as tracker:
    own = Children(tracking, tracker.run_id)
    for number in range(3):
        own.begin(f"search/{number}", f"trial {number}", {"a": 1}, {}, time.time())
    own.end("search/1", "FINISHED", name="", params={}, tags={}, start_s=1.0, end_s=2.0, series=[(1, {"x": 1.0})])
    assert own.flush(60)
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
    late = Children(store, study)
    assert [late.is_logged(f"search/{n}") for n in range(3)] == [False, True, False]
    late.close()
