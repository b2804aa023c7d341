"""A user's own file, from `init` to a champion that is measured against the base model: the commands of the page."""

from __future__ import annotations

import math
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import optuna
import pytest

from bft_ray.tracking.server import connect
from tests.support.own_file import LIMIT_S, environment, typed, write_questions
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "own-file.md"
#: least budget of a study that still compares, confirms and chooses
SMALL = (
    "budget.trials=3",
    "schedule.epochs=1.0",
    "sampler.startup_trials=2",
    "confirmation.top_k=1",
    "confirmation.seeds=[101,102,103]",
    "confirmation.min_seeds_waived=true",
)


def trials(folder: Path) -> dict[tuple[str, int], optuna.trial.FrozenTrial]:
    """All records in the default database, by part (baselines, search, confirmation) and number."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/bft_studies.db")
    found = {study.study_name: storage.get_all_trials(study._study_id) for study in storage.get_all_studies()}
    return {(name, trial.number): trial for name, own in found.items() for trial in own}


def champion_version(folder: Path) -> int:
    return connect(f"sqlite:///{folder}/mlflow.db").get_model_version_by_alias("bft-my_questions", "champion").version


def num_finished(folder: Path) -> int:
    """Trials of the study that have an end; read as a bystander, who must not lock the database."""
    try:
        with sqlite3.connect(f"file:{folder}/bft_studies.db?mode=ro", uri=True, timeout=5) as database:
            [[count]] = database.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')")
            return count
    except sqlite3.OperationalError:  # not there yet
        return 0


def killed_in_the_middle(command: str, folder: Path) -> dict[tuple[str, int], list[float]]:
    """Run a search until three trials have an end, then kill it with all its processes. Returns the values by then."""
    with open(folder / "first.log", "wb") as log:
        first = subprocess.Popen(
            shlex.split(command), cwd=folder, env=environment(folder), stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + LIMIT_S
    while num_finished(folder) < 3:
        assert first.poll() is None and time.monotonic() < deadline, (folder / "first.log").read_text()[-3000:]
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(30)
    return {number: trial.values for number, trial in trials(folder).items() if trial.state.is_finished()}


@pytest.mark.release
def test_the_commands_of_the_page_lead_from_a_file_to_a_measured_champion(tmp_path):
    """Also where the search is killed in the middle: the same command goes on, and no result by then changes."""
    write_questions(tmp_path / "my_questions.csv", 201)
    [block] = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.S)
    said: dict[str, str] = {}
    before = {}
    for command in block.splitlines():
        words = command.split()
        more = SMALL if words[1] == "search" else ()
        if words[1] == "search" and "--dry-run" not in words:
            before = killed_in_the_middle(shlex.join([*words, *more]), tmp_path)
        said[words[1] + " --dry-run" * ("--dry-run" in words) + " --against" * ("--against" in words)] = typed(
            command, tmp_path, *more
        )
    after = {number: trial.values for number, trial in trials(tmp_path).items()}
    assert len(before) >= 3 and {number: after[number] for number in before} == before
    sizes = {
        p: len((tmp_path / f"bft_{p}.jsonl").read_text().splitlines())
        for p in ("train", "validation", "confirmation", "test")
    }
    assert sum(sizes.values()) == 201 and all(sizes.values())
    assert all(f"{size} rows" in said["init"] for size in sizes.values())
    assert "beside the trials asked for: 9 beside 3" in said["search --dry-run"]
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials(tmp_path).values())
    assert champion_version(tmp_path) == 1 and "champion" in said["best"]
    assert "difference" in said["evaluate --against"] and "validation/token_accuracy" in said["evaluate --against"]
    assert not any("Traceback" in text for text in said.values())
    assert all("sample 17" not in text for text in said.values())  # no text of rows is printed


@pytest.mark.parametrize(
    "num_rows",
    [
        pytest.param(37, marks=pytest.mark.long),
        pytest.param(201, marks=pytest.mark.release),
        pytest.param(513, marks=pytest.mark.release),
    ],
)
def test_a_study_of_any_size_lives_to_its_end(tmp_path, num_rows):
    """Sizes that no batch divides, and parts of an epoch: cost, rungs, loop and records agree on the steps."""
    write_questions(tmp_path / "my_questions.csv", num_rows, most_reasons=0)
    typed("bft-ray init my_questions.csv", tmp_path)
    batches, epochs = [7, 16], [0.5, 1.0, 3.0]
    grid = {"data.global_batch_size": batches, "schedule.epochs": epochs}
    parameters = ", ".join(f"{name}: {{kind: categorical, values: {values}}}" for name, values in grid.items())
    least = ["sampler.kind=grid", "budget.trials=6", "scheduler=null", "baselines=[]", "confirmation=null"]
    text = typed(
        "bft-ray search search_space.yaml --no-profile --no-measure",
        tmp_path,
        *least,
        f"parameters={{{parameters}}}",
        "data.max_length=96",
    )
    assert "Traceback" not in text
    num_train = len((tmp_path / "bft_train.jsonl").read_text().splitlines())
    expected = sorted(max(1, math.ceil(each * num_train / batch)) for batch in batches for each in epochs)
    done = [trial for trial in trials(tmp_path).values() if trial.state.name == "COMPLETE"]
    assert sorted(trial.user_attrs["outcome"]["num_steps"] for trial in done) == expected
