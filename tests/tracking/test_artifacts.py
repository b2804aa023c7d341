"""Artifacts that cannot be stored: found before a run begins, and holding nothing up where it happens later."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.tracking.artifacts import check_artifacts, location_of
from bft_ray.tracking.retry import is_forbidden
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.sender import MISSING
from bft_ray.tracking.server import connect

EXPERIMENT = "bft/test"


@pytest.fixture(scope="module")
def closed(tmp_path_factory) -> TrackingConfig:
    """A database whose experiment keeps its artifacts below what is a file: nobody can write there, root neither."""
    folder = tmp_path_factory.mktemp("closed")
    (folder / "file").write_text("")
    tracking = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", timeout_s=20.0)
    connect(tracking.uri).create_experiment(EXPERIMENT, artifact_location=str(folder / "file" / "artifacts"))
    return tracking


def test_a_place_that_cannot_be_written_is_found_before_a_run_begins(closed):
    with pytest.raises(BadInput) as caught:
        check_artifacts(closed, EXPERIMENT)
    text = str(caught.value)
    assert text.startswith("`tracking.uri` is 'sqlite:///") and "/file/artifacts (NotADirectoryError: " in text
    assert "a tracking server whose artifacts this machine can store: those of the experiment bft/test go to /" in text
    assert caught.value.remedy == (
        "Give this user the right to write there, take another tracking.experiment, or start the server with "
        "`--serve-artifacts --artifacts-destination PLACE`."
    )
    assert connect(closed.uri).search_runs([connect(closed.uri).get_experiment_by_name(EXPERIMENT).experiment_id]) == []


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/new/mlflow.db")
    (tmp_path / "new").mkdir()
    assert check_artifacts(tracking, EXPERIMENT) == f"{tmp_path}/new/mlartifacts/bft/test"
    assert location_of(tracking, "other") == f"{tmp_path}/new/mlartifacts/other"
    assert list((tmp_path / "new").iterdir()) == []


SLOW_DISK = """
import importlib.abc, sys, time

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "mlflow.store.tracking.sqlalchemy_store":
            time.sleep(8)

sys.meta_path.insert(0, Slow())
from bft_ray.config import TrackingConfig
from bft_ray.tracking.artifacts import check_artifacts
print(check_artifacts(TrackingConfig(uri=sys.argv[1], timeout_s=6.0), "bft/test"))
"""


@pytest.mark.slow
def test_what_takes_long_to_import_is_not_taken_for_a_store_that_is_silent(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    connect(uri)
    found = subprocess.run([sys.executable, "-c", SLOW_DISK, uri], capture_output=True, text=True, timeout=600)
    assert found.returncode == 0 and found.stdout == f"{tmp_path}/mlartifacts/bft/test\n", found.stderr


def test_tags_metrics_and_status_do_not_wait_for_artifacts(closed, tmp_path, caplog):
    (tmp_path / "export").mkdir()
    begun = time.monotonic()
    with Tracker.start(closed, EXPERIMENT, "run", {}, {}, keeper=False, spool=tmp_path / "spool") as tracker:
        tracker.log_text("a: 1", "config.yaml")
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.log_text("# card", "model_card.md")
        tracker.set_tags({"bft.step": "1"})
        assert tracker.log_model(tmp_path / "export", "bft-test") is None
    assert time.monotonic() - begun < 60
    assert sorted(tracker.missing) == ["config.yaml", "model_card.md", "the model bft-test"]
    run = connect(closed.uri).get_run(tracker.run_id)
    assert (
        run.info.status == "FINISHED" and run.data.metrics == {"train/loss": 1.0} and run.data.tags["bft.step"] == "1"
    )
    assert run.data.tags[MISSING] == "config.yaml, model_card.md, the model bft-test"
    assert caplog.text.count("cannot be stored (NotADirectoryError") == 1
    assert not list((tmp_path / "spool").iterdir())


def test_a_store_that_is_away_for_a_while_gets_its_artifacts_later(tmp_path, monkeypatch):
    """The status is set, and what is left goes with the next process that sends for this run."""
    from mlflow import MlflowClient

    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", timeout_s=2.0)
    real = MlflowClient.log_text
    monkeypatch.setattr(
        MlflowClient, "log_text", lambda *_: (_ for _ in ()).throw(ConnectionError("the store is away"))
    )
    tracker = Tracker.start(tracking, EXPERIMENT, "run", {}, {}, keeper=False, spool=tmp_path / "spool")
    tracker.log_text("a: 1", "config.yaml")
    tracker.log_metrics({"train/loss": 1.0}, 1)
    begun = time.monotonic()
    assert not tracker.finish("FINISHED") and time.monotonic() - begun < 60
    run = connect(tracking.uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"train/loss": 1.0} and MISSING not in run.data.tags
    monkeypatch.setattr(MlflowClient, "log_text", real)
    with Tracker.attach(tracking, tracker.run_id, tmp_path / "spool"):
        pass
    stored = Path(run.info.artifact_uri) / "config.yaml"
    assert stored.read_text() == "a: 1" and not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (PermissionError(13, "denied"), True),
        (OSError(30, "read-only file system"), True),
        (RuntimeError("An error occurred (AccessDenied) when calling the PutObject operation"), True),
        (ConnectionError("refused"), False),
        (OSError(28, "no space left"), False),
    ],
)
def test_what_is_not_tried_again(error, is_final):
    assert is_forbidden(error) is is_final
