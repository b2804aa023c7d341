"""Two whole studies at the same time on one cluster: each finds what it finds alone, and they deal the places by priority."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bft_ray.space.load import load_study
from bft_ray.study.driver import search
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store
from tests.support.here import Here
from tests.support.local_cluster import Cluster, local_cluster
from tests.support.paths import ROOT

PLACES, PRIORITY = 3, {"low": 1.0, "high": 2.0}
STUDY_S, LOOK_S = 900, 0.3

ACTORS = """
import ray
from ray.util import list_named_actors
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
print([actor["name"] for actor in list_named_actors(all_namespaces=True)])
"""


@dataclass(frozen=True)
class Files:
    """One study: its space, its database."""

    space: Path
    database: str
    name: str

    def records(self) -> dict[str, list[TrialRecord]]:
        with Database(self.database) as database:
            store = Store.find(database, f"{self.name}/test")
            return {part: store.open_part(part).records() for part in (BASELINES, SEARCH, CONFIRMATION)}

    def num_running(self) -> int:
        """Segments that workers have; a trial that waits at a rung has none."""
        return sum(len(record.extra.get("since", ())) for own in self.records().values() for record in own)


def files_of(folder: Path, name: str, tree: dict[str, Any]) -> Files:
    """The study `name` in a folder of its own; the two differ in the seed of their sampler."""
    folder.mkdir(parents=True)
    own = {**tree, "cluster": tree["cluster"] | {"storage_path": str(folder / "results")}}
    own["tracking"] = {"uri": f"sqlite:///{folder}/mlflow.db"}
    own["data"] = tree["data"] | {"cache_dir": str(folder / "cache")}
    (folder / "config.yaml").write_text(yaml.safe_dump(own))
    rows = [json.loads(line) for line in Path(tree["data"]["train"][0]["path"]).read_text().splitlines()[12:28]]
    rows = [row | {"prompt": f"{row['prompt']} w1"} for row in rows]  # not those of the training
    (folder / "confirmation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    held_back = {"data.validation": [{"path": str(folder / "confirmation.jsonl")}]}
    space = {
        "name": name,
        "domain": "test",
        "config": "config.yaml",
        "parameters": {
            "loss.window": {"kind": "categorical", "values": [2, 4, 6, 8, 12, 16]},
            "optimizer.learning_rate": {"kind": "categorical", "values": [1e-3, 4e-3]},
        },
        "fixed": {"loss.method": "bft"},
        "objective": {"metric": "validation/nll"},
        "budget": {"trials": 10, "steps": 48},
        "sampler": {"kind": "tpe", "startup_trials": 3, "seed": list(PRIORITY).index(name)},
        "scheduler": {"kind": "asha", "grace_steps": 24, "reduction": 2},
        "deterministic": True,
        "baselines": [{"name": "bft", "overrides": {"loss.method": "bft", "loss.window": 256}}],
        "confirmation": {"top_k": 1, "seeds": [101, 102, 103], "min_seeds_waived": True, "overrides": held_back},
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space))
    return Files(path, f"sqlite:///{folder}/studies.db", name)


def run_alone(study: Files) -> None:
    space, base = load_study(str(study.space))
    search(space, base, study.database, profile=False, measure=False, place=Here())


def start(study: Files, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-m", "bft_ray.cli", "search", str(study.space), "--database", study.database]
    command += ["--no-measure", "--no-profile", f"cluster.priority={PRIORITY[study.name]}"]
    own = env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with study.space.with_name("log.txt").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=study.space.parent, env=own)


def finish(study: Files, process: subprocess.Popen) -> str:
    status, log = process.wait(STUDY_S), study.space.with_name("log.txt").read_text()
    assert status == 0, log[-3000:]
    return log


def plain(study: Files) -> list[tuple]:
    """What each trial is and came to, without when and where."""
    return [
        (r.id, r.name, dict(r.assignment), r.seeds, r.status, r.num_steps, dict(r.rungs), dict(r.by_seed))
        for own in study.records().values()
        for r in own
    ]


def answer_of(study: Files) -> str:
    with Database(study.database) as database:
        text = Store.find(database, f"{study.name}/test").notes()["result"]["text"].partition("MLflow")[0]
    return text.partition("\nbft-ray ")[0]  # the commands that follow name the place of the database


def actors(cluster: Cluster) -> str:
    command = [sys.executable, "-c", ACTORS]
    return subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=180, check=True).stdout


def running(studies: dict[str, Files]) -> dict[str, int]:
    found = dict.fromkeys(studies, 0)
    for name, study in studies.items():
        with contextlib.suppress(Exception):  # a database that is not there yet
            found[name] = study.num_running()
    return found


@pytest.mark.release
def test_two_studies_share_a_cluster_and_find_what_they_find_alone(make_tree, tmp_path):
    tree = make_tree(deepspeed={"preset": "zero1"}, evaluation={"every_steps": None})
    tree["data"]["packing"] = True  # or a worker would measure whether it pays
    tree["cluster"] = {"gpus_per_worker": 0, "cpus_per_worker": 1}
    del tree["name"]
    alone = {name: files_of(tmp_path / "alone" / name, name, tree) for name in PRIORITY}
    both = {name: files_of(tmp_path / "both" / name, name, tree) for name in PRIORITY}
    seen: list[dict[str, int]] = []
    for study in alone.values():
        run_alone(study)
    with local_cluster(PLACES) as cluster:
        processes = {name: start(study, cluster.env) for name, study in both.items()}
        try:
            end = time.monotonic() + STUDY_S
            while any(process.poll() is None for process in processes.values()) and time.monotonic() < end:
                seen.append(running(both))
                time.sleep(LOOK_S)
            logs = {name: finish(study, processes[name]) for name, study in both.items()}
        finally:
            for process in processes.values():
                process.kill()
        assert "bft_ray_shares" not in actors(cluster)

    for name in PRIORITY:
        assert plain(alone[name]) == plain(both[name]), name
        assert answer_of(alone[name]) == answer_of(both[name])
        percent = 100 * PRIORITY[name] / sum(PRIORITY.values())
        assert f"1 other studies run on this cluster; this one has {percent:.0f}% of it" in logs[name]
    counts = Counter(tuple(now.values()) for now in seen)
    print(f"running {tuple(PRIORITY)}: {dict(counts)}")
    assert counts[1, 2], "at some time both have their whole share: 1 and 2 of 3 places"
    crowded = sum(count for now, count in counts.items() if sum(now) > PLACES)
    assert crowded <= 0.05 * len(seen), "the two databases are read one after the other, so a segment may be seen twice"
