"""A stranger's file, and their shell: what the tests of whole roads share."""

from __future__ import annotations

import csv
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

LIMIT_S = 1800  # of a command that takes a minute on a quiet machine
GENES = [
    "BRCA1",
    "TP53",
    "EGFR",
    "KRAS",
    "MYC",
    "PTEN",
    "RB1",
    "ALK",
    "BRAF",
    "VHL",
    "APC",
    "ATM",
    "CDK4",
    "KIT",
    "MET",
]
PARTS = ["cell cycle", "DNA repair", "apoptosis", "growth signals", "transport", "adhesion", "splicing", "translation"]


def write_questions(path: Path, num_rows: int, most_reasons: int = 6) -> None:
    """Made-up questions, all different, beside a column of the user's own; answers of 4 words, and of 6 more a reason."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["case", "question", "answer"])
        for index in range(num_rows):
            gene, part = draw.choice(GENES), draw.choice(PARTS)
            reasons = [
                f"It binds {draw.choice(GENES)} in {draw.choice(PARTS)}." for _ in range(draw.randint(0, most_reasons))
            ]
            answer = " ".join([f"{gene} acts in {part}.", *reasons])
            rows.writerow([index, f"What does {gene} do in sample {index}?", answer])


def environment(folder: Path) -> dict[str, str]:
    """Of a user with a home of their own, who has activated the virtual environment."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "STUDY_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**own, "PATH": path, "HOME": str(home), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def typed(command: str, folder: Path, *more: str, limit_s: float = LIMIT_S) -> str:
    """What a command prints; it must end with status 0."""
    words = [*shlex.split(command), *more]
    done = subprocess.run(words, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=limit_s)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr
