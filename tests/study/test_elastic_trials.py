"""A study of elastic trials goes on when a node dies in the middle of one: the same records, to rounding."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from bft_ray.places import storage
from bft_ray.space.load import load_study
from bft_ray.study.driver import search
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Run, RunFiles
from bft_ray.study.records.store import Store
from cluster.local.state import State
from tests.support.here import Here
from tests.support.local_cluster import SECOND, head_and_node
from tests.support.paths import ROOT

NUM_STEPS, EVERY, STUDY_S = 240, 20, 900
METRIC = "validation/nll"


def write_study(folder: Path, tree: dict[str, Any], cluster: dict[str, Any]) -> Path:
    folder.mkdir()
    places = {"gpus_per_worker": 0, "cpus_per_worker": 1, "storage_path": str(folder / "results")}
    tree = tree | {"cluster": places | cluster, "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    space = {
        "name": "elastic",
        "domain": "test",
        "config": "config.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": [4, 16]}},
        "fixed": {"loss.method": "bft_inverse"},
        "objective": {"metric": METRIC},
        "budget": {"steps": NUM_STEPS},
        "sampler": {"kind": "grid"},
        "scheduler": {"kind": "none"},
        "baselines": [],
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def trials_of(folder: Path) -> list[tuple[TrialRecord, Run]]:
    """Records of the search, with what their runs have written."""
    with Database(f"sqlite:///{folder}/studies.db") as database:
        store = Store.find(database, "elastic/test")
        found, study = [], store.notes()["id"]
        for record in store.records():
            place = folder / "results" / "studies" / "test" / f"elastic-{study[:8]}" / "search" / f"{record.number:04d}"
            run = Run.of(study, RunFiles(str(place), record.seeds[0]))
            assert run is not None
            found.append((record, run))
        return found


def kill_in_mid_trial(state: State, folder: Path, driver: subprocess.Popen) -> None:
    """Kill all processes of a node once the first trial has saved a state."""
    end = time.monotonic() + STUDY_S
    while not list((folder / "results").rglob("state-0/step-*/run.json")):
        assert driver.poll() is None and time.monotonic() < end, (folder / "log.txt").read_text()[-3000:]
        time.sleep(0.05)
    root = psutil.Process(state.processes[SECOND].pid)
    for process in [*root.children(recursive=True), root]:
        process.send_signal(signal.SIGKILL)


@pytest.mark.release
def test_a_node_dies_in_the_middle_of_a_trial(make_tree, tmp_path):
    tree = make_tree(
        optimizer={"learning_rate": 1e-4}, evaluation={"every_steps": None}, checkpoint={"every_steps": EVERY}
    )
    tree["data"] |= {"packing": True, "global_batch_size": 24}
    del tree["name"]
    calm, moved = tmp_path / "calm", tmp_path / "moved"
    space, base = load_study(str(write_study(calm, tree, {"num_workers": 1})))
    search(space, base, f"sqlite:///{calm}/studies.db", profile=False, measure=False, place=Here())

    path = write_study(moved, tree, {"address": "auto", "num_workers": [1, 2]})
    command = [sys.executable, "-m", "bft_ray.cli", "search", str(path), "--no-measure", "--no-profile"]
    command += ["--database", f"sqlite:///{moved}/studies.db"]
    with head_and_node() as state, (moved / "log.txt").open("w") as log:
        env = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | state.ray_client()
        driver = subprocess.Popen(command, stdout=log, stderr=log, cwd=moved, env=env | {"PYTHONPATH": str(ROOT)})
        try:
            kill_in_mid_trial(state, moved, driver)
            killed = time.monotonic()
            assert driver.wait(STUDY_S) == 0, (moved / "log.txt").read_text()[-3000:]
        finally:
            driver.kill()
    print(f"the study ended {time.monotonic() - killed:.0f} s after the node was killed")

    undisturbed, ours = trials_of(calm), trials_of(moved)
    assert [record.attempts for record, _ in ours] == [2, 1] and not storage.folders_in(str(moved), "state-")
    for (want, calm_run), (record, run) in zip(undisturbed, ours, strict=True):
        assert (record.name, record.state, record.num_steps) == (want.name, want.state, want.num_steps)
        assert record.value == pytest.approx(want.value, rel=1e-5)
        losses = [[step["train/loss"] for step in each.train] for each in (run, calm_run)]
        assert len(losses[0]) == NUM_STEPS and losses[0] == pytest.approx(losses[1], rel=1e-5)
