"""What a user of the machine without a token gets from a local cluster that really runs: nothing."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cluster.local import postgres
from cluster.local.postgres import start_postgres
from cluster.local.service import free_port, stop_all
from cluster.local.state import ADMIN, USER, State, held, make_secret
from tests.support.cluster_command import call, fresh_folder, living
from tests.support.paths import ROOT
from tests.support.ports import answer_of, listening, named_ports, rows_of
from tests.support.servers import HAS_POSTGRES
from tests.support.unprivileged import as_nobody, only_root

pytestmark = [pytest.mark.long, HAS_POSTGRES]
CHAMPION = "bft-test"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with fresh_folder() as folder:
        started = call(folder, "up", "--workers", "1", "--cpus-per-worker", "1")
        assert started.returncode == 0, started.stderr[-4000:]
        yield folder


@pytest.fixture(scope="module")
def state(folder) -> State:
    return State.load(folder)


@pytest.fixture
def client(state, monkeypatch) -> MlflowClient:
    """One that has logged in."""
    for name, value in state.services().items():
        monkeypatch.setenv(name, value)
    return MlflowClient(state.mlflow, state.mlflow)


@pytest.fixture
def champion(client) -> Iterator[str]:
    """A registered model that is not to be lost."""
    with suppress(MlflowException):
        client.create_registered_model(CHAMPION)
    yield CHAMPION
    assert client.get_registered_model(CHAMPION).name == CHAMPION


def routes() -> set[tuple[str, str]]:
    """Method and path of all that MLflow's server answers, from its own two maps, with "1" for what varies."""
    from mlflow.server.fastapi_app import app, flask_app

    found = {
        (method, re.sub("<[^>]+>", "1", rule.rule))
        for rule in flask_app.url_map.iter_rules()
        for method in rule.methods or ()
    }

    def walk(listed, prefix: str = "") -> None:
        for route in listed:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes, prefix + route.include_context.prefix)
            for method in getattr(route, "methods", None) or ():
                found.add((method, re.sub(r"\{[^}]+\}", "1", prefix + route.path)))

    walk(app.routes)
    return found


def test_every_route_of_mlflow_asks_for_a_login(state):
    known = routes()
    paths = {path for _, path in known}
    for some in ("/", "/health", "/version", "/graphql", "/get-artifact", "/static-files/1", "/v1/traces"):
        assert some in paths
    for some in ("mlflow-artifacts/artifacts/1", "/traces/search", "assistant", "/gateway/", "/jobs"):
        assert any(some in path for path in paths), some
    assert len(known) > 400
    open_ones = []
    with closing(http.client.HTTPConnection("127.0.0.1", state.ports["mlflow"], timeout=20)) as connection:
        guessed = [{}, {"Authorization": "Bearer guessed"}]
        slow = {"Authorization": "Basic YWRtaW46cGFzc3dvcmQxMjM0"}  # the server hashes what it is given: 0.1 s each
        every = sorted({*known, ("GET", "/none"), ("GET", "/%2e%2e/health"), ("GET", "//health")})
        for number, (method, path) in enumerate(every):
            for headers in guessed if number % 20 else [*guessed, slow]:
                connection.request(method, path, headers=headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 401:
                    open_ones.append((method, path, answer.status))
    assert not open_ones


def test_who_has_the_password_is_let_in(state):
    headers = {"Authorization": f"Bearer {state.mlflow_password.read_text()}"}

    def status(path: str, **further: str) -> int:
        request = urllib.request.Request(state.mlflow + path, headers=headers | further)
        try:
            return urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code

    for path in ("/", "/health", "/version", "/api/2.0/mlflow/experiments/search?max_results=1"):
        assert status(path) == 200, path
        assert status(path, Origin=f"http://127.0.0.1:{state.ports['dashboard']}") == 403, "another port's page"
    assert status("/api/2.0/mlflow/experiments/search?max_results=1", Host="evil.example") == 403


@pytest.mark.privileged
@only_root
def test_nobody_gets_neither_token_nor_champion(folder, state, champion):
    """The attack by which a user without any right had Ray's token, and a job as root."""
    secrets = ("ray_token", "mlflow_password", "postgres_password", "postgres_admin_password", "state.json", "logs")
    pids = [one.pid for one in living(folder)]
    place = Path(f"/tmp/bft_attack_{os.getpid()}")

    def post(base: str, path: str, tree: dict, method: str = "POST") -> int:
        request = urllib.request.Request(
            base + path, json.dumps(tree).encode(), {"Content-Type": "application/json"}, method=method
        )
        try:
            return urllib.request.urlopen(request, timeout=20).status
        except urllib.error.HTTPError as error:
            return error.code

    def attack() -> dict:
        place.mkdir()
        (place / "link").symlink_to(folder)
        api = "/api/2.0/mlflow"
        got = {
            "make": post(state.mlflow, f"{api}/experiments/create", {"name": "mine", "artifact_location": str(place)}),
            "read": post(state.mlflow, "/get-artifact?path=link/ray_token&run_id=1", {}, "GET"),
            "lose": post(state.mlflow, f"{api}/registered-models/delete", {"name": champion}, "DELETE"),
            "job": post(state.dashboard, "/api/jobs/", {"entrypoint": "id"}),
        }
        read = [name for name in secrets if os.access(folder / name, os.R_OK)]
        environments, arguments = [], ""
        for pid in pids:
            with suppress(OSError):
                arguments += Path(f"/proc/{pid}/cmdline").read_text()
            with suppress(OSError):
                environments.append(Path(f"/proc/{pid}/environ").read_bytes()[:1])
        try:
            psycopg.connect(f"postgresql://bft@127.0.0.1:{state.ports['postgres']}/mlflow", connect_timeout=5)
            read.append("database")
        except psycopg.OperationalError:
            pass
        (place / "link").unlink()
        place.rmdir()
        return got | {"files": read, "environments": environments, "arguments": arguments}

    got = as_nobody(attack)
    arguments = got.pop("arguments")
    assert got == {"make": 401, "read": 401, "lose": 401, "job": 401, "files": [], "environments": []}
    for name in secrets[:4]:
        assert (folder / name).read_text() not in arguments
        assert (folder / name).stat().st_mode & 0o077 == 0


def test_artifacts_lie_in_the_folder_alone_though_one_is_logged_in(folder, state, client, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    for place in (
        str(tmp_path),
        f"file://{tmp_path}",
        "s3://bucket/x",
        "http://127.0.0.1:1/x",
        "mlflow-artifacts:/../x",
    ):
        with pytest.raises(MlflowException, match=r"`artifact_location` must be left out"):
            client.create_experiment(f"at {place}", artifact_location=place)
    run = client.create_run(client.create_experiment("confined"))
    client.log_text(run.info.run_id, "a text", "a.txt")
    artifacts = folder / "artifacts" / run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    assert (artifacts / "a.txt").read_text() == "a text"
    (artifacts / "link").symlink_to(folder)  # of one who got to write there
    (artifacts / "token.txt").symlink_to(folder / "ray_token")
    headers = {"Authorization": f"Bearer {state.mlflow_password.read_text()}"}
    token = state.token.read_text()

    def read(address: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(state.mlflow + address, headers=headers), timeout=20
            ) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    base = f"/api/2.0/mlflow-artifacts/artifacts/{run.info.artifact_uri.removeprefix('mlflow-artifacts:/')}"
    assert read(f"{base}/a.txt") == (200, "a text")
    for path in ("link/ray_token", "token.txt"):
        for address in (f"{base}/{path}", f"/get-artifact?run_id={run.info.run_id}&path={path}"):
            status, text = read(address)
            assert status >= 400 and token not in text, address
    with pytest.raises(requests.HTTPError, match="outside the artifact directory"):
        client.list_artifacts(run.info.run_id, "link")
    with pytest.raises(requests.HTTPError, match="lie in its own folder alone"):
        client._tracking_client._get_artifact_repo(run.info.run_id).delete_artifacts("link/ray_token")
    assert state.token.exists()

    # a location that came past the server, into its database
    with psycopg.connect(state.database("mlflow"), autocommit=True) as connection:
        connection.execute(
            "UPDATE runs SET artifact_uri = %s WHERE run_uuid = %s", [str(tmp_path / "link"), run.info.run_id]
        )
    status, text = read(f"/get-artifact?run_id={run.info.run_id}&path=ray_token")
    assert status == 400 and "lie in its own folder alone" in text and token not in text


def test_the_role_of_mlflow_and_studies_rules_nothing_else(state):
    with psycopg.connect(state.database("mlflow"), autocommit=True) as connection:
        rights = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls"
        assert (
            connection.execute(f"SELECT {rights} FROM pg_roles WHERE rolname = current_user").fetchone() == (False,) * 5
        )
        for command in (
            "COPY (SELECT 1) TO PROGRAM 'id'",
            "SELECT pg_read_file('/etc/hostname')",
            "CREATE ROLE x SUPERUSER",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(command)  # type: ignore[call-overload]


def test_a_folder_whose_role_was_the_superuser_goes_on_without_that(monkeypatch):
    with fresh_folder() as folder, held(folder):
        state = State(folder, {"postgres": free_port()})
        make_secret(state.password)
        state.admin_password.write_text(state.password.read_text())
        with monkeypatch.context() as patch:  # as it was made before
            patch.setattr(postgres, "ADMIN", USER)
            postgres._make_database(state, postgres.postgres_binaries(), postgres._postgres_user(), folder / "postgres")
        state.admin_password.unlink()
        for is_first in (True, False):
            start_postgres(state, time.monotonic() + 60)
            with psycopg.connect(state.database("studies"), autocommit=True) as connection:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("COPY (SELECT 1) TO PROGRAM 'id'")
                if not is_first:  # what the superuser of before had made is the role's now
                    connection.execute("INSERT INTO kept (state) VALUES ('done')")
                    assert connection.execute("SELECT x, state FROM seen").fetchall() == [(1, "done")]
                    for command in ("TYPE states RENAME TO other", "TABLE kept ADD y int", "SEQUENCE loose RESTART"):
                        connection.execute(f"ALTER {command}")  # type: ignore[call-overload]
            with psycopg.connect(state.database("studies", ADMIN), autocommit=True) as connection:
                roles = dict(
                    connection.execute("SELECT rolname, (rolsuper, rolcanlogin)::text FROM pg_roles").fetchall()
                )
                assert (roles[USER], roles[ADMIN], roles[f"{USER}_initial"]) == ("(f,t)", "(t,t)", "(t,f)")
                if is_first:
                    connection.execute(f"SET ROLE {USER}_initial")  # type: ignore[call-overload]
                    connection.execute("CREATE TYPE states AS ENUM ('open', 'done')")
                    connection.execute("CREATE TABLE kept (x serial PRIMARY KEY, state states)")
                    connection.execute("CREATE VIEW seen AS SELECT * FROM kept")
                    connection.execute("CREATE SEQUENCE loose")
            assert not stop_all(state)


def test_the_table_of_ports_is_what_listens(folder, state):
    """cluster/README.md: every port of a local cluster, its address, and what a client without a token gets there."""
    rows = rows_of(ROOT / "cluster" / "README.md", "port of a local cluster")
    names = named_ports(folder)
    wrong, seen = [], set()
    for address, port, process in listening({one.pid for one in living(folder)}):
        name = names.get(port, "of each worker process")
        seen.add(name)
        row = rows.get(name)
        if row is None:
            wrong.append(f"{name} ({process}) is not in the table")
        elif row != (address, got := answer_of(port)):
            wrong.append(f"{name} ({process}): the table says {row}, but it is {address}, {got}")
    assert not wrong, "\n".join(wrong)
    assert seen >= set(rows) - {"of each worker process"}, "the table has a port that nobody listens on"


def test_nothing_of_it_listens_beyond_loopback(folder):
    found = listening({one.pid for one in living(folder)})
    assert len(found) > 10 and {address for address, *_ in found} == {"127.0.0.1"}
    assert all(psutil.pid_exists(one.pid) for one in living(folder))


def test_the_addresses_that_are_shown_have_no_password(folder, state):
    shown = call(folder, "status").stdout
    assert "MLFLOW_TRACKING_PASSWORD=***" in shown and urlsplit(state.mlflow).netloc in shown
    for secret in (state.mlflow_password, state.password, state.admin_password, state.token):
        assert secret.read_text() not in shown
