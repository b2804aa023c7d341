"""An MLflow server on loopback, over PostgreSQL."""

from __future__ import annotations

import sys

from cluster.local.service import get, start, wait
from cluster.local.state import HOST, State


def start_mlflow(state: State) -> None:
    """The tracking server over the database `mlflow`, with its artifacts in the folder."""
    port = state.ports["mlflow"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(state.folder / "artifacts")]
    command += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}"]
    env = {
        "MLFLOW_BACKEND_STORE_URI": state.database("mlflow"),  # on the command line everybody could read it
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs of its own, which nothing here uses
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    start(state, "mlflow", command, env, cwd=state.folder)


def wait_for_mlflow(state: State, end: float) -> None:
    """Return once it answers."""
    wait(state, ["mlflow"], lambda: get(f"{state.mlflow}/health") is not None, end)
