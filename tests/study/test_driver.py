"""The end of a study, and what the same command does after it: trials are only pretended, all else is as it is."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bft_ray.cli import main
from bft_ray.config import ClusterConfig, Config, TrackingConfig
from bft_ray.errors import BadInput, DiskFull
from bft_ray.operate.studies import status_of
from bft_ray.places.addresses import sqlite_path
from bft_ray.study.conclude import Unrecorded, mostly_failed
from bft_ray.study.records.database import DEFAULT_DATABASE
from bft_ray.study.records.segment import Run
from bft_ray.tracking.registry import find_champion
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import artifact_root, connect
from tests.support.executor import METRIC, InProcess
from tests.support.paths import ROOT

COMPARES = {"confirmation": None, "baselines": []}


def at_a_closed_port(driver) -> Config:
    cluster = driver.base.cluster.model_copy(update={"address": "127.0.0.1:1"})
    return driver.base.model_copy(update={"cluster": cluster})


def test_a_cluster_that_is_away_is_told_before_anything_is_read(driver):
    driver.base = at_a_closed_port(driver)
    with pytest.raises(BadInput, match=r"nothing listens at 127\.0\.0\.1:1 \(connection refused\)"):
        driver.search(**COMPARES)
    assert not driver.told.getvalue()


@pytest.mark.slow
def test_a_larger_budget_goes_on_with_a_study_that_only_compares(driver):
    first = driver.search(**COMPARES)
    assert len(driver.records()) == 6 and driver.run().info.status == "FINISHED"
    experiment = connect(driver.base.tracking.uri).get_experiment(driver.run().info.experiment_id)
    assert experiment.tags["mlflow.experiment.primaryMetric.name"] == METRIC
    assert experiment.tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "True"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "standard error" in first.text and " over 30 items" in first.text  # from the files of the runs
    assert "note: no confirmation: " in driver.told.getvalue()
    assert "has no `confirmation`" in driver.run().data.tags["bft.no_champion"]
    assert driver.search(**COMPARES) == first and "is finished" in driver.told.getvalue()
    begun = driver.run().info.start_time
    here, driver.base = driver.base, at_a_closed_port(driver)
    assert driver.search(**COMPARES) == first  # what is finished is shown without the cluster
    driver.base = here

    more = driver.search(**COMPARES, budget={"trials": 9})
    assert len(driver.records()) == 9 and "is finished" not in driver.told.getvalue()
    assert (more.run_id, more.folder) == (first.run_id, first.folder) and driver.run().info.start_time == begun
    assert driver.notes()["result"]["text"] == more.text and driver.run().info.status == "FINISHED"
    later = driver.search(**COMPARES, budget={"trials": 9, "time_s": 1e6})
    assert "is finished" not in driver.told.getvalue() and later.text == more.text
    assert driver.search(**COMPARES, budget={"trials": 9, "time_s": 1e6}) == later


@pytest.mark.slow
def test_a_study_that_goes_on_is_not_shown_as_finished(driver):
    driver.search(**COMPARES)
    shown = []

    class Watched(InProcess):
        def run(self, controller, first, look):
            shown.append(status_of("small/test", None, [], driver.url))
            super().run(controller, first, look)

    driver.search(Watched(), **COMPARES, budget={"trials": 9})
    assert "driven by process" in shown[0] and "finished\n" not in shown[0].splitlines()[0]
    assert "small/test, finished" in status_of("small/test", None, [], driver.url)


@pytest.mark.slow
def test_another_budget_after_the_confirmation_is_refused(driver):
    driver.search()
    for budget, field in (
        ({"trials": 9}, "budget.trials"),
        ({"trials": 6, "time_s": 1e6}, "budget.time_s"),
        ({"trials": 6, "worker_hours": 9.0}, "budget.worker_hours"),
    ):
        with pytest.raises(BadInput, match=f"`{field}` is .* as before: the confirmation has begun.* another `name`"):
            driver.search(budget=budget)
    assert "is finished" not in driver.told.getvalue()
    assert driver.search().champion == "bft-test/1" and "is finished" in driver.told.getvalue()


@pytest.mark.slow
def test_a_study_of_which_most_failed_says_so(driver, monkeypatch, capsys):
    def worker(segment, plain):
        if segment.trial in ("search/0", "search/1"):
            return plain(segment)
        return iter([Run(status="failed", num_steps=3, metrics={3: {}}, reason="OutOfMemoryError: CUDA out of memory")])

    result = driver.search(InProcess(worker), **COMPARES)
    failed = [record for record in driver.records() if record.state == "failed" and not record.duplicate_of]
    ran = len(failed) + 2
    assert result.failed.startswith(f"{len(failed)} of {ran} trials failed, so the answer says little; ")
    assert result.failed.endswith(f"{len(failed)} of them: OutOfMemoryError: CUDA out of memory")
    run = driver.run()
    assert run.info.status == "FAILED" and run.data.tags["bft.reason"].startswith(f"{len(failed)} of {ran}")
    assert driver.search(**COMPARES) == result  # told again, and trained no more
    monkeypatch.setattr("bft_ray.operate.studies.run_study", lambda *_, **__: result)
    assert main(["search", "starter"]) == 1
    said = capsys.readouterr()
    assert result.text in said.out and said.err == f"error: {result.failed}\n"
    record = driver.records()[0]
    assert mostly_failed({"search": [record, replace(record, state="failed")]}) == ""  # half is not most


@pytest.mark.slow
def test_a_full_disk_is_no_end_of_a_study(driver):
    room = [4]

    def worker(segment, plain):
        room[0] -= 1
        if room[0] >= 0:
            return plain(segment)
        return iter([Run(status="stopped", num_steps=0, metrics={0: {}}, reason="the disk is full")])

    with pytest.raises(DiskFull, match="was stopped, and the study with it: the disk is full"):
        driver.search(InProcess(worker), **COMPARES)
    assert not [record for record in driver.records() if record.state in ("failed", "running")]
    run = driver.run()
    assert run.info.status == "FAILED" and "the disk is full" in run.data.tags["bft.reason"]
    (next(driver.folder.glob("**/search")) / "0009" / "state-0.part").mkdir(
        parents=True
    )  # of a worker that was killed with the driver
    result = driver.search(**COMPARES)
    assert driver.run().info.status == "FINISHED" and driver.run().info.run_id == run.info.run_id and not result.failed
    assert [record.state for record in driver.records()] == ["complete"] * 6
    assert not list(driver.folder.rglob("*.part"))


def test_make_clean_removes_what_a_quickstart_writes(tmp_path):
    """Records without the runs and files that they name would be worse than none."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    databases = [sqlite_path(url) for url in (DEFAULT_DATABASE, TrackingConfig().uri)]
    written = [path.name for path in databases if path] + ["bft_studies.db-journal", "mlflow.db-wal", "keep.txt"]
    for name in written:
        (tmp_path / name).touch()
    for folder in (ClusterConfig().storage_path, Path(artifact_root(TrackingConfig().uri) or "").name):
        (tmp_path / folder / "deep").mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Makefile", "keep.txt"]


class Killed(BaseException):
    """The end of the process, for all that the code under test can do."""


@pytest.mark.slow
def test_a_driver_killed_before_the_status_is_set_leaves_the_rest_to_the_next(driver, monkeypatch):
    def die(self, status, reason=None):
        if not self._records.ended:
            self.close(timeout_s=0)
            self._keeper.release(True)  # that of a real process would watch on
            self.client.set_terminated(self.run_id, "KILLED")  # and do this
            raise Killed
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "finish", die)
        with pytest.raises(Killed):
            driver.search()
    assert not driver.notes().get("result") and driver.run().info.status == "KILLED"
    result = driver.search()
    assert "is finished" not in driver.told.getvalue() and driver.run().info.status == "FINISHED"
    assert driver.notes()["result"]["champion"] == result.champion == "bft-test/1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("upload", "fails", "lacks"),
    [
        ("log_model", lambda *_, **__: None, "the champion's model (tracking.log_model=false registers it without)"),
        ("log_artifacts", lambda *_, **__: False, "the report"),
    ],
)
def test_what_mlflow_did_not_take_is_tried_again(driver, monkeypatch, upload, fails, lacks):
    with monkeypatch.context() as patch:
        patch.setattr(Tracker, upload, fails)
        with pytest.raises(Unrecorded) as caught:
            driver.search()
    assert f"MLflow lacks {lacks}. The same command records that" in str(caught.value)
    assert "could be better" in driver.told.getvalue() or "Settings:" in driver.told.getvalue()  # the answer is told
    run = driver.run()
    assert run.info.status == "FAILED" and lacks in run.data.tags["bft.reason"] and not driver.notes().get("result")
    if upload == "log_model":
        assert "model_id" not in driver.notes()
        with pytest.raises(BadInput, match="a domain with a champion"):
            find_champion(driver.base.tracking, "test")
    result = driver.search()
    assert driver.run().info.status == "FINISHED" and driver.notes()["model_id"] and result.champion == "bft-test/1"
    assert find_champion(driver.base.tracking, "test").run_id == result.run_id


@pytest.mark.slow
def test_a_registry_that_fails_is_tried_again(driver, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the server says no to postgresql://ann:s3cr3t@db/x")

    with monkeypatch.context() as patch:
        patch.setattr("bft_ray.study.conclude.register_champion", fail)
        with pytest.raises(Unrecorded, match=r"in the registry \(the server says no to postgresql://ann:\*\*\*@db/x\)"):
            driver.search()
    assert driver.search().champion == "bft-test/1"


@pytest.mark.slow
def test_a_finished_study_that_has_lost_its_files_says_so(driver, tmp_path):
    result = driver.search()
    mlflow, kept = tmp_path / "mlflow.db", tmp_path / "kept.db"
    mlflow.rename(kept)
    with pytest.raises(BadInput) as caught:
        driver.search()
    text = str(caught.value)
    assert f"its MLflow run {result.run_id} is not at sqlite:///{mlflow}" in text and "--database" in text
    assert "gone" not in text and not mlflow.exists()
    kept.rename(mlflow)
    assert driver.search() == result
    shutil.rmtree(result.folder)
    with pytest.raises(BadInput, match=f"its folder {result.folder} is gone"):
        driver.search()
    assert result.text in status_of("small/test", None, [], driver.url)  # as the remedy says
