"""`cluster/slurm`: run by a real Slurm of one node, on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.ports import listening, refusal_of
from tests.support.slurm import PROGRAMS, Slurm, slurm

SCRIPT = ROOT / "cluster" / "slurm" / "bft_ray.sbatch"
LIMIT_S = 1200


def test_the_script_is_bash_and_wants_a_command():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    empty = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert empty.returncode == 2 and "usage: sbatch" in empty.stderr


missing = [name for name in PROGRAMS if not shutil.which(name)]
needs_slurm = pytest.mark.skipif(
    bool(missing) or os.geteuid() != 0,
    reason=f"needs root and Debian's slurmctld, slurmd, slurm-client and munge (missing: {', '.join(missing) or 'root'})",
)


@pytest.fixture(scope="module")
def running():
    with slurm(num_cpus=4) as found:
        yield found


@pytest.fixture
def submit(running, tmp_path) -> Callable[..., tuple[str, Path]]:
    """A function that submits a command with options of sbatch: the job, and the file of its output."""
    jobs = []

    def call(*command: str, **options: str) -> tuple[str, Path]:
        out = tmp_path / f"out-{len(jobs)}.txt"
        given = {
            "cpus-per-task": "2",
            "output": str(out),
            **{key.replace("_", "-"): value for key, value in options.items()},
        }
        words = [f"--{key}={value}" for key, value in given.items()]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own = running.env | {"PATH": path, "BFT_JOB_FOLDER": str(tmp_path / "jobs"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["sbatch", "--parsable", f"--chdir={ROOT}", *words, str(SCRIPT), *command],
            env=own, capture_output=True, text=True, timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        jobs.append(done.stdout.strip())
        return jobs[-1], out

    yield call
    for job in jobs:
        subprocess.run(["scancel", job], env=running.env, timeout=180, check=False)


def wait_for(running: Slurm, job: str, out: Path, is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_so():
        text = out.read_text()[-3000:] if out.exists() else ""
        assert time.monotonic() < end, f"{running.state(job)}\n{text}"
        time.sleep(0.5)


def of_job(job: str) -> list[psutil.Process]:
    """Living processes that have the temporary folder of the job in their command."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != "zombie" and f"/tmp/bft_{job}" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


@pytest.mark.long
@pytest.mark.privileged
@needs_slurm
def test_two_jobs_at_once_leave_nothing_behind(running, submit, tmp_path):
    jobs = [submit("config", "starter", f"seed={seed}") for seed in (41, 42)]
    for (job, out), seed in zip(jobs, (41, 42), strict=True):
        wait_for(running, job, out, lambda job=job: running.state(job) in ("COMPLETED", "FAILED"))
        assert running.state(job) == "COMPLETED" and f"seed: {seed}" in out.read_text(), out.read_text()[-3000:]
        assert not of_job(job) and not Path(f"/tmp/bft_{job}").exists() and not (tmp_path / "jobs" / job).exists()
    job, out = submit("config", "starter", "loss.windw=8")
    wait_for(running, job, out, lambda: running.state(job) in ("COMPLETED", "FAILED"))
    assert running.state(job) == "FAILED" and "Did you mean `loss.window`?" in out.read_text()


def config_file(make_tree: Callable[..., dict], folder: Path, steps: int) -> str:
    tree = make_tree(
        cluster={"num_workers": 1, "gpus_per_worker": 0, "storage_path": str(folder / "results")},
        schedule={"steps": steps},
        evaluation={"every_steps": 1000},
        checkpoint={"every_steps": 10},  # a first one soon, at which the tests know that it trains
    )
    path = folder / "bft.yaml"
    path.write_text(json.dumps(tree))
    return str(path)


@pytest.mark.release
@pytest.mark.privileged
@needs_slurm
def test_each_port_of_a_job_refuses_who_has_no_token(running, submit, make_tree, tmp_path):
    job, out = submit("train", config_file(make_tree, tmp_path, 100_000))
    wait_for(running, job, out, lambda: out.exists() and "checkpoint of step" in out.read_text())
    found = listening({each.pid for one in of_job(job) for each in (one, *one.children(recursive=True))})
    # not srun, whose ports are Slurm's, nor a rank, which a stranger would disturb
    ours = [(port, name) for _, port, name in found if not name.startswith("srun ") and "RayTrainWorker" not in name]
    assert len(ours) > 8 and {address for address, _, name in found if not name.startswith("srun ")} == {"127.0.0.1"}
    answers = {(name.split()[0], port): refusal_of(port) for port, name in ours}
    assert set(answers.values()) == {"401", "UNAUTHENTICATED", "numbers"}, answers


def restarts(running: Slurm, job: str) -> int:
    return int(running.call("scontrol", "show", "job", job).partition("Restarts=")[2].split()[0])


@pytest.mark.release
@pytest.mark.privileged
@needs_slurm
def test_usr1_sends_a_training_back_to_the_queue_and_it_resumes(running, submit, make_tree, tmp_path):
    config = config_file(make_tree, tmp_path, 600)
    job, out = submit("train", config)
    wait_for(running, job, out, lambda: out.exists() and "checkpoint of step" in out.read_text())
    running.call("scancel", "--batch", "--signal=USR1", job)
    wait_for(
        running, job, out, lambda: restarts(running, job) == 1 and "resum" in out.read_text().partition("USR1:")[2]
    )
    wait_for(running, job, out, lambda: running.state(job) in ("COMPLETED", "FAILED"))
    text = out.read_text()
    assert running.state(job) == "COMPLETED", text[-3000:]
    before, after = text.split("USR1: ending cleanly", 1)
    saved = re.search(
        r"^USR1: the checkpoint of step (\d+) is saved; the same command with name=\S+ resumes from the last checkpoint$",
        after,
        re.M,
    )
    assert saved, after[-3000:]
    assert f"resumes after step {saved[1]}:" in after
    assert "step 600/600" in after and "step 600/600" not in before and not of_job(job)


@pytest.mark.release
@pytest.mark.privileged
@needs_slurm
def test_the_time_limit_sends_it_back_as_well(running, submit, make_tree, tmp_path):
    config = config_file(make_tree, tmp_path, 100_000)
    job, out = submit("train", config, time="2", signal="B:USR1@60")
    wait_for(running, job, out, lambda: restarts(running, job) == 1)
    assert "USR1: ending cleanly" in out.read_text()
