"""cluster/local as a user has it: up, a search as a job, its champion in the registry, down, and nothing left."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import optuna
import psutil
import psycopg
import pytest
import yaml
from mlflow import MlflowClient

from cluster.local.postgres import start_postgres
from cluster.local.processes import Process, boot_id, family, find, stop
from cluster.local.service import free_port, is_free, stop_all
from cluster.local.state import ADMIN, State, held
from tests.support.cluster_command import LIMIT_S, call, fresh_folder, living
from tests.support.paths import ROOT
from tests.support.servers import HAS_POSTGRES
from tests.support.small_study import write_space

pytestmark = [pytest.mark.long, HAS_POSTGRES]
SECRETS = ("postgres_password", "postgres_admin_password", "mlflow_password", "ray_token")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with fresh_folder() as folder:
        started = call(folder, "up", "--workers", "2", "--cpus-per-worker", "1")
        assert started.returncode == 0, started.stderr[-4000:]
        assert "secret" not in started.stdout and "bft:***@127.0.0.1" in started.stdout
        yield folder


@pytest.fixture(scope="module")
def env(folder) -> dict[str, str]:
    """What a shell has after `eval "$(python -m cluster.local env)"`."""
    printed = call(folder, "env").stdout
    shell = f"{printed}\nexec {shlex.quote(sys.executable)} -c 'import json, os; print(json.dumps(dict(os.environ)))'"
    found = json.loads(subprocess.check_output(["bash", "-c", shell], text=True))
    return found | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{found['PATH']}"}


def num_sleeping(processes: set[Process]) -> int:
    """Those that are a `sleep` of the job below, not of Ray."""
    return sum(Path(f"/proc/{one.pid}/cmdline").read_bytes().startswith(b"sleep\x0030") for one in processes)


def test_it_listens_on_loopback_alone_and_shows_no_password(folder, env):
    password = (folder / "postgres_password").read_text()
    secrets = [(folder / name).read_text() for name in SECRETS]
    addresses = set()
    processes = living(folder)
    assert len(processes) > 10
    for one in processes:
        process = psutil.Process(one.pid)
        assert not [secret for secret in secrets if secret in " ".join(process.cmdline())]
        found = process.net_connections("inet")
        addresses |= {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"} and addresses
    for name in (*SECRETS, "state.json"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    assert password in env["STUDY_DATABASE"]
    shown = call(folder, "status")
    assert shown.returncode == 0
    texts = [shown.stdout, (folder / "state.json").read_text()]
    texts += [log.read_text(errors="replace") for log in (folder / "logs").iterdir()]
    assert not [secret for secret in secrets if any(secret in text for text in texts)]


def test_each_door_has_its_lock(folder, env):
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(env["STUDY_DATABASE"].replace((folder / "postgres_password").read_text(), "guessed"))
    with psycopg.connect(State.load(folder).database("postgres", ADMIN)) as connection:
        rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
    assert rules == [("scram-sha-256",)]
    jobs = f"{env['RAY_API_SERVER_ADDRESS']}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(jobs, timeout=20)
    experiments = f"{env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/search?max_results=1"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(experiments, timeout=20)


def test_up_again_says_that_it_runs(folder):
    before = State.load(folder).processes
    again = call(folder, "up", "--workers", "1")
    assert again.returncode == 0 and "runs already" in again.stdout
    assert State.load(folder).processes == before
    assert set(before.values()) <= living(folder)  # their children come and go


def test_a_search_as_a_job(folder, env, make_tree, tiny_data, tmp_path, monkeypatch):
    """What KubeRay does with cluster/kuberay/rayjob.yaml, here: by addresses alone, from what git does not ignore."""
    confirmation = tmp_path / "confirmation.jsonl"
    rows = [json.loads(row) for row in tiny_data.read_text().splitlines()]
    turned = [row | {"prompt": row["completion"], "completion": row["prompt"]} for row in rows]  # rows of its own
    confirmation.write_text("\n".join(map(json.dumps, turned)))
    tree = make_tree(cluster={"num_workers": 1, "gpus_per_worker": 0})
    del tree["tracking"]  # the server that the job finds in its environment
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    write_space(
        tmp_path,
        baselines=[{"name": "bft", "overrides": {"loss.method": "bft", "loss.window": 256}}],
        confirmation={
            "top_k": 1,
            "seeds": [101, 102, 103],
            "min_seeds_waived": True,
            "overrides": {"data.validation.0.path": str(confirmation)},
        },
    )
    words = ["python", "-m", "jobs.search", f"{tmp_path}/space.yaml", f"cluster.storage_path={tmp_path}/shared"]
    runtime = {"env_vars": {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}}
    command = ["ray", "job", "submit", "--working-dir", str(ROOT), "--runtime-env-json", json.dumps(runtime)]
    command += ["--submission-id", "search", "--", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, cwd="/")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

    studies = optuna.get_all_study_names(env["STUDY_DATABASE"])
    assert {"small/test/search", "small/test/confirmation"} <= set(studies)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, env[name])
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    champion = client.get_model_version_by_alias("bft-test", "champion")
    run = client.get_run(champion.run_id)
    assert run.info.status == "FINISHED"
    artifacts = folder / "artifacts" / run.info.artifact_uri.removeprefix("mlflow-artifacts:/")
    assert any(path.is_file() for path in artifacts.rglob("*"))
    assert (tmp_path / "shared").is_dir() and not (tmp_path / "mlflow.db").exists()
    listed = subprocess.run(["ray", "job", "list"], env=env, capture_output=True, text=True, timeout=180)
    assert "jobs.search" in listed.stdout
    assert all((folder / name).read_text() not in listed.stdout + done.stdout for name in SECRETS)


def test_down_leaves_no_process_and_up_goes_on_with_the_data(folder, env):
    with psycopg.connect(env["STUDY_DATABASE"]) as connection:
        connection.execute("CREATE TABLE kept (of_the_first_start int)")
    job = ["ray", "job", "submit", "--no-wait", "--", "sh", "-c", "setsid sleep 301 & exec sleep 302"]
    subprocess.run(job, env=env, check=True, capture_output=True, timeout=180)
    end = time.monotonic() + 60
    while num_sleeping(before := living(folder)) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert num_sleeping(before) == 2
    stopped = call(folder, "down")
    assert stopped.returncode == 0 and "postgres, mlflow, ray-head, ray-worker-1, ray-worker-2" in stopped.stdout
    assert [find(one.pid) for one in before if find(one.pid) == one] == []
    assert not State.load(folder).processes
    logs = [path for path in (folder / "logs").rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver") for path in logs)  # Ray's are kept, and nothing in them is secret
    secrets = [(folder / name).read_bytes() for name in SECRETS]
    assert not [path for path in logs if any(secret in path.read_bytes() for secret in secrets)]
    again = call(folder, "down")
    assert again.returncode == 0 and "nothing runs" in again.stdout
    assert call(folder, "status").returncode == 1 and call(folder, "env").returncode == 1

    with held(folder):  # the database alone: what was written is still there
        state = State(folder, {"postgres": free_port()})
        start_postgres(state, time.monotonic() + 60)
        with psycopg.connect(state.database("studies")) as connection:
            assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)
        assert not stop_all(state)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_refused_before_anything_starts():
    with fresh_folder() as folder, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = call(folder, "up", "--mlflow-port", str(port))
        assert refused.returncode == 2 and f"`--mlflow-port` is {port}, but must be" in refused.stderr
        assert not (folder / "postgres").exists() and not living(folder)


def test_a_start_that_fails_shows_the_log_and_stops_what_had_started():
    with fresh_folder() as folder:
        late = call(folder, "up", "--timeout", "4")
        assert late.returncode == 1, late.stdout
        assert "was not ready in time" in late.stderr and "What had started is stopped." in late.stderr
        assert "--- the end of" in late.stderr and (folder / "logs" / "postgres.log").stat().st_size
        assert not living(folder) and not State.load(folder).processes
        assert all(is_free(port) for port in State.load(folder).ports.values())


def test_processes_of_others_are_left_alone():
    """A state file that a crash left: its pids belong to others by now."""
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        with fresh_folder() as folder:
            found = find(other.pid)
            assert found is not None
            State(folder, processes={"ray-head": Process(found.pid, found.started - 1)}).save()
            assert call(folder, "status").returncode == 1
            stopped = call(folder, "down")
            assert stopped.returncode == 0 and "nothing runs" in stopped.stdout

            State(folder, processes={"ray-head": found}).save()  # the same process, said to be of an earlier boot
            path = folder / "state.json"
            path.write_text(path.read_text().replace(boot_id(), "another boot"))
            assert "nothing runs" in call(folder, "down").stdout
        assert other.poll() is None
    finally:
        other.kill()
        other.wait(30)


def test_children_are_stopped_though_their_parent_was_killed(tmp_path):
    """Ones that ignore SIGTERM, and one that has left the session, are found while the first process lives or not."""
    script = "trap '' TERM; setsid sleep 61 & sleep 62 & sleep 63"
    parent = subprocess.Popen(["sh", "-c", script], start_new_session=True)
    root = find(parent.pid)
    assert root is not None
    end = time.monotonic() + 20
    while len(family([root])) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    whole = family([root])
    assert len(whole) == 4
    assert not stop([root], patience_s=0.5)
    parent.wait(30)
    assert not [one for one in whole if find(one.pid) == one]

    parent = subprocess.Popen(["sh", "-c", "sleep 64 & wait"], start_new_session=True)
    root = find(parent.pid)
    assert root is not None
    while len(family([root])) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    parent.kill()
    parent.wait(30)
    assert len(family([root])) == 1  # what it left in its session
    assert not stop([root], patience_s=0.5)
