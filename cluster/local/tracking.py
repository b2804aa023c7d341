"""An MLflow server on loopback, over PostgreSQL, behind a login."""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.local.service import get, start, wait
from cluster.local.state import State, make_secret


def start_mlflow(state: State) -> None:
    """The tracking server over the database `mlflow`, with its artifacts in the folder."""
    make_secret(state.mlflow_password)
    command = [sys.executable, "-P", str(Path(__file__).with_name("mlflow_start.py")), str(state.ports["mlflow"])]
    command += [str(state.folder / "artifacts"), str(state.mlflow_password)]
    env = {"MLFLOW_BACKEND_STORE_URI": state.database("mlflow")}  # on the command line everybody could read it
    start(state, "mlflow", command, env, cwd=state.folder)


def wait_for_mlflow(state: State, end: float) -> None:
    """Return once it answers."""
    header = {"Authorization": f"Bearer {state.mlflow_password.read_text()}"}
    wait(state, ["mlflow"], lambda: get(f"{state.mlflow}/health", header) is not None, end)
