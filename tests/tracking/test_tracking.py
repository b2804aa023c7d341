"""Runs in a real SQLite store: what is recorded, what is refused, how runs end and go on."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.places.addresses import absolute_uri, redact
from bft_ray.tracking import outbox
from bft_ray.tracking.begin import MAY_CHANGE, RUN_KEY, new_params
from bft_ray.tracking.outbox import Outbox
from bft_ray.tracking.run import Tracker, outcome
from bft_ray.tracking.sender import Sender, shorten
from bft_ray.tracking.server import artifact_root, bounded, check_server, connect
from tests.support.paths import ROOT

SECRET = "s3cr3t-pw"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrackingConfig:
    """One database for the tests of this file: to create its tables takes seconds."""
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", timeout_s=30.0)


@pytest.fixture
def spool(tmp_path) -> Path:
    return tmp_path / "spool"


def start(store, spool, name="a run", params=None, keeper=False, **more) -> Tracker:
    tags = more.pop("tags", {})
    return Tracker.start(store, "bft/test", name, params or {}, tags, keeper=keeper, spool=spool, **more)


def history(store, run_id, metric) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect(store.uri).get_metric_history(run_id, metric)]


def wait_for(condition, timeout_s=60.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


# ---- addresses and secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:s3cr3t@db:5432/mlflow", "postgresql://ann:***@db:5432/mlflow"),
        ("postgresql+psycopg2://ann:p@ss:w@db/m", "postgresql+psycopg2://ann:***@db/m"),
        ("see http://ann:pw@host:5000/x and http://b:q@h", "see http://ann:***@host:5000/x and http://b:***@h"),
        ("https://token123@host/x", "https://***@host/x"),
        (
            "s3://bucket/x?access_key=AB&region=eu&X-Amz-Signature=99",
            "s3://bucket/x?access_key=***&region=eu&X-Amz-Signature=***",
        ),
        ("hf_abcdefghijklmnopqrstuv", "hf_***"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("sqlite:////a/b.db at 10:30, key=value", "sqlite:////a/b.db at 10:30, key=value"),
        ("http://localhost:5000/path", "http://localhost:5000/path"),
    ],
)
def test_redact_takes_secrets_and_nothing_else(text, expected):
    assert redact(text) == expected
    assert redact(redact(text)) == expected


def test_sqlite_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri(f"sqlite:///{tmp_path}/x.db") == f"sqlite:///{tmp_path}/x.db"
    assert absolute_uri("http://h:5000") == "http://h:5000"
    assert artifact_root("sqlite:///sub/mlflow.db") == f"{tmp_path}/sub/mlartifacts"
    assert artifact_root("http://h:5000") is None


def test_bounded_returns_raises_and_gives_up():
    assert bounded(5.0, int, "7") == 7
    assert bounded(5.0, lambda: None) is None
    with pytest.raises(ValueError):
        bounded(5.0, int, "x")
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        bounded(0.2, time.sleep, 30)
    assert time.monotonic() - begun < 25


# ---- the check


def refused(uri: str, timeout_s: float = 5.0) -> str:
    begun = time.monotonic()
    with pytest.raises(BadInput) as caught:
        check_server(TrackingConfig(uri=uri, timeout_s=timeout_s))
    assert time.monotonic() - begun < timeout_s + 5
    assert caught.value.field == "tracking.uri" and caught.value.remedy
    return str(caught.value)


def test_check_accepts_a_new_and_an_existing_database(store, tmp_path):
    check_server(TrackingConfig(uri=f"sqlite:///{tmp_path}/new/mlflow.db"))
    connect(store.uri)
    check_server(store)


@pytest.mark.parametrize(
    ("form", "body"),
    [("text/html", "<html>Sign in</html>"), ("application/json", '{"token": 1}'), ("application/json", "")],
)
def test_check_refuses_a_page_that_is_not_mlflow(form, body):
    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", form)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert "A page answers there that is not MLflow" in refused(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()


def test_check_refuses_a_server_that_is_not_there():
    text = refused("http://ann:s3cr3t-pw@127.0.0.1:9")
    assert (
        "a tracking server that answers" in text
        and "bft-ray ui" in text
        and "mlflow server" not in text
        and SECRET not in text
    )


def test_check_ends_in_time_when_a_server_hangs():
    import socket

    with socket.socket() as listener:  # accepts, and never says a word
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        text = refused(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=1.0)
    assert "a tracking server that answers" in text


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "ftp://host", "sqlite://", "sqlite:///:memory:"])
def test_check_refuses_other_schemes(uri):
    assert "sqlite:///mlflow.db" in refused(uri)


def test_check_refuses_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "can be written" in refused(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_check_refuses_a_file_that_is_no_database(tmp_path):
    (tmp_path / "mlflow.db").write_text("x" * 5000)
    assert "not a database" in refused(f"sqlite:///{tmp_path}/mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "x" * 5000


def test_check_names_a_missing_database_without_its_password():
    text = refused(f"postgresql://ann:{SECRET}@127.0.0.1:9/mlflow")
    assert SECRET not in text and ("pip install 'psycopg[binary]'" in text or "a database that answers" in text)


def test_two_processes_create_the_database_at_once(tmp_path):
    code = f"from bft_ray.tracking.server import connect; print(len(connect('sqlite:///{tmp_path}/m.db').search_experiments()))"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=540) for process in both]
    assert [out.strip() for out, _ in answers] == [b"1", b"1"], answers
    assert all(b"alembic" not in err and b"INFO" not in err for _, err in answers), answers


# ---- the outbox


class Post:
    """Where an outbox delivers to; away until it is opened."""

    def __init__(self) -> None:
        self.records: list[dict] = []
        self.sizes: list[int] = []
        self.is_open = threading.Event()

    def __call__(self, records: list[dict]) -> None:
        if not self.is_open.is_set():
            raise ConnectionError("away")
        self.records += records
        self.sizes.append(len(records))


def test_an_outbox_keeps_order_is_private_and_shrinks_when_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox, "_BATCH_BYTES", 4096)
    post = Post()
    own = Outbox(tmp_path, "r", post, "%s %s")
    for number in range(1000):
        own.queue({"n": number, "pad": "x" * 50})
    assert not own.wait(0.2) and own.path.stat().st_size > 50_000
    assert own.path.stat().st_mode & 0o777 == 0o600
    post.is_open.set()
    assert own.wait(20) and own.path.stat().st_size == 0
    assert [record["n"] for record in post.records] == list(range(1000)) and max(post.sizes) < 100
    own.queue({"n": "x" * 10_000})  # a line longer than a batch
    assert own.wait(20) and post.records[-1] == {"n": "x" * 10_000}
    own.end()
    assert not own.path.exists()


@pytest.mark.slow
def test_who_waits_for_a_server_that_is_away_asks_it_once_a_second(tmp_path):
    tries: list[float] = []

    def post(records: list) -> None:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise ConnectionError("away")

    own = Outbox(tmp_path, "r", post, "%s %s")
    own.queue({"tags": {}})
    assert own.wait(30)
    assert len(tries) == 4 and tries[-1] - tries[1] >= 1.9 * outbox.INTERVAL_S  # the second one may follow at once
    own.end()


def test_an_outbox_adopts_the_dead_and_leaves_the_living(tmp_path, caplog):
    code = f"""
import os, pathlib
from bft_ray.tracking import outbox
outbox.INTERVAL_S = 60.0
own = outbox.Outbox(pathlib.Path({str(tmp_path)!r}), "r", print, "")
own.queue({{"n": 1}}, {{"n": 2}})
os.write(own._handle, b'0badcafe {{"n": 3')  # killed in the middle of a line
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=180)
    [left] = tmp_path.iterdir()
    posts = [Post(), Post(), Post()]
    living, other = (
        Outbox(tmp_path / "later", "r", posts[0], "%s %s"),
        Outbox(tmp_path, "other", posts[1], "%s %s"),
    )
    living.queue({"n": 4})
    left.rename(tmp_path / "later" / left.name)
    heir = Outbox(tmp_path / "later", "r", posts[2], "%s %s")
    assert f"1 of 3 lines of {tmp_path / 'later' / left.name} are damaged: they are left out" in caplog.text
    heir.adopt()  # nothing more
    for post in posts:
        post.is_open.set()
    assert living.wait(20) and heir.wait(20) and other.empty
    assert posts[2].records == [{"n": 1, "inherited": True}, {"n": 2, "inherited": True}]
    assert posts[0].records == [{"n": 4}] and posts[1].records == []
    for own in (living, other, heir):
        own.end()
    assert not list((tmp_path / "later").iterdir())


def test_an_outbox_without_its_last_line_end_is_told(tmp_path, caplog):
    """Its last record is whole, and those after it may be gone."""
    dead = Outbox(tmp_path, "r", Post(), "%s %s")
    dead.queue({"n": 1}, {"n": 2}, {"n": 3})
    dead.end()
    [left] = tmp_path.glob("*.jsonl")
    left.write_bytes(b"".join(left.read_bytes().splitlines(keepends=True)[:2])[:-1])
    post = Post()
    post.is_open.set()
    heir = Outbox(tmp_path, "r", post, "%s %s")
    assert heir.wait(20) and [record["n"] for record in post.records] == [1, 2]
    assert f"{left} is cut off at its end: records after its 2 lines may be lost" in caplog.text
    heir.end()


def test_an_outbox_that_was_adopted_before_its_lock_has_another_file(tmp_path, monkeypatch):
    """For a moment a new file looks like that of a dead process. Another outbox takes it over right then, for real."""
    sent: list[dict] = []
    heir = Outbox(tmp_path, "run", sent.extend, "%s %s")
    plain, taken = os.open, []

    def open_and_lose(path, flags, *mode, **more):
        handle = plain(path, flags, *mode, **more)
        if flags & os.O_CREAT and not taken:
            taken.append(Path(path))
            heir.adopt()
        return handle

    monkeypatch.setattr(os, "open", open_and_lose)
    own = Outbox(tmp_path, "run", sent.extend, "%s %s")
    assert not taken[0].exists() and own.path != taken[0] and own.path.exists()
    own.queue({"step": 1})
    assert own.wait(10) and sent == [{"step": 1}]
    heir.end()
    own.end()


def test_what_cannot_be_adopted_stays_where_it_is(tmp_path, monkeypatch, caplog):
    """On a disk that is full."""
    post = Post()
    dead = Outbox(tmp_path, "r", post, "%s %s")
    dead.queue({"n": 1})
    dead.end()
    heir = Outbox(tmp_path / "new", "r", post, "%s %s")
    (tmp_path / "new" / dead.path.name).hardlink_to(dead.path)
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        heir.adopt()
        heir.queue({"n": 2})
    assert "records of run r are lost" in caplog.text and heir.empty
    assert (tmp_path / "new" / dead.path.name).exists()
    post.is_open.set()
    heir.adopt()
    assert heir.wait(20) and post.records == [{"n": 1, "inherited": True}]
    heir.end()


# ---- a run


def test_a_run_holds_what_was_logged(store, spool, tmp_path):
    export = tmp_path / "export"
    export.mkdir()
    (export / "model.safetensors").write_bytes(b"weights")
    (export / "README.md").write_text("card")
    params = {"loss.window": 256, "lora": None, "long": "y" * 7000, "uri": f"postgresql://u:{SECRET}@h/db"}
    with start(store, spool, params=params, tags={"bft.kind": "train"}) as tracker:
        for step in range(1, 6):
            tracker.log_metrics({"train/loss": 1.0 / step, "train/nll": float(step)}, step)
        tracker.log_text(f"see http://u:{SECRET}@h", "config.yaml")
        tracker.log_dataset("train", "data/train.jsonl", "ab" * 32, 1000, "training")
        assert tracker.log_artifacts(export, "files")
        model_id = tracker.log_model(export, "bft-test", metrics={"train/nll": 5.0}, step=5)
        tracker.set_tags({"source": f"http://u:{SECRET}@h"})

    client = connect(store.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.end_time and run.info.run_name == "a run"
    assert run.data.params["loss.window"] == "256" and run.data.params["lora"] == "None"
    assert run.data.params["uri"] == "postgresql://u:***@h/db" and run.data.tags["source"] == "http://u:***@h"
    assert run.data.params["long"].startswith("yyy") and "params/long.txt" in run.data.params["long"]
    assert history(store, run.info.run_id, "train/loss") == [(n, 1.0 / n) for n in range(1, 6)]
    assert history(store, run.info.run_id, "train/nll") == [(n, float(n)) for n in range(1, 6)]  # not twice

    [dataset] = run.inputs.dataset_inputs
    assert dataset.dataset.digest == ("ab" * 32)[:36] and json.loads(dataset.dataset.profile)["num_rows"] == 1000
    assert [(tag.key, tag.value) for tag in dataset.tags] == [("mlflow.data.context", "training")]

    assert [output.model_id for output in run.outputs.model_outputs] == [model_id]
    model = client.get_logged_model(model_id)
    assert str(model.status) == "READY" and model.source_run_id == run.info.run_id and model.name == "bft-test"
    assert [(m.key, m.value) for m in model.metrics] == [("train/nll", 5.0)]
    assert {file.path for file in client.list_logged_model_artifacts(model_id)} == {"model.safetensors", "README.md"}
    assert [found.model_id for found in client.search_logged_models([run.info.experiment_id])] == [model_id]
    client.create_registered_model("bft-test")
    version = client.create_model_version("bft-test", model.artifact_location, run.info.run_id, model_id=model_id)
    client.set_registered_model_alias("bft-test", "champion", version.version)
    assert client.get_model_version_by_alias("bft-test", "champion").run_id == run.info.run_id

    database = Path(store.uri.removeprefix("sqlite:///"))
    assert run.info.artifact_uri.startswith(str(database.parent / "mlartifacts" / "bft" / "test"))
    stored = [path for path in (database.parent / "mlartifacts").rglob("*") if path.is_file()]
    assert {path.name for path in stored} >= {"config.yaml", "long.txt", "model.safetensors", "README.md"}
    assert any(path.name == "long.txt" and path.read_text() == "y" * 7000 for path in stored)
    assert not any(path.suffix in (".pkl", ".bin", ".pt") for path in stored)
    assert all(SECRET.encode() not in path.read_bytes() for path in [*stored, database])
    assert not list(spool.iterdir())


def test_a_worker_attaches_and_only_closes(store, spool):
    driver = start(store, spool)
    with pytest.raises(RuntimeError), Tracker.attach(driver.tracking, driver.run_id, spool) as worker:
        worker.log_metrics({"train/loss": 0.5}, 1)
        raise RuntimeError("a worker's end is not the run's end")
    assert history(store, driver.run_id, "train/loss") == [(1, 0.5)]
    assert connect(store.uri).get_run(driver.run_id).info.status == "RUNNING"
    driver.finish("FINISHED")
    assert connect(store.uri).get_run(driver.run_id).info.status == "FINISHED"


def test_resumption_goes_on_with_the_run_and_repeats_no_step(store, spool):
    key = {RUN_KEY: "k1"}
    first = start(store, spool, "resumed", {"seed": 1, "cluster.num_workers": 2}, tags=key)
    for step in range(1, 8):
        first.log_metrics({"train/loss": float(step)}, step)
    first.log_metrics({"validation/nll": 4.0}, 4)
    first.finish("FAILED", "OutOfMemoryError: no memory")
    held = connect(store.uri).get_run(first.run_id)
    assert held.info.status == "FAILED" and held.data.tags["bft.reason"] == "OutOfMemoryError: no memory"

    second = start(store, spool, "resumed", {"seed": 1, "cluster.num_workers": 4, "new": 1}, tags=key)
    assert second.run_id == first.run_id and second.resumed and not first.resumed
    worker = Tracker.attach(second.tracking, second.run_id, spool)
    for step in range(5, 11):  # from the checkpoint of step 4
        worker.log_metrics({"train/loss": float(step)}, step)
        worker.log_metrics({"validation/nll": float(step)}, step)
    assert worker.close() and second.finish("FINISHED")
    assert history(store, first.run_id, "train/loss") == [(n, float(n)) for n in range(1, 11)]
    assert history(store, first.run_id, "validation/nll") == [(n, float(n)) for n in range(4, 11)]
    held = connect(store.uri).get_run(first.run_id)
    assert held.info.status == "FINISHED" and "bft.reason" not in held.data.tags
    assert held.data.params == {"seed": "1", "cluster.num_workers": "2", "new": "1"}
    assert held.data.tags["bft.now.cluster.num_workers"] == "4"

    third = start(store, spool, "resumed", {"seed": 1}, tags=key)  # the last one has FINISHED
    assert third.run_id != first.run_id and not third.resumed
    third.finish("FINISHED")
    again = start(store, spool, "resumed", {"seed": 1}, run_id=first.run_id)  # unless it is asked for
    assert again.run_id == first.run_id
    again.finish("FINISHED")


def test_resumption_refuses_a_changed_param_and_an_unknown_run(store, spool):
    key = {RUN_KEY: "k2"}
    first = start(store, spool, "changed", {"loss.window": 256}, tags=key)
    first.finish("KILLED")
    with pytest.raises(BadInput, match=r"`loss.window` is '64', but must be '256', because run .* began so"):
        start(store, spool, "changed", {"loss.window": 64}, tags=key)
    assert connect(store.uri).get_run(first.run_id).info.status == "KILLED"  # untouched
    with pytest.raises(BadInput, match="run_id"):
        start(store, spool, "changed", run_id="0" * 32)


def test_new_params_is_a_pure_decision():
    held = {"a": "1", "cluster.x": "2", "long": "z"}
    new = new_params({"a": 1, "b": True, "cluster.x": 3}, held, "r")
    assert new.values == {"b": "True"} and new.changed == {"bft.now.cluster.x": "3"} and new.texts == {}
    assert all(not "loss.window".startswith(prefix) for prefix in MAY_CHANGE)
    long = new_params({"c": "v" * 6001}, {})
    assert list(long.texts) == ["params/c.txt"] and len(long.values["c"]) < 6000
    assert new_params({"c": "v" * 6001}, long.values, "r") == ({}, {}, {})  # the same again is no change


def test_what_a_killed_process_left_is_sent_by_the_next_one(store, spool):
    """Three attempts from a checkpoint each, two of them killed before anything was sent: each step once."""
    driver = start(store, spool, "killed worker")
    code = """
import os, sys, pathlib
from bft_ray.config import TrackingConfig
from bft_ray.tracking import outbox
outbox.INTERVAL_S = 60.0  # the thread never gets to send
from bft_ray.tracking.run import Tracker
uri, run_id, spool, begin, end = sys.argv[1:]
tracker = Tracker.attach(TrackingConfig(uri=uri), run_id, pathlib.Path(spool))
for step in range(int(begin), int(end)):
    tracker.log_metrics({"train/loss": float(step)}, step)
os.kill(os.getpid(), 9)
"""
    for begin, end in ((1, 6), (4, 9)):
        arguments = [store.uri, driver.run_id, str(spool), str(begin), str(end)]
        subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, timeout=180)
    assert history(store, driver.run_id, "train/loss") == []
    with Tracker.attach(driver.tracking, driver.run_id, spool) as last:
        for step in range(7, 11):
            last.log_metrics({"train/loss": float(step)}, step)
    assert history(store, driver.run_id, "train/loss") == [(n, float(n)) for n in range(1, 11)]
    driver.finish("FINISHED")
    assert not list(spool.iterdir())


def test_a_slow_artifact_holds_up_no_metrics(store, spool, monkeypatch):
    from mlflow import MlflowClient

    real, stored = MlflowClient.log_text, threading.Event()
    monkeypatch.setattr(MlflowClient, "log_text", lambda *a: stored.wait(60) and real(*a))
    tracker = start(store, spool)
    tracker.log_text("a: 1", "config.yaml")
    assert not tracker.flush(2.0)
    for step in range(1, 4):
        tracker.log_metrics({"train/loss": float(step)}, step)
    assert wait_for(lambda: len(history(store, tracker.run_id, "train/loss")) == 3, 20) and not tracker.flush(0)
    stored.set()
    assert tracker.finish("FINISHED")
    assert [file.path for file in connect(store.uri).list_artifacts(tracker.run_id)] == ["config.yaml"]


def test_a_status_that_a_dead_process_left_does_not_end_a_run_that_goes_on(store, spool, monkeypatch):
    monkeypatch.setattr(outbox, "INTERVAL_S", 60.0)
    first = start(store, spool, "goes on")
    first.log_metrics({"train/loss": 1.0}, 1)
    first.log_end("FAILED", "NonFinite: loss")
    first.close(timeout_s=0)
    monkeypatch.setattr(outbox, "INTERVAL_S", 1.0)
    second = start(store, spool, "goes on", run_id=first.run_id)
    assert second.flush(20)
    run = connect(store.uri).get_run(first.run_id)
    assert run.info.status == "RUNNING" and "bft.reason" not in run.data.tags
    assert history(store, first.run_id, "train/loss") == [(1, 1.0)]
    late = Sender(store, first.run_id, spool, is_heir=True)  # a keeper that comes when the run goes on already
    late.log_end("KILLED", "killed?")
    assert late.close() and connect(store.uri).get_run(first.run_id).info.status == "KILLED"
    second.finish("FINISHED")
    assert connect(store.uri).get_run(first.run_id).info.status == "FINISHED"


def test_a_bad_metric_name_costs_only_itself(store, spool, caplog):
    tracker = start(store, spool)
    tracker.log_metrics({"good": 1.0}, 1)
    tracker.log_metrics({"bad\nname": 1.0}, 1)
    tracker.log_metrics({"good": 2.0}, 2)
    assert tracker.finish("FINISHED")
    assert history(store, tracker.run_id, "good") == [(1, 1.0), (2, 2.0)]
    assert "refuses one of the metrics, 'bad\\nname', of run" in caplog.text


def test_log_metrics_is_quick(store, spool):
    tracker = start(store, spool)
    begun = time.perf_counter()
    for step in range(500):
        tracker.log_metrics({f"m{n}": float(n) for n in range(12)}, step)
    each_s = (time.perf_counter() - begun) / 500
    assert tracker.finish("FINISHED") and each_s < 0.01
    assert len(history(store, tracker.run_id, "m3")) == 500


# ---- how runs end


def test_exceptions_become_the_status_and_its_reason():
    assert outcome(None) == ("FINISHED", None) and outcome(SystemExit(0)) == ("FINISHED", None)
    assert outcome(ValueError("no\nmore")) == ("FAILED", "ValueError: no")
    assert outcome(SystemExit(3)) == ("FAILED", "exit status 3")
    assert outcome(SystemExit(143))[0] == outcome(SystemExit(15))[0] == outcome(KeyboardInterrupt())[0] == "KILLED"
    assert len(shorten("x" * 3000)) == 1000 and SECRET not in shorten(f"failed\nat http://u:{SECRET}@h")


def test_an_exception_makes_the_run_failed(store, spool):
    with pytest.raises(ValueError), start(store, spool, "fails") as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
        raise ValueError(f"`x` is 1, but must be 2\nand at http://u:{SECRET}@h more")
    run = connect(store.uri).get_run(tracker.run_id)
    assert run.info.status == "FAILED" and run.data.tags["bft.reason"] == "ValueError: `x` is 1, but must be 2"
    assert history(store, tracker.run_id, "train/loss") == [(1, 1.0)]


DRIVER = """
import sys, time, pathlib
from bft_ray.config import TrackingConfig
from bft_ray.tracking.run import Tracker
uri, spool = sys.argv[1:]
tracker = Tracker.start(TrackingConfig(uri=uri), "bft/test", "a driver", {}, {}, spool=pathlib.Path(spool))
with tracker:
    tracker.log_metrics({"train/loss": 1.0}, 1)
    print(tracker.run_id, tracker._keeper._process.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (signal.SIGKILL, "the process ended without a word (killed?)"),
        (signal.SIGTERM, "terminated (SIGTERM)"),
        (signal.SIGINT, "interrupted (Ctrl-C or SIGTERM)"),
    ],
)
def test_a_killed_driver_leaves_a_killed_run(store, spool, sent, reason):
    connect(store.uri)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, store.uri, str(spool)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert driver.stdout is not None
    run_id, keeper = driver.stdout.readline().split()
    assert wait_for(lambda: Path(f"/proc/{keeper}/cmdline").read_bytes(), 10)  # it has begun
    arguments = Path(f"/proc/{keeper}/cmdline").read_bytes().split(b"\0")
    assert b"bft_ray.tracking.last_word" in arguments and not any(b"sqlite" in word for word in arguments)
    assert os.getsid(int(keeper)) == int(keeper)
    os.kill(driver.pid, sent)
    driver.wait(timeout=180)
    client = connect(store.uri)
    begun = time.monotonic()
    assert wait_for(lambda: client.get_run(run_id).info.status == "KILLED", 60)
    assert wait_for(lambda: client.get_run(run_id).data.tags.get("bft.reason") == reason, 5)
    assert history(store, run_id, "train/loss") == [(1, 1.0)]
    assert wait_for(lambda: not Path(f"/proc/{keeper}").exists() or "Z" in _state(keeper), 30)
    assert time.monotonic() - begun < 60


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_keeper_goes_when_all_is_done(store, spool):
    tracker = start(store, spool, keeper=True)
    assert tracker._keeper is not None
    process = tracker._keeper._process
    assert process.poll() is None
    tracker.finish("FINISHED")
    assert process.wait(timeout=10) == 0
    assert connect(store.uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_no_password_gets_into_the_database(store, spool):
    """Once more over everything that the tests of this file have written."""
    path = store.uri.removeprefix("sqlite:///")
    assert SECRET not in "\n".join(sqlite3.connect(path).iterdump())


@pytest.mark.slow
def test_a_new_database_is_whole_or_not_there(tmp_path):
    """Killed while MLflow makes its tables, which takes seconds: the next process finds no half of them, and makes all."""
    path = tmp_path / "mlflow.db"
    code = f"from bft_ray.tracking.server import connect; connect('sqlite:///{path}')"
    maker = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not any(made.stat().st_size > 50_000 for made in tmp_path.glob("bft_ray_mlflow_*/mlflow.db")):
        assert maker.poll() is None and time.monotonic() < end, "never seen in the middle of its work"
        time.sleep(0.005)
    maker.kill()
    maker.wait(10)
    assert not path.exists()
    client = connect(f"sqlite:///{path}")
    assert client.get_experiment("0").name == "Default"
    assert [left.name for left in tmp_path.iterdir()] == ["mlflow.db"] and path.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_database_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert not list(tmp_path.iterdir())
