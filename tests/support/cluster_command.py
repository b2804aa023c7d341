"""`python -m cluster.local`: a command, a folder that it is stopped in at the end, and what lives of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local.processes import Process, family
from cluster.local.state import State
from tests.support.paths import ROOT

LIMIT_S = 900


def call(folder: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`python -m cluster.local COMMAND` from the repository."""
    words = [sys.executable, "-m", "cluster.local", command, "--folder", str(folder), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT)


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """One that PostgreSQL's own user gets to, where root runs the tests; pytest's are closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="bft_cluster_"))
    try:
        yield folder
    finally:
        stopped = call(folder, "down")
        shutil.rmtree(folder, ignore_errors=True)
        assert stopped.returncode == 0, stopped.stderr


def living(folder: Path) -> set[Process]:
    return family(State.load(folder).processes.values())
