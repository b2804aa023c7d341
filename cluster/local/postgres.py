"""PostgreSQL on loopback, with passwords: the databases of MLflow and of the studies."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.errors import BadInput
from cluster.local.service import Failed, start, wait
from cluster.local.state import ADMIN, HOST, USER, State, make_secret

if TYPE_CHECKING:
    import psycopg


#: commands that change the owner of what MLflow and Optuna make; sequences of a column and types of a table go with it
_OWNED = """
    SELECT format('ALTER %%s %%I.%%I OWNER TO %%I', kind, space, name, owner)
    FROM (
        SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
               relnamespace::regnamespace::text AS space, relname AS name, relowner AS now
        FROM pg_class
        WHERE relkind IN ('r', 'p', 'v', 'S')
          AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND relkind = 'S' AND deptype IN ('a', 'i'))
        UNION ALL
        SELECT 'TYPE', typnamespace::regnamespace::text, typname, typowner FROM pg_type WHERE typtype IN ('e', 'd')
    ) AS made, (SELECT %s::text AS owner) AS given
    WHERE space NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND pg_get_userbyid(now) <> owner
"""


def start_postgres(state: State, end: float) -> None:
    """PostgreSQL on loopback with passwords, and the databases `mlflow` and `studies`, whose owner is no superuser.

    Its data stay in the folder from start to start.
    """
    binaries = postgres_binaries()
    user = _postgres_user()
    data = state.folder / "postgres"
    is_of_old = data.exists() and not state.admin_password.exists()
    for secret in (state.password, state.admin_password):
        make_secret(secret)
    if not data.exists():
        _make_database(state, binaries, user, data)
    command = [str(binaries / "postgres"), "-D", str(data), "-p", str(state.ports["postgres"])]
    command += ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]
    start(state, "postgres", command, cwd="/", **user)
    admin = state.database("postgres", USER if is_of_old else ADMIN)
    wait(state, ["postgres"], lambda: _answers_sql(admin), end)
    import psycopg

    with psycopg.connect(admin, autocommit=True) as connection:
        if is_of_old:  # its owner was the superuser
            _make_role(connection, ADMIN, state.admin_password, "SUPERUSER")
    with psycopg.connect(state.database("postgres", ADMIN), autocommit=True) as connection:
        first = connection.execute("SELECT rolname FROM pg_roles WHERE oid = 10").fetchone()
        if first == (USER,):  # it can be no user like any other: from PostgreSQL 16 on it must stay a superuser
            _retire(connection, USER)
        _make_role(connection, USER, state.password, "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS")
        there = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in ("mlflow", "studies"):
            if name not in there:
                connection.execute(f"CREATE DATABASE {name} OWNER {USER}")  # type: ignore[call-overload]
            else:
                connection.execute(f"ALTER DATABASE {name} OWNER TO {USER}")  # type: ignore[call-overload]
                with psycopg.connect(state.database(name, ADMIN), autocommit=True) as inside:
                    _hand_over(inside, USER)


def _make_role(connection: psycopg.Connection, name: str, password: Path, rights: str) -> None:
    """A role with these rights, also where it is there already. The server gets the password's hash: it logs commands."""
    there = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    verb = "CREATE" if there is None else "ALTER"
    hashed = connection.pgconn.encrypt_password(password.read_bytes(), name.encode(), b"scram-sha-256").decode()
    connection.execute(f"{verb} ROLE {name} LOGIN {rights} PASSWORD '{hashed}'")  # type: ignore[call-overload]


def _retire(connection: psycopg.Connection, name: str) -> None:
    """Let the role that the server began with be one that nobody logs in as, under another name."""
    retired = f"{name}_initial"
    connection.execute(f"ALTER ROLE {name} RENAME TO {retired}")  # type: ignore[call-overload]
    connection.execute(f"ALTER ROLE {retired} NOLOGIN PASSWORD NULL")  # type: ignore[call-overload]


def _hand_over(connection: psycopg.Connection, owner: str) -> None:
    """Give a role all tables, views, sequences and types of a database. REASSIGN OWNED refuses the role that the server
    began with.
    """
    rows = connection.execute(_OWNED, [owner]).fetchall()
    for (command,) in rows:
        connection.execute(command)


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
        for path in (new, state.admin_password):
            os.chown(path, user["user"], user["group"])
    command = [str(binaries / "initdb"), "-D", str(new), "-U", ADMIN, f"--pwfile={state.admin_password}"]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
    with state.log("postgres").open("ab") as log:
        made = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/", timeout=120, **user)
    if made.returncode:
        raise Failed("postgres", "could not make its data folder (another user must get to it: see --folder)")
    new.rename(data)


def _answers_sql(address: str) -> bool:
    import psycopg

    try:
        psycopg.connect(address, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
