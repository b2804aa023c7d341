"""PostgreSQL on loopback, with passwords: the databases of MLflow and of the studies."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput
from cluster.local.service import Failed, start, wait
from cluster.local.state import HOST, USER, State, make_secret


def start_postgres(state: State, end: float) -> None:
    """PostgreSQL on loopback with passwords, and the databases `mlflow` and `studies`.

    Its data stay in the folder from start to start.
    """
    binaries = postgres_binaries()
    user = _postgres_user()
    make_secret(state.password)
    data = state.folder / "postgres"
    if not data.exists():
        _make_database(state, binaries, user, data)
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(state.ports["postgres"])]
    command += ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
    start(state, "postgres", command, cwd="/", **user)
    wait(state, ["postgres"], lambda: _answers_sql(state), end)
    import psycopg

    with psycopg.connect(state.database("postgres"), autocommit=True) as connection:
        there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in ("mlflow", "studies"):
            if name not in there:
                connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]


def postgres_binaries() -> Path:
    """Folder of PostgreSQL's programs: Debian's newest, or that of the `initdb` in PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = shutil.which("initdb")
    if not found and initdb is None:
        rule = "in PATH or below /usr/lib/postgresql"
        raise BadInput("initdb", None, rule, "Install PostgreSQL, such as by `apt-get install postgresql`.")
    return found[-1].parent if found else Path(str(initdb)).resolve().parent


def _postgres_user() -> dict[str, Any]:
    """Whom it runs as: it refuses to run as root."""
    if os.geteuid():
        return {}
    try:
        ids = pwd.getpwnam("postgres")
    except KeyError:
        remedy = "Make one, or start the cluster as another user than root."
        raise BadInput("user", "postgres", "a user of this machine, because PostgreSQL refuses root", remedy) from None
    return {"user": ids.pw_uid, "group": ids.pw_gid, "extra_groups": []}


def _make_database(state: State, binaries: Path, user: Mapping[str, Any], data: Path) -> None:
    """An empty one, made aside and moved: a half-made one is never taken for it."""
    new = state.folder / "postgres.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    if user:
        for path in (new, state.password):
            os.chown(path, user["user"], user["group"])
    command = [str(binaries / "initdb"), "-D", str(new), "-U", USER, f"--pwfile={state.password}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    with state.log("postgres").open("ab") as log:
        made = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", timeout=120, **user)
    if made.returncode:
        raise Failed("postgres", "could not make its data folder (another user must get to it: see --folder)")
    new.rename(data)


def _answers_sql(state: State) -> bool:
    import psycopg

    try:
        psycopg.connect(state.database("postgres"), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
