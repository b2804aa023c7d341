"""A study of elastic trials goes on when a node dies in the middle of one, or is taken away with a notice, and when one comes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from cluster.local.raylets import start_raylet
from cluster.local.state import HOST, State
from tests.support.here import Here
from tests.support.local_cluster import SECOND, drain, head_and_node
from tests.support.paths import ROOT

NUM_STEPS, EVERY, STUDY_S = 240, 20, 900
METRIC = "validation/nll"


def write_study(
    folder: Path,
    tree: dict[str, Any],
    cluster: dict[str, Any],
    windows: Sequence[int] = (4, 16),
    steps: int = NUM_STEPS,
) -> Path:
    folder.mkdir()
    places = {"gpus_per_worker": 0, "cpus_per_worker": 1, "storage_path": str(folder / "results")}
    tree = tree | {"cluster": places | cluster, "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    space = {
        "name": "elastic",
        "domain": "test",
        "config": "config.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": list(windows)}},
        "fixed": {"loss.method": "bft_inverse"},
        "objective": {"metric": METRIC},
        "budget": {"steps": steps},
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


def wait_for(seen: Callable[[], Any], folder: Path, driver: subprocess.Popen) -> None:
    """Return once it has been seen; the study must not end before."""
    end = time.monotonic() + STUDY_S
    while not seen():
        assert driver.poll() is None and time.monotonic() < end, (folder / "log.txt").read_text()[-3000:]
        time.sleep(0.05)


def last_run(folder: Path) -> Run:
    """The run as it was when a trial has saved its last state."""
    found = sorted((folder / "results").rglob("state-0/step-*/run.json"))
    return next((run for path in reversed(found) if (run := Run.load(str(path)))), Run())


def kill_node(state: State) -> None:
    """Kill all processes of the node beside the head."""
    root = psutil.Process(state.processes[SECOND].pid)
    for process in [*root.children(recursive=True), root]:
        process.send_signal(signal.SIGKILL)


@contextmanager
def searching(state: State, path: Path) -> Iterator[subprocess.Popen]:
    """`bft-ray search` on the cluster; what it prints is in `log.txt` beside the space."""
    command = [sys.executable, "-m", "bft_ray.cli", "search", str(path), "--no-measure", "--no-profile"]
    command += ["--database", f"sqlite:///{path.parent}/studies.db"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_TOKEN"} | state.ray_client()
    env |= {"PYTHONPATH": str(ROOT)}
    with (path.parent / "log.txt").open("w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, cwd=path.parent, env=env)
        try:
            yield driver
        finally:
            driver.kill()


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
    with head_and_node() as state, searching(state, path) as driver:
        wait_for(lambda: last_run(moved).num_steps, moved, driver)
        kill_node(state)
        killed = time.monotonic()
        assert driver.wait(STUDY_S) == 0, (moved / "log.txt").read_text()[-3000:]
    print(f"the study ended {time.monotonic() - killed:.0f} s after the node was killed")

    undisturbed, ours = trials_of(calm), trials_of(moved)
    assert [record.attempts for record, _ in ours] == [2, 1] and not storage.folders_in(str(moved), "state-")
    for (want, calm_run), (record, run) in zip(undisturbed, ours, strict=True):
        assert (record.name, record.state, record.num_steps) == (want.name, want.state, want.num_steps)
        assert record.value == pytest.approx(want.value, rel=1e-5)
        losses = [[step["train/loss"] for step in each.train] for each in (run, calm_run)]
        assert len(losses[0]) == NUM_STEPS and losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.release
def test_a_trial_leaves_a_node_with_a_notice_and_grows_again(make_tree, tmp_path):
    """`ray drain-node` on one of two nodes, then another node: two workers, one, two. Each step is trained once, and no worker dies."""
    moved = tmp_path / "moved"
    tree = make_tree(
        optimizer={"learning_rate": 1e-4}, evaluation={"every_steps": None}, checkpoint={"every_steps": 25}
    )
    tree["data"] |= {"packing": True, "global_batch_size": 24}
    del tree["name"]
    cluster = {"address": "auto", "num_workers": [1, 2], "resize_interval_s": 2.0}
    path = write_study(moved, tree, cluster, windows=[4], steps=100_000)  # it is ended before
    said = (moved / "log.txt").read_text
    with head_and_node() as state, searching(state, path) as driver:
        wait_for(lambda: last_run(moved).num_steps, moved, driver)
        drain(state, 600)
        asked = time.monotonic()
        wait_for(lambda: "goes on with 1 worker\n" in said(), moved, driver)
        left = time.monotonic()
        kill_node(state)
        start_raylet(state, "ray-worker-2", {"address": f"{HOST}:{state.ports['gcs']}"}, 1, [], {})
        wait_for(lambda: "goes on with 2 workers\n" in said(), moved, driver)
        grown, saved_at = time.monotonic(), [int(step) for step in re.findall(r"saved after step (\d+)", said())]
        wait_for(lambda: last_run(moved).num_steps > saved_at[1], moved, driver)
        run = last_run(moved)
    print(
        f"with one worker {left - asked:.0f} s after the notice, with two {grown - left:.0f} s after a node was started"
    )
    assert len(saved_at) == 2 and 25 <= saved_at[0] <= saved_at[1] < run.num_steps == len(run.train), said()[-3000:]
    with Database(f"sqlite:///{moved}/studies.db") as database:
        (record,) = Store.find(database, "elastic/test").records()
    assert record.attempts == 3 and "breaks" not in record.extra
    assert "Traceback" not in said(), said()[-3000:]  # an actor that ends on purpose is no error to anybody
