"""Whole commands on an object store of S3's protocol: what they write there, what damage does, and who resumes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load

from bft_ray.cli import main
from bft_ray.config import make_config
from bft_ray.places import storage
from bft_ray.study.records.database import Database
from bft_ray.study.records.store import CONFIRMATION, SEARCH, Store
from bft_ray.train.launch import train
from bft_ray.train.snapshot import FILE
from tests.support.alone import run_alone
from tests.support.bait import as_pickle
from tests.support.ranks import run_ranks
from tests.support.recorder import Recorder
from tests.support.s3 import S3, SECRET, s3_server
from tests.support.small_study import write_space

STUDY_S = 240


@pytest.fixture
def s3():
    with s3_server() as found:
        yield found


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "bft_ray.cli", "search", "space.yaml", "--database", f"sqlite:///{folder}/s.db"]
    with (folder / "log").open("a") as log:
        options = {"stdout": log, "stderr": log, "cwd": folder, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
        return subprocess.Popen([*command, "--no-measure", "--no-profile"], **options)


def states(s3: S3) -> list[str]:
    """The shards of trials that wait at a rung, whose manifest is there."""
    keys = s3.keys()
    whole = {key.rpartition("/")[0] for key in keys if "/state-" in key and "/manifest-" in key}
    return [key for key in keys if key.endswith(".safetensors") and key.rpartition("/engine/")[0] in whole]


def end_of_family(process: subprocess.Popen) -> None:
    """Kill a driver and all that it started, as when their machine is lost."""
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait(30)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    _, left = psutil.wait_procs(family, timeout=180)
    assert not left


@pytest.mark.release  # tests/places/ has each part of it
def test_a_study_of_which_all_lies_in_a_store(s3, tree_in, tiny_data, tmp_path, capsys):
    """The driver is killed, every state that trials wait with is truncated, and the same command comes to a champion."""
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    parts = {"confirmation": rows[12:28], "test": rows[28:44]}
    for name, part in parts.items():
        part = [row | {"prompt": f"{row['prompt']} w{len(name)}"} for row in part]  # not those of the training
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    tree = tree_in(tmp_path, cluster={"storage_path": s3.uri("results")})
    del tree["name"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    validation, test = ({"data.validation": [{"path": str(tmp_path / f"{name}.jsonl")}]} for name in parts)
    write_space(
        tmp_path,
        parameters={"loss.window": {"kind": "categorical", "values": [2, 8, 16, 32]}},
        budget={"trials": 4, "steps": 6},
        scheduler={"kind": "asha", "grace_steps": 2, "reduction": 2},
        deterministic=True,  # all four are measured at step 2 before two of them are promoted
        baselines=[{"name": "bft", "overrides": {"loss.method": "bft"}}],
        confirmation={
            "top_k": 1,
            "seeds": [101, 102, 103],
            "min_seeds_waived": True,
            "overrides": validation,
            "test": test,
        },
    )

    driver, end = start(tmp_path), time.monotonic() + STUDY_S
    while len(states(s3)) < 2:
        assert driver.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
        time.sleep(0.02)
    end_of_family(driver)
    cut = states(s3)
    assert cut, "the trials have ended before their driver"
    for key in cut:
        s3.truncate(key)

    driver = start(tmp_path)
    try:
        status = driver.wait(STUDY_S)
    finally:
        driver.kill()
    log = (tmp_path / "log").read_text()
    assert status == 0, log[-3000:]
    with Database(f"sqlite:///{tmp_path}/s.db") as database:
        store = Store.find(database, "small/test")
        searched, confirmed = (store.open_part(part).records() for part in (SEARCH, CONFIRMATION))
    assert sorted(record.status for record in searched) == ["complete", "pruned", "pruned", "pruned"]
    assert {record.status for record in confirmed} == {"complete"}
    (complete,) = (record.number for record in searched if record.status == "complete")
    (key,) = (key for key in s3.keys("results/") if key.endswith(f"search/{complete:04d}/run-0.json"))
    run = json.loads(s3.read(key))
    assert len(run["train"]) == 6 and {"4", "6"} <= set(run["metrics"])  # begun again, it is not measured at 2
    assert states(s3) == []  # nothing of the search stays that nobody needs
    assert not any(path.name.startswith("s3:") for path in tmp_path.iterdir()) and SECRET not in log

    tracking = ["--uri", tree["tracking"]["uri"]]
    assert main(["export", "test", *tracking, "--out", s3.uri("released", "one")]) == 0
    assert f"card      {s3.uri('released', 'one')}/README.md" in capsys.readouterr().out
    assert {"config.json", "README.md", "tokenizer.json"} < set(storage.sizes_in(s3.uri("released", "one")))
    assert main(["export", "test", *tracking, "--out", s3.uri("released")]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    (weights,) = (key for key in s3.keys("results/") if "/confirmation/" in key and key.endswith("/model.safetensors"))
    stored, exported = load(s3.read(weights)), load(s3.read("released/one/model.safetensors"))
    assert all(torch.equal(stored[name], exported[name]) for name in stored)


@pytest.mark.release
def test_a_run_passes_over_a_truncated_checkpoint(s3, tree_in, tmp_path):
    """A worker is killed and its last checkpoint cut in the bucket: the same weights as without Ray, store and harm.

    Pickles lie there too, under the names that Ray Train and Ray Tune have given theirs, and nobody runs them.
    """
    import ray

    sections = {
        "schedule": {"steps": 30},
        "evaluation": {"every_steps": 5},
        "checkpoint": {"keep": 2, "export": "last"},
    }
    done: list[str] = []
    marker = tmp_path / "code-has-run"
    bait = as_pickle(tmp_path / "bait", marker).read_bytes()
    for name in ("trainer.pkl", "tuner.pkl", "experiment_state-2026.json", ".metadata.json", FILE, "packing.json"):
        s3.put(f"results/run/{name}", bait)

    def harm(step: int) -> None:
        kept = [key for key in s3.keys("results/run/step-") if key.endswith("manifest-00000.json")]
        if done or len(kept) < 2:
            return
        (worker,) = (p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline()))
        worker.kill()
        worker.wait(30)
        last = max(key for key in s3.keys("results/run/step-") if key.endswith("manifest-00000.json"))
        done.append(last.rpartition("/")[0])
        s3.truncate(f"{done[0]}/engine/state-00000.safetensors")

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        tree, recorder = tree_in(tmp_path, **sections, cluster={"storage_path": s3.uri("results")}), Recorder(harm)
        harmed = train(make_config(tree), recorder)
    finally:
        ray.shutdown()
    assert done, "no checkpoint was cut"
    assert not marker.exists() and s3.keys("results/run/trainer.pkl"), "the code in a file has run"
    (passed,) = (values["lines"] for event, values in recorder.events if event == "passed over")
    assert (
        len(passed) == 1 and f"s3://{s3.bucket}/{done[0]} is passed over: engine/state-00000.safetensors" in passed[0]
    )
    (resumed,) = (values["step"] for event, values in recorder.events if event == "resume")
    assert 0 < resumed < int(done[0].rpartition("-")[2])
    assert harmed.export == s3.uri("results", "run", "export") and harmed.step == 30
    (calm,) = run_ranks(run_alone, 1, tree, str(tmp_path / "calm"))
    exported = load(s3.read("results/run/export/model.safetensors"))
    assert exported.keys() == calm["weights"].keys()
    assert all(torch.equal(exported[name], torch.from_numpy(value)) for name, value in calm["weights"].items())
