"""A user's own file, from `init` to a champion that is measured against the base model: the commands of the page."""

from __future__ import annotations

import csv
import os
import random
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from bft_ray.config.steps import num_steps
from bft_ray.tracking.server import connect

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "own-file.md"
LIMIT_S = 300
GENES = "BRCA1 TP53 EGFR KRAS MYC PTEN RB1 ALK BRAF VHL APC ATM CDK4 ERBB2 FLT3 IDH1 JAK2 KIT MET NF1".split()
PARTS = "cell cycle,DNA repair,apoptosis,growth signals,transport,adhesion,splicing,translation".split(",")
#: least budget of a study that still compares, confirms and chooses
SMALL = (
    "budget.trials=3",
    "sampler.startup_trials=2",
    "confirmation.top_k=1",
    "confirmation.seeds=[101,102,103]",
    "confirmation.min_seeds_waived=true",
)


def write_questions(path: Path, num_rows: int, seed: int = 0) -> None:
    """Made-up questions, all different, in columns of the user's own order; answers of 4 to 40 words."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "question", "answer"])
        for index in range(num_rows):
            gene, part = draw.choice(GENES), draw.choice(PARTS)
            reasons = " ".join(f"It binds {draw.choice(GENES)} in {draw.choice(PARTS)}." for _ in range(draw.randint(0, 6)))
            rows.writerow([index, f"What does {gene} do in sample {index}?", f"{gene} acts in {part}. {reasons}".strip()])


def environment(folder: Path) -> dict[str, str]:
    """Of a user with a home of their own, who has activated the virtual environment."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    cleared = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "STUDY_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**cleared, "PATH": path, "HOME": str(home), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def typed(command: str, folder: Path, *more: str, limit_s: float = LIMIT_S) -> str:
    """What a command prints; it must end with status 0."""
    words = [*shlex.split(command), *more]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def road() -> list[str]:
    """The commands of the page."""
    [block] = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.S)
    return block.splitlines()


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """All records of the one study in the default database."""
    storage = f"sqlite:///{folder}/bft_studies.db"
    return [t for s in optuna.get_all_study_summaries(storage) for t in optuna.load_study(study_name=s.study_name, storage=storage).trials]


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.mark.slow
def test_the_page_from_a_file_to_a_champion(folder):
    write_questions(folder / "my_questions.csv", 201)
    said = {}
    for command in road():
        more = SMALL if command.split()[1] == "search" else ()
        said[command] = typed(command, folder, *more)
    init, doctor, _, profile, dry, search, best, _, after = said.values()
    assert "200 rows" not in init and "201" in init
    for part in ("train", "validation", "confirmation", "test"):
        assert (folder / f"bft_{part}.jsonl").exists()
    states = [trial.state for trial in trials(folder)]
    assert states.count(optuna.trial.TrialState.FAIL) == 0
    client = connect(f"sqlite:///{folder}/mlflow.db")
    champion = client.get_model_version_by_alias("bft-my_questions", "champion")
    assert champion.version == "1"
    assert "difference" in after


@pytest.mark.slow
def test_a_study_that_is_killed_in_the_middle_goes_on(folder):
    write_questions(folder / "my_questions.csv", 101)
    typed("bft-ray init my_questions.csv", folder)
    command = ["bft-ray", "search", "search_space.yaml", "--no-profile", *SMALL]
    with open(folder / "first.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment(folder), stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + LIMIT_S
    while num_finished(folder) < 3:
        assert process.poll() is None and time.monotonic() < deadline, (folder / "first.log").read_text()[-3000:]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    before = {trial.number: trial.values for trial in trials(folder) if trial.state.is_finished()}
    typed(shlex.join(command), folder)
    after = {trial.number: trial.values for trial in trials(folder)}
    assert {number: after[number] for number in before} == before
    assert connect(f"sqlite:///{folder}/mlflow.db").get_model_version_by_alias("bft-my_questions", "champion").version == "1"


def num_finished(folder: Path) -> int:
    """Trials of the study that have an end."""
    try:
        with sqlite3.connect(f"file:{folder}/bft_studies.db?mode=ro", uri=True, timeout=5) as database:
            [[count]] = database.execute("select count(*) from trials where state in ('COMPLETE', 'PRUNED')")
            return count
    except sqlite3.OperationalError:  # not there yet
        return 0
