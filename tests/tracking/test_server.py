"""A real `mlflow server` that goes away and comes back while a run writes to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.tracking.artifacts import check_artifacts
from bft_ray.tracking.delivery import PARENT, TRIAL, trials_of
from bft_ray.tracking.registry import find_champion, register_champion
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server, connect, page_of

START_S = 120.0


class Server:
    """`mlflow server` on a free port of 127.0.0.1, over an SQLite file."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                assert self.process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text()[-3000:])

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # the session that `start` made: the server and its worker
            self.process.wait(timeout=30)
            self.process = None


WATCH_S = 10.0
PROMPT_S = 5.0 + 5.0  # from the server's return to the end of a run; the second half for a loaded machine


@pytest.fixture(scope="module")
def one_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def server(one_server):
    """It runs, also where the test before has stopped it and failed."""
    if one_server.process is None:
        one_server.start()
    return one_server


def spooled(folder: Path, within_s: float) -> Path:
    """The one file that holds what waits. While the keeper takes over the records of an ended process, there are two."""
    deadline = time.monotonic() + within_s
    while len(files := list(folder.iterdir())) != 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    [file] = files
    return file


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect(uri).get_metric_history(run_id, metric)]


@pytest.mark.slow
def test_nothing_is_lost_or_stored_twice_when_the_server_restarts(server, tmp_path, caplog):
    tracking = TrackingConfig(uri=server.uri, timeout_s=60.0)
    check_server(tracking)
    spool, export = tmp_path / "spool", tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").write_bytes(os.urandom(300_000))
    tracker = Tracker.start(tracking, "bft/test", "restarts", {"seed": 1}, {}, spool=spool)
    slowest_s = 0.0
    with tracker:
        for step in range(300):
            if step == 100:
                server.stop()
            if step == 200:
                worker = Tracker.attach(tracking, tracker.run_id, spool)  # Ray restarts a worker meanwhile
                worker.log_metrics({"validation/nll": 2.0}, step)
            begun = time.perf_counter()
            tracker.log_metrics({"train/loss": step / 7, "train/nll": float(step)}, step)
            slowest_s = max(slowest_s, time.perf_counter() - begun)
            time.sleep(0.01)
        tracker.set_tags({"while": "away"})
        tracker.log_text("a: 1", "config.yaml")
        time.sleep(3.0)
        server.start()
        model_id = tracker.log_model(export, "bft-test")
        assert worker.close()
    assert slowest_s < 1.0  # training does not wait

    client = connect(server.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["while"] == "away"
    assert history(server.uri, tracker.run_id, "train/loss") == [(n, n / 7) for n in range(300)]
    assert history(server.uri, tracker.run_id, "train/nll") == [(n, float(n)) for n in range(300)]
    assert history(server.uri, tracker.run_id, "validation/nll") == [(200, 2.0)]
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["config.yaml"]
    [file] = client.list_logged_model_artifacts(model_id)
    assert (file.path, file.file_size) == ("model.safetensors", 300_000)
    assert not list(spool.iterdir())
    assert caplog.text.count("does not answer") >= 1 and "is back; everything is sent" in caplog.text


@pytest.mark.slow
def test_a_run_that_ends_while_the_server_is_away_is_ended_by_the_keeper(server, tmp_path):
    tracking = TrackingConfig(uri=server.uri, timeout_s=2.0)
    tracker = Tracker.start(tracking, "bft/test", "ends alone", {}, {}, spool=tmp_path / "spool")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    assert tracker.flush(30)
    server.stop()
    tracker.log_metrics({"train/loss": 2.0}, 2)
    begun = time.monotonic()
    assert tracker.finish("FAILED", "NonFinite: the loss of step 2 is not finite") is False
    assert time.monotonic() - begun < 60  # bounded
    spooled(tmp_path / "spool", within_s=20)
    assert tracker._keeper is not None
    keeper = psutil.Process(tracker._keeper._process.pid)
    time.sleep(4)  # its pauses have grown by then
    used, before = -1.0, sum(keeper.cpu_times()[:2])
    deadline = time.monotonic() + 60
    while before > used and time.monotonic() < deadline:  # it still imports, on a busy machine
        time.sleep(2)
        used, before = before, sum(keeper.cpu_times()[:2])
    time.sleep(WATCH_S)
    assert (
        sum(keeper.cpu_times()[:2]) - before <= 0.01 * WATCH_S
    )  # of a core, for up to an hour: 0.001 without other load
    server.start()
    client, back = connect(server.uri), time.monotonic()
    while client.get_run(tracker.run_id).info.status == "RUNNING" and time.monotonic() < back + 90:
        time.sleep(0.5)
    assert time.monotonic() - back <= PROMPT_S
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FAILED" and run.data.tags["bft.reason"].startswith("NonFinite")
    assert history(server.uri, tracker.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.slow
def test_a_password_in_the_address_is_stored_and_shown_nowhere(server, tmp_path, capfd):
    uri = server.uri.replace("http://", "http://ann:s3cr3t-pw@")
    tracking = TrackingConfig(uri=uri, timeout_s=30.0)
    check_server(tracking)
    params = {"tracking.uri": uri}
    tracker = Tracker.start(tracking, "bft/test", "secret", params, {}, spool=tmp_path / "spool")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    assert tracker.finish("FINISHED")
    run = connect(server.uri).get_run(tracker.run_id)
    assert run.data.params["tracking.uri"] == server.uri.replace("http://", "http://ann:***@")
    assert "s3cr3t-pw" not in json.dumps(run.to_dictionary())
    assert b"s3cr3t-pw" not in (server.folder / "mlflow.db").read_bytes()
    assert "s3cr3t-pw" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_the_artifacts_of_a_server_are_tried(server, tmp_path):
    tracking = TrackingConfig(uri=server.uri)
    assert check_artifacts(tracking, "not made yet").startswith("mlflow-artifacts:")
    connect(server.uri).create_experiment("elsewhere", artifact_location=str(tmp_path / "mine"))
    assert check_artifacts(tracking, "elsewhere") == str(tmp_path / "mine")  # this machine writes there itself
    (tmp_path / "file").write_text("")
    connect(server.uri).create_experiment("closed", artifact_location=str(tmp_path / "file" / "mine"))
    with pytest.raises(BadInput, match=r"the experiment closed go to .*file/mine \(NotADirectoryError"):
        check_artifacts(tracking, "closed")
    assert not any(path.name == "bft_ray_writable" for path in server.folder.rglob("*"))


def test_check_tells_another_web_server_from_a_tracking_server(server):
    with pytest.raises(BadInput, match="It answers 404"):
        check_server(TrackingConfig(uri=f"{server.uri}/elsewhere", timeout_s=10.0))


@pytest.mark.slow
def test_a_server_over_the_local_database_shows_its_artifacts(tmp_path):
    """What MLflow's own server over that database serves, started from another folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "README.md").write_text("card")
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    with Tracker.start(tracking, "bft/test", "local", {}, {}, spool=tmp_path, keeper=False) as tracker:
        tracker.log_text("a: 1", "config.yaml")
        model_id = tracker.log_model(tmp_path / "export", "bft-test")
    assert page_of(tracking.uri) == f"bft-ray ui --uri sqlite:///{tmp_path}/elsewhere/mlflow.db"
    server = Server(tmp_path / "elsewhere")
    server.start()
    try:
        address = f"{server.uri}/get-artifact?run_id={tracker.run_id}&path=config.yaml"
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert answer.read() == b"a: 1"
        path = f"ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/files?artifact_file_path=README.md"
        with urllib.request.urlopen(f"{server.uri}/{path}", timeout=20) as answer:
            assert answer.read() == b"card"
    finally:
        server.stop()


STUDY = """
import json, os, sys, pathlib
from bft_ray.config import TrackingConfig
from bft_ray.tracking.run import Tracker
uri, spool = sys.argv[1:]
tracker = Tracker.start(TrackingConfig(uri=uri), "bft/test", "study", {}, {}, spool=pathlib.Path(spool))
what = {"name": "w128", "params": {"loss.window": 128}, "tags": {}, "start_s": 1.0}
tracker.log_trial("search/0", "RUNNING", **what)
tracker.log_trial("search/1", "RUNNING", **what)
tracker.log_metrics({"best/nll": 1.0}, 1)
assert tracker.flush(60)
print(tracker.run_id, flush=True)
sys.stdin.readline()  # the server goes away
series = [(step, {"train/nll": 1 / step}) for step in range(1, 1301)]
tracker.log_trial("search/1", "FINISHED", end_s=2.0, series=series, **what)
tracker.log_trial("search/2", "FINISHED", end_s=2.0, series=series, **what)
tracker.log_metrics({"best/nll": 0.5}, 2)
tracker.log_text("a: 1", "config.yaml")
print("queued", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_driver_killed_during_an_outage_loses_nothing_and_doubles_nothing(server, tmp_path):
    """Its keeper takes over what waits, also of trials whose run the server has never seen."""
    uri, spool = server.uri.replace("http://", "http://ann:s3cr3t-pw@"), tmp_path / "spool"
    driver = subprocess.Popen(
        [sys.executable, "-c", STUDY, uri, str(spool)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdin is not None and driver.stdout is not None
    run_id = driver.stdout.readline().strip()
    server.stop()
    print(file=driver.stdin, flush=True)
    assert driver.stdout.readline().strip() == "queued"
    held = {file: file.read_bytes() for file in spool.iterdir()}
    assert sum(map(len, held.values())) > 10_000 and not any(b"s3cr3t-pw" in text for text in held.values())
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in held)
    print(file=driver.stdin, flush=True)
    assert driver.wait(60) == -signal.SIGKILL
    time.sleep(3.0)  # the keeper meets the outage as well
    server.start()
    client = connect(server.uri)
    deadline = time.monotonic() + 90
    while list(spool.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.5)
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.data.tags["bft.reason"].startswith("the process ended without a word")
    assert history(server.uri, run_id, "best/nll") == [(1, 1.0), (2, 0.5)]
    assert [file.path for file in client.list_artifacts(run_id)] == ["config.yaml"]
    trials = client.search_runs([run.info.experiment_id], f"tags.`{PARENT}` = '{run_id}'")
    assert {trial.data.tags[TRIAL]: trial.info.status for trial in trials} == {
        "search/0": "KILLED",
        "search/1": "FINISHED",
        "search/2": "FINISHED",
    }
    assert len(trials) == 3
    for trial in trials:
        steps = [] if trial.info.status == "KILLED" else [(step, 1 / step) for step in range(1, 1301)]
        assert history(server.uri, trial.info.run_id, "train/nll") == steps


@pytest.mark.slow
def test_a_study_goes_on_while_the_server_is_away_and_registers_its_champion(server, tmp_path, caplog):
    tracking = TrackingConfig(uri=server.uri, timeout_s=20.0)
    (tmp_path / "model.safetensors").write_bytes(os.urandom(1000))
    series = [(step, {"train/nll": 1 / step}) for step in range(1, 1301)]
    what = {"name": "w128", "params": {"loss.window": 128}, "tags": {}, "start_s": 1.0}
    with Tracker.start(tracking, "bft/test", "study", {}, {}, keeper=False, spool=tmp_path / "spool") as tracker:
        model_id = tracker.log_model(tmp_path, "bft-test")
        tracker.log_trial("search/0", "RUNNING", **what)
        assert tracker.flush(30)
        server.stop()
        begun = time.monotonic()
        tracker.log_trial("search/0", "FINISHED", end_s=2.0, series=series, **what)
        tracker.log_trial("search/1", "RUNNING", **what)
        assert time.monotonic() - begun < 15  # nobody waits for the 20 s
        assert not tracker.flush(3.0)
        server.start()
        assert tracker.flush(60) and tracker.logged_trials() == {"search/0"}
    client = connect(server.uri)
    trials = trials_of(client, tracker.run_id, client.get_run(tracker.run_id).info.experiment_id)
    assert {trial: run.status for trial, run in trials.items()} == {"search/0": "FINISHED", "search/1": "KILLED"}
    assert history(server.uri, trials["search/0"].run_id, "train/nll") == [(step, 1 / step) for step in range(1, 1301)]
    assert caplog.text.count("does not answer") == caplog.text.count("is back; everything is sent") == 1

    for _ in range(2):
        made = register_champion(
            tracking,
            "test",
            run_id=tracker.run_id,
            model_id=model_id,
            source=str(tmp_path),
            tags={"bft.study_id": "1", "at": "http://ann:s3cr3t-pw@host"},
            config_yaml="domain: test\n",
            description="beyond noise",
        )
    found = find_champion(tracking, "test")
    assert (
        (found.version, found.config_yaml, found.source)
        == ("1", "domain: test\n", str(tmp_path))
        == (
            made.version,
            made.config_yaml,
            made.source,
        )
    )
    version = client.get_model_version_by_alias("bft-test", "champion")
    assert (version.source, version.tags["at"]) == (f"models:/{model_id}", "http://ann:***@host")
    assert client.get_model_version_download_uri("bft-test", "1").endswith(f"{model_id}/artifacts")
