"""USR1, as Slurm sends it before the time limit: commands save at their present step, end with 75, and go on from there."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from bft_ray import saving
from bft_ray.study.records.database import Database
from bft_ray.study.records.segment import Run
from bft_ray.study.records.store import Store
from tests.support.small_study import write_space

LIMIT_S = 1800
RUNG = 10
STEPS = 600  # far more than are done until USR1


def test_a_command_without_anything_to_save_ends_as_by_sigterm():
    with pytest.raises(KeyboardInterrupt):
        saving.on_signal()
    with saving.listening():
        assert not saving.asked()
        saving.on_signal()
        assert saving.asked() and not saving.is_overdue()
    assert not saving.asked()


def command(folder: Path, *words: str) -> tuple[subprocess.Popen, Path]:
    """A command of bft-ray in a process of its own, and the file of what it says."""
    log = folder / "log"
    with log.open("w") as out:
        own = {"OMP_NUM_THREADS": "1", "HOME": str(folder)}
        words = (sys.executable, "-m", "bft_ray.cli", *words)
        return subprocess.Popen(words, cwd=folder, env=os.environ | own, stdout=out, stderr=out), log


def told_when(process: subprocess.Popen, log: Path, is_so) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def usr1(process: subprocess.Popen, log: Path) -> str:
    """Send it; returns what the command said by its end."""
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == saving.STATUS, log.read_text()[-3000:]
    text = log.read_text()
    assert "Traceback" not in text, text[-3000:]
    return text


def finished(process: subprocess.Popen, log: Path) -> str:
    assert process.wait(LIMIT_S) == 0, log.read_text()[-3000:]
    return log.read_text()


def runs(tree: dict) -> list:
    client = MlflowClient(tree["tracking"]["uri"])
    return client.search_runs([one.experiment_id for one in client.search_experiments()])


@pytest.mark.long
def test_a_training_saves_at_its_present_step_and_goes_on_from_there(make_tree, tmp_path):
    """Two workers, without any checkpoint that would be due: each step is done once."""
    tree = make_tree(
        cluster={"num_workers": 2, "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")},
        schedule={"steps": STEPS},
        evaluation={"every_steps": STEPS},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    process, log = command(tmp_path, "train", "config.yaml")
    told_when(process, log, lambda: f"step 60/{STEPS}" in log.read_text())
    said = usr1(process, log)
    step = int(
        re.search(
            r"^USR1: the checkpoint of step (\d+) is saved; the same command with name=\S+ resumes from the last checkpoint$",
            said,
            re.M,
        )[1]
    )
    assert 60 <= step < STEPS
    assert [path.name for path in (tmp_path / "results" / "run").glob("step-*")] == [f"step-{step:08d}"]
    (run,) = runs(tree)
    assert run.info.status == "KILLED" and run.data.tags["bft.reason"].startswith(
        f"USR1: the checkpoint of step {step}"
    )

    text = finished(*command(tmp_path, "train", "config.yaml"))
    assert f"resumes after step {step}:" in text
    (run,) = runs(tree)
    points = MlflowClient(tree["tracking"]["uri"]).get_metric_history(run.info.run_id, "train/nll")
    assert run.info.status == "FINISHED" and [point.step for point in points] == [*range(1, STEPS + 1)]


@pytest.mark.release
def test_a_study_saves_the_trial_that_runs_and_goes_on_from_there(make_tree, tmp_path):
    """In the middle between a rung and the end: not a step is done twice, and the value is that of an undisturbed study."""
    values = {}
    for name in ("calm", "asked"):
        folder = tmp_path / name
        folder.mkdir()
        tree = make_tree(
            cluster={"storage_path": str(folder / "results")}, tracking={"uri": f"sqlite:///{folder}/mlflow.db"}
        )
        del tree["name"]
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        window = {"loss.window": {"kind": "categorical", "values": [8]}}
        asha = {"kind": "asha", "grace_steps": RUNG, "reduction": 1000}
        budget = {"trials": 1, "steps": 2 * STEPS}
        write_space(folder, parameters=window, scheduler=asha, budget=budget, deterministic=True, baselines=[])
        words = ("search", "space.yaml", "--database", f"sqlite:///{folder}/studies.db", "--no-measure", "--no-profile")
        process, log = command(folder, *words)
        if name == "asked":
            told_when(process, log, lambda folder=folder: is_past_the_rung(folder))
            time.sleep(2.0)  # until the worker has the state again, and trains
            said = usr1(process, log)
            assert "USR1: the state of 1 trial is saved; the same command resumes the study" in said
            (step,) = (int(path.name.partition("-")[2]) for path in (folder / "results").rglob("state-*/step-*"))
            assert RUNG < step < 2 * STEPS
            process, log = command(folder, *words)
        finished(process, log)
        (record,) = records(folder)
        values[name] = record.status, record.num_steps, record.value
        (path,) = (folder / "results").rglob("run-*.json")
        run = Run.load(str(path))
        assert run is not None and len(run.train) == run.num_steps == 2 * STEPS
    assert values["asked"] == values["calm"]
    assert {run.info.status for run in runs(tree)} == {"FINISHED"}


def records(folder: Path) -> list:
    with Database(f"sqlite:///{folder}/studies.db") as database:
        return Store.find(database, "small/test").records()


def is_past_the_rung(folder: Path) -> bool:
    """Whether a worker has begun the segment after the rung."""
    with contextlib.suppress(Exception):  # not there yet
        return any(record.rungs and record.extra.get("since") for record in records(folder))
    return False
