"""Whole studies, through the command: Ray Tune, a database, MLflow; killed, cancelled, gone on with, two at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from bft_ray.cli import main
from bft_ray.config import make_config
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Run, RunFiles
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store
from tests.support.ranks import run_ranks
from tests.support.trials import steps_of

STUDY_S = 400  # bound of a study
STEPS = 6


def write_files(tree_in, tiny_data: Path, folder: Path) -> dict[str, Any]:
    """A config of the tiny model, and data to confirm and to test on."""
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    for name, part in (("confirmation", rows[12:28]), ("test", rows[28:44])):
        part = [row | {"prompt": f"{row['prompt']} w{len(name)}"} for row in part]  # not those of the training
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    tree = tree_in(folder, deepspeed={"preset": "zero1"})
    tree["data"]["validation"] = [{"path": str(tiny_data), "limit": 12}]
    del tree["name"]
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    return tree


@pytest.fixture
def files(tree_in, tiny_data, tmp_path) -> dict[str, Any]:
    return write_files(tree_in, tiny_data, tmp_path)


def write_space(folder: Path, name: str, **more: Any) -> Path:
    tree = {
        "name": name,
        "config": "config.yaml",
        "parameters": {
            "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
            "loss.window": {"kind": "categorical", "values": [2, 8, 64, 256]},
            "optimizer.learning_rate": {"kind": "categorical", "values": [1e-3, 1e-2]},
        },
        "objective": {"metric": "validation/token_accuracy"},
        "budget": {"trials": 10, "steps": STEPS},
        "sampler": {"kind": "tpe", "startup_trials": 4},
        "scheduler": {"kind": "asha", "grace_steps": 2, "reduction": 2},
        "deterministic": True,
        "confirmation": {
            "top_k": 1,
            "seeds": [101, 102, 103],
            "min_seeds_waived": True,
            "overrides": {"data.validation": [{"path": str(folder / "confirmation.jsonl")}]},
            "test": {"data.validation": [{"path": str(folder / "test.jsonl")}]},
        },
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (tree | more).items() if value is not None}))
    return path


def start(space: Path, folder: Path, *words: str) -> subprocess.Popen:
    """The command in a process of its own; its output goes to a file."""
    command = [
        sys.executable,
        "-m",
        "bft_ray.cli",
        "search",
        str(space),
        "--database",
        url_of(folder),
        "--no-measure",
        *words,
    ]
    with (folder / f"{space.stem}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/studies.db"


def finish(process: subprocess.Popen, space: Path, folder: Path) -> str:
    status = process.wait(STUDY_S)
    log = (folder / f"{space.stem}.log").read_text()
    assert status == 0, log[-3000:]
    return log


def records_of(folder: Path, name: str) -> dict[str, list[TrialRecord]]:
    with Database(url_of(folder)) as database:
        store = Store.find(database, f"{name}/test")
        return {part: store.open_part(part).records() for part in (BASELINES, SEARCH, CONFIRMATION)}


def wait_until(folder: Path, name: str, process: subprocess.Popen, num_finished: int) -> None:
    end = time.monotonic() + STUDY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            found = sum(record.is_finished for part in records_of(folder, name).values() for record in part)
        except Exception:  # not there yet
            found = 0
        if found >= num_finished:
            return
        time.sleep(0.3)


def plain(records: list[TrialRecord]) -> list[tuple]:
    """What a trial is and came to, without when and where."""
    return [
        (r.name, dict(r.assignment), r.seeds, r.status, r.num_steps, dict(r.rungs), dict(r.by_seed)) for r in records
    ]


def solo(tree: dict[str, Any]) -> dict[str, Any]:
    """The run of a config, alone in a fresh process."""
    import torch

    from bft_ray.study.execute.warm import Warm
    from jobs.bench.one_trial import run_trial

    result = run_trial(make_config(tree), [2, 4], lambda step, metrics: True, Warm(torch.device("cpu")))
    return {"train": steps_of(result), "metrics": result.metrics[STEPS]}


def children_of(client: Any, experiment: str, name: str) -> tuple[Any, dict[str, Any]]:
    """The one study run of a name, and its nested runs by trial."""
    (found,) = [client.get_experiment_by_name(experiment)]
    runs = client.search_runs([found.experiment_id], max_results=500)
    (study,) = [run for run in runs if run.info.run_name == name]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == study.info.run_id]
    assert len({run.data.tags["bft.trial"] for run in nested}) == len(nested)
    return study, {run.data.tags["bft.trial"]: run for run in nested}


@dataclass(frozen=True)
class Twins:
    """Two studies of one definition on one database, both finished; `killed` was killed and cancelled on its way."""

    folder: Path
    tree: dict[str, Any]
    spaces: dict[str, Path]
    logs: dict[str, str]
    seed: int
    statuses: tuple[str, set[str]]  # of its MLflow runs when it had been cancelled: the study's, the trials'

    def records(self, name: str) -> dict[str, list[TrialRecord]]:
        return records_of(self.folder, name)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/mlflow.db")


@pytest.fixture(scope="module")
def twins(tree_in, tiny_data, tmp_path_factory) -> Twins:
    """Run side by side; the second is killed at a random moment of its search, cancelled, and started again."""
    folder = tmp_path_factory.mktemp("twins")
    tree = write_files(tree_in, tiny_data, folder)
    seed = time.time_ns()
    draw = random.Random(seed)
    spaces = {name: write_space(folder, name) for name in ("calm", "killed")}
    own = ["cluster.storage_path=" + str(folder / "other")]  # files of its own
    calm, killed = start(spaces["calm"], folder), start(spaces["killed"], folder, *own)
    try:
        wait_until(folder, "killed", killed, draw.randint(1, 9))
        time.sleep(draw.random())
        killed.send_signal(signal.SIGKILL)
        killed.wait(30)
        killed = start(spaces["killed"], folder, *own)
        wait_until(folder, "killed", killed, 12)
        assert main(["search", "killed/test", "--database", url_of(folder), "--cancel"]) == 0
        assert killed.wait(120) != 0, f"it finished before it was cancelled, seed {seed}"
        study, nested = children_of(MlflowClient(f"sqlite:///{folder}/mlflow.db"), "bft/test", "killed")
        statuses = study.info.status, {run.info.status for run in nested.values()}
        killed = start(spaces["killed"], folder, *own)
        logs = {name: finish(each, spaces[name], folder) for name, each in (("calm", calm), ("killed", killed))}
    finally:
        for process in (calm, killed):
            process.kill()
    return Twins(folder, tree, spaces, logs, seed, statuses)


@pytest.mark.long
def test_a_study_that_is_killed_and_cancelled_finds_what_another_finds(twins):
    """Two at once, and what happens to one changes nothing of what it finds."""
    calm, killed = twins.records("calm"), twins.records("killed")
    for part in calm:
        assert plain(calm[part]) == plain(killed[part]), f"{part}, seed {twins.seed}"


@pytest.mark.long
def test_a_study_has_baselines_a_search_and_a_conclusion(twins):
    records = twins.records("calm")
    assert len(records[SEARCH]) == 10 and len(records[BASELINES]) == 6
    assert {record.status for record in records[SEARCH]} >= {"complete", "pruned", "duplicate"}
    assert "bft" in twins.logs["calm"].splitlines()[-1]


@pytest.mark.long
def test_a_cancelled_study_says_so_and_leaves_no_run_that_seems_to_go_on(twins):
    study, nested = twins.statuses
    assert "error: cancelled; the same command resumes the study" in twins.logs["killed"]
    assert study == "KILLED" and nested <= {"FINISHED", "KILLED"}, f"seed {twins.seed}"


@pytest.mark.long
def test_every_trial_is_the_run_of_its_config_alone(twins):
    """Bit for bit, though it ran in a warm worker after others."""
    done = [record for record in twins.records("killed")[SEARCH] if record.status == "complete"][:2]
    trees, runs = [], []
    for record in done:
        own_id = _id(twins.folder, "killed")
        trials = twins.folder / "other" / "studies" / "test" / f"killed-{own_id[:8]}" / "search"
        runs.append(Run.of(own_id, RunFiles(str(trials / f"{record.number:04d}"), 0)))
        tree = json.loads(json.dumps(twins.tree)) | {"seed": 0, "schedule": {"steps": STEPS}}
        for field, value in record.assignment.items():
            section, name = field.split(".")
            tree.setdefault(section, {})[name] = value
        trees.append(tree)
    for tree, run in zip(trees, runs, strict=True):
        ((alone),) = run_ranks(solo, 1, tree, fresh=True)
        assert run is not None and run.num_steps == STEPS
        trained = [{name: value for name, value in step.items() if name in alone["train"][0]} for step in run.train]
        assert trained == alone["train"] and run.metrics[STEPS] == alone["metrics"], f"seed {twins.seed}"


@pytest.mark.long
@pytest.mark.parametrize("name", ["calm", "killed"])
def test_mlflow_has_one_run_a_trial_below_that_of_the_study(twins, name):
    """With true statuses, and no point twice."""
    records = twins.records(name)
    study, nested = children_of(twins.client, "bft/test", name)
    assert study.info.status == "FINISHED"
    assert set(nested) == {record.id for part in records.values() for record in part}
    assert {run.info.status for run in nested.values()} == {"FINISHED"}
    for record in records[SEARCH]:
        run = nested[record.id]
        assert run.info.run_name == record.name and run.data.tags["bft.status"] == record.status
        if record.status == "complete":
            steps = [point.step for point in twins.client.get_metric_history(run.info.run_id, "train/loss")]
            assert sorted(steps) == list(range(1, STEPS + 1))
            assert run.data.metrics["validation/token_accuracy"] == pytest.approx(record.value)


@pytest.mark.long
@pytest.mark.parametrize("name", ["calm", "killed"])
def test_the_run_of_a_study_holds_its_answer(twins, name):
    study, _ = children_of(twins.client, "bft/test", name)
    files = {item.path for item in twins.client.list_artifacts(study.info.run_id)}
    assert files >= {"report.html", "records.json", "profile", "search_space.yaml", "champion.yaml"}
    assert "token_accuracy" in study.data.tags["mlflow.note.content"]


@pytest.mark.long
def test_each_study_registers_its_champion_once(twins, capsys):
    assert len(twins.client.search_model_versions("name = 'bft-test'")) == 2
    assert twins.client.get_model_version_by_alias("bft-test", "champion")
    assert main(["best", "test", "--uri", f"sqlite:///{twins.folder}/mlflow.db"]) == 0
    assert "validation/token_accuracy" in capsys.readouterr().out


@pytest.mark.long
def test_a_finished_study_stays_so_and_can_be_looked_at(twins, capfd):
    words = ["--database", url_of(twins.folder)]
    assert main(["search", str(twins.spaces["calm"]), *words]) == 0
    assert "is finished" in capfd.readouterr().err
    assert main(["search", "calm/test", "--status", *words]) == 0
    shown = capfd.readouterr().out
    assert "calm/test, finished" in shown and "10 of 10 finished" in shown
    assert main(["search", "--status", *words]) == 0
    assert [line.split()[:2] for line in capfd.readouterr().out.splitlines()] == [
        ["calm/test", "finished"],
        ["killed/test", "finished"],
    ]
    assert main(["search", str(twins.spaces["calm"]), "budget.trials=20", *words]) == 2


def _id(folder: Path, name: str) -> str:
    with Database(url_of(folder)) as database:
        return Store.find(database, f"{name}/test").notes()["id"]


@pytest.mark.long
def test_a_trial_of_several_workers(files, tmp_path):
    """Ray Train and ZeRO-3 within the trial. (How such a one is stopped at a rung: tests/study/test_segments.py.)"""
    space = write_space(
        tmp_path,
        "wide",
        parameters={"loss.window": {"kind": "categorical", "values": [8]}},
        fixed={"cluster.num_workers": 2, "deepspeed.preset": "zero3", "cluster.cpus_per_worker": 1},
        sampler={"kind": "grid"},
        scheduler=None,
        budget={"steps": 2},
        deterministic=False,
        confirmation=None,
        baselines=[],
    )
    log = finish(start(space, tmp_path, "--no-profile"), space, tmp_path)
    (record,) = records_of(tmp_path, "wide")[SEARCH]
    assert record.num_steps == 2 and 0 < record.value < 1 and "[search 1/1]" in log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.metric=train/loss"], "objective.metric"),
        (["sampler.kind=tpe2"], "sampler"),
        (["budget.trails=3"], "budget.trails"),
        (["loss.windw=3"], "loss.windw"),
        (["cluster.address=ray://127.0.0.1:10001"], "cluster.address"),
        (["cluster.cpus_per_worker=4096"], "cluster.cpus_per_worker"),
        (["tracking.uri=http://127.0.0.1:9"], "tracking.uri"),
        (["data.train.0.path=nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(files, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    space = write_space(tmp_path, "bad")
    assert main(["search", str(space), "--no-profile", "--database", url_of(tmp_path), *words]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1] or message in said.partition("error:")[2], said


def test_a_dry_run_says_what_it_costs(files, tmp_path, capsys):
    space = write_space(tmp_path, "dry")
    assert main(["search", str(space), "--dry-run", "--no-measure", "--database", url_of(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "16, of which" in said and "confirmation" in said
    assert not (tmp_path / "studies.db").exists()


def test_the_search_spaces_are_listed(capsys):
    assert main(["search", "--list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"starter", "window", "medical_qa"}
