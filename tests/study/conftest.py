"""Databases of studies: SQLite and PostgreSQL."""

from __future__ import annotations

import gc
import subprocess
import time

import pytest

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
