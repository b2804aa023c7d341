"""The profile as a user meets it: the command, the job, and the one that a study draws."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bft_ray.cli import main
from bft_ray.places import kept, storage
from bft_ray.profile.run import SHOWN_FILES
from bft_ray.space.assign import config_of
from bft_ray.space.grid import representatives
from bft_ray.space.load import load_study
from bft_ray.study import driver as drive
from bft_ray.study.definition import Study
from bft_ray.tracking.run import Tracker
from bft_ray.train.pins import pin_paths
from tests.support.segments import at_store, is_store

SMALL = ["data.train.0.limit=6", "data.validation.0.limit=4", "data.max_length=128", "cluster.num_workers=1"]
LOOKED = {"windows": [2, 8, 64], "epsilons": [0.05], "caps": [4.0]}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder of the user's, where the command is given."""
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def first_trial(path: Path):
    """The first trial of a study of a space, as a study would make it."""
    space, base = load_study(path)
    return config_of(base, space, representatives(space, 1)[0])


@pytest.mark.slow
def test_the_command_on_the_starter_data(place, capsys):
    words = ["profile", "starter", *SMALL, "profile.windows=[8, 32]", "--out", "out", f"data.cache_dir={place}/cache"]
    assert main([*words, "--no-mlflow"]) == 0
    said = capsys.readouterr()
    assert "6 samples with" in said.out and "covered whole" in said.out and "forward pass: 4 of 4 shards" in said.err
    assert f"page      {Path('out/profile.html')}" in said.out and Path("out/profile.html").is_file()
    trial = first_trial(place / "out" / "search_space.yaml")
    assert (trial.data.train[0].limit, trial.data.max_length, trial.cluster.num_workers) == (6, 128, 1)
    assert yaml.safe_load(Path("out/search_space.yaml").read_text())["config"] == "starter"
    # given again, there is no forward pass
    assert main([*words, "--no-mlflow"]) == 0
    assert json.loads(Path("out/profile.json").read_text())["seconds"]["cached"] == 1
    capsys.readouterr()
    assert main([*words, "--no-mlflow", "--against", "out"]) == 2
    assert "`out` is 'out', but must be another folder than that of `against`" in capsys.readouterr().err


def test_the_job_is_the_command(place, monkeypatch, capsys):
    words = [*SMALL, "profile.windows=[8]", f"data.cache_dir={place}/cache", "--no-mlflow"]
    monkeypatch.setattr(sys, "argv", ["jobs.profile_data", "starter", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("jobs.profile_data", run_name="__main__")
    assert ended.value.code == 0 and "6 samples with" in capsys.readouterr().out
    assert Path("bft_results/profiles/gene_interaction/profile.json").is_file()


@pytest.mark.slow
def test_overrides_and_model_go_into_the_proposed_space(place, make_tree, tiny_model, tiny_data, tmp_path, monkeypatch):
    """Everything is named relative to where the command is given; the space is run from where it lies."""
    Path("c.yaml").write_text(yaml.safe_dump(make_tree(profile=LOOKED)))
    shutil.copytree(tiny_model, "tuned/export")
    Path("mine.jsonl").write_text("\n".join(tiny_data.read_text().splitlines()[:20]))
    words = ["profile", "c.yaml", "data.train.0.path=mine.jsonl", "loss.gamma=2", "optimizer.learning_rate=0.03"]
    assert main([*words, "--model", "tuned/export", "--no-mlflow"]) == 0
    out = tmp_path / "results" / "profiles" / "test-tuned"  # a folder of the model's own
    monkeypatch.chdir(out)
    trial = first_trial(Path("search_space.yaml"))
    assert trial.data.train[0].path == str(place / "mine.jsonl")
    assert trial.model.path == str(place / "tuned" / "export")
    assert trial.loss.gamma == 2 and trial.optimizer.learning_rate == 0.01  # the lowest of three around 0.03
    space, _ = load_study("search_space.yaml")
    assert space.config == str(place / "c.yaml") and space.description.endswith("20 samples")


@pytest.mark.slow
def test_how_far_a_model_has_moved_as_the_readme_has_it(place, make_tree, tiny_model, tmp_path, capsys):
    """Two commands without --out: the second leaves the files of the first alone, and so may be given again."""
    Path("c.yaml").write_text(yaml.safe_dump(make_tree(profile=LOOKED)))
    shutil.copytree(tiny_model, "moved")
    scale_weights(place / "moved")
    before = tmp_path / "results" / "profiles" / "test"
    assert main(["profile", "c.yaml", "--no-mlflow"]) == 0
    files = {path.name: path.read_bytes() for path in before.iterdir()}
    assert main(["profile", "c.yaml", "--model", "moved", "--against", str(before), "--no-mlflow"]) == 0
    assert "of the weight has moved" in capsys.readouterr().out
    told = json.loads((before.parent / "test-moved" / "profile.json").read_text())
    assert max(row["moved"] for row in told["drift"].values()) > 0
    assert files == {path.name: path.read_bytes() for path in before.iterdir()}


def scale_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_the_profile_of_a_study_in_an_object_store(place, make_tree, tmp_path, monkeypatch):
    """It names the config that the study varies; its files go to the study's folder, and from there to MLflow."""
    monkeypatch.setattr(storage, "is_remote", is_store)
    monkeypatch.setattr(storage, "_at", at_store)
    monkeypatch.setattr(kept, "is_remote", is_store)
    monkeypatch.setattr(kept, "filesystem_at", at_store)
    tree = make_tree(profile=LOOKED)
    Path("mine.yaml").write_text(yaml.safe_dump(tree))
    parameters = {"optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 1e-3]}}
    space = {"name": "s", "config": "mine.yaml", "parameters": parameters, "fixed": {"data.train.0.limit": 24}}
    space |= {"objective": {"metric": "validation/token_accuracy"}, "budget": {"trials": 8}}
    Path("space.yaml").write_text(yaml.safe_dump(space))
    space, base = load_study("space.yaml")
    first = pin_paths(config_of(base, space, representatives(space, 1)[0]))
    folder = f"store://{tmp_path.name}/study"
    study = Study("id", space, base, 61, (24,), folder)
    said: list[str] = []
    drive._profile(study, first, said.append)
    assert said[0] == "profile of the training data" and "24 samples with" in said[1]
    drive._profile(study, first, said.append)
    assert said.count("profile of the training data") == 1  # once is enough
    (tmp_path / "fetched").mkdir()
    files = storage.fetch_folder(f"{folder}/profile", tmp_path / "fetched")
    assert {path.name for path in files.iterdir()} == {*SHOWN_FILES, "tokens.parquet"}
    proposed, _ = load_study(files / "search_space.yaml")
    assert proposed.config == str(place / "mine.yaml") and proposed.fixed["data.train.0.limit"] == 24
    rate = base.optimizer.learning_rate
    assert rate in proposed.parameters["optimizer.learning_rate"].finite()  # not around that of the first trial
    with Tracker.start(first.tracking, first.experiment, "s", params={}, tags={}) as tracker:
        drive._log_inputs(tracker, replace(study, folder=f"{folder}-without"), first, "0" * 64)
        assert tracker.client.list_artifacts(tracker.run_id, "profile") == []
        drive._log_inputs(tracker, study, first, "0" * 64)
        logged = tracker.client.list_artifacts(tracker.run_id, "profile")
        assert {Path(item.path).name for item in logged} == set(SHOWN_FILES)
