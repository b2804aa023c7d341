"""Databases of studies, SQLite and PostgreSQL; and a whole study whose trials are pretended."""

from __future__ import annotations

import gc
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from bft_ray.tracking.server import connect
from tests.support.driver import DATA, Driver
from tests.support.servers import HAS_POSTGRES, POSTGRES, postgres


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url
        gc.collect()  # it waits for the connections of databases that a test has left open


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=HAS_POSTGRES)])
def url(request, tmp_path):
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    server = request.getfixturevalue("server")
    name = f"db{time.time_ns()}"
    binary = POSTGRES[-1].parent / "createdb"
    port = server.rpartition(":")[2].partition("/")[0]
    subprocess.run([binary, "-h", "127.0.0.1", "-p", port, "-U", "bft", name], check=True)
    return server.rpartition("/")[0] + f"/{name}"


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory) -> Path:
    """MLflow's database without a run: to make one takes a second, to copy it nothing."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def driver(make_tree, tmp_path, empty_mlflow) -> Driver:
    shutil.copy(empty_mlflow, tmp_path)
    base = make_tree(evaluation={"tasks": [{"kind": "choice", "path": DATA.format("validation"), "limit": 6}]})
    base["data"]["validation"], base["checkpoint"] = [], {"export": "last", "keep": 2}
    del base["name"]
    return Driver(tmp_path, base)
