"""`submit`: what is uploaded, and jobs of a real cluster with a token, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bft_ray.cli import main
from bft_ray.errors import BadInput, BftError
from bft_ray.operate.submit.follow import Followed
from bft_ray.operate.submit.upload import LARGE_BYTES, pack, require_files
from tests.support.local_cluster import Cluster, local_cluster

LIMIT_S = 900


def write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(count)  # no blocks on the disk


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as a user has it: a config, data, results, an environment."""
    folder = tmp_path / "work"
    write(folder / "bft.yaml", 100)
    write(folder / "data" / "train.jsonl", 2000)
    write(folder / "data" / "raw" / "all.bin", 50_000)
    write(folder / "results" / "a" / "b.bin", 7000)
    write(folder / ".venv" / "lib" / "torch.so", 90_000)
    (folder / ".rayignore").write_text("data/raw\n")
    (folder / ".gitignore").write_text("results/\n")
    return folder


def test_the_upload_is_counted_and_says_what_it_leaves_out(folder, tmp_path):
    upload = pack(folder, tmp_path / "upload.zip")
    assert upload.names == {"bft.yaml", "data/train.jsonl", ".rayignore", ".gitignore"}
    assert upload.left_out == ((".venv/", 90_000), ("data/raw/", 50_000), ("results/", 7000))
    assert 2100 < upload.size_bytes < 4000
    text = upload.describe()
    assert ".venv/ (87.9 kiB), data/raw/ (48.8 kiB), results/ (6.8 kiB)" in text and "4 files" in text
    assert "note" not in text


def test_more_than_100_mib_is_said_and_more_than_ray_takes_is_refused(folder, tmp_path, monkeypatch):
    write(folder / "large.bin", LARGE_BYTES)
    assert "note: more than 100.0 MiB" in pack(folder, tmp_path / "large.zip").describe()
    monkeypatch.setattr("ray._private.runtime_env.packaging.GCS_STORAGE_MAX_SIZE", LARGE_BYTES)
    with pytest.raises(BadInput, match=r"its largest: large\.bin \(100\.0 MiB\).*\.rayignore"):
        pack(folder, tmp_path / "again.zip")


def test_a_file_of_the_command_that_is_left_out_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    upload = pack(Path("."), tmp_path / "upload.zip")
    require_files(["bft.yaml", "./data/train.jsonl", "medical_qa", "/shared/x.yaml", "data.limit=3", "--yaml"], upload)
    with pytest.raises(BadInput, match=r"data/raw/all\.bin"):
        require_files(["data/raw/all.bin"], upload)
    elsewhere = pack(Path("data"), tmp_path / "elsewhere.zip")
    with pytest.raises(BadInput, match=r"bft\.yaml"):
        require_files(["bft.yaml"], elsewhere)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "COMMAND"),
        (["ui"], "COMMAND"),
        (["search", "medical_qa"], "--address"),
        (["--address", "head:8265", "search", "medical_qa"], "--address"),
        (["--follow", "job", "search"], "--follow"),
        (["--address", "http://127.0.0.1:9", "--env", "NOT_SET_HERE", "config"], "--env"),
    ],
)
def test_bad_input_is_refused_here(words, named, capsys, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert main(["submit", *words]) == 2
    assert named in capsys.readouterr().err


def test_a_typo_of_the_command_ends_here():
    with pytest.raises(SystemExit):
        main(["submit", "--address", "http://127.0.0.1:9", "serch", "medical_qa"])


# ---- on a cluster ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(num_cpus=2) as running:
        yield running


def command_of(cluster: Cluster, address: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "bft_ray.cli", "submit", "--address", address, *words]


def submit(cluster: Cluster, folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = command_of(cluster, cluster.dashboard, *words)
    return subprocess.run(
        command, env=cluster.env | env, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.fixture
def training(make_tree, tmp_path) -> tuple[Path, dict]:
    """A folder with the config of a training of many short steps, and its tree."""
    tree = make_tree(
        cluster={"num_workers": 1, "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")},
        schedule={"steps": 400},
        evaluation={"every_steps": 400},
    )
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "bft.yaml").write_text(json.dumps(tree))
    return folder, tree


@pytest.mark.long
def test_a_job_ends_with_the_exit_code_of_its_command(cluster, training):
    folder, _ = training
    done = submit(cluster, folder, "--env", "BFT_NOTE=1", "config", "bft.yaml", "seed=41")
    assert done.returncode == 0, done.stderr
    assert "seed: 41" in done.stdout and "domain: test" in done.stdout  # the output of the job, and nothing else
    assert "1 files" in done.stderr and "Ray 2." in done.stderr
    failed = submit(cluster, folder, "config", "bft.yaml", "loss.windw=8")
    assert failed.returncode == 2 and "Did you mean `loss.window`?" in failed.stdout

    later = submit(cluster, folder, "--no-follow", "config", "bft.yaml", "seed=42")
    job = later.stderr.rsplit("--follow ", 1)[1].split()[0]
    assert later.returncode == 0 and "seed" not in later.stdout
    followed = submit(cluster, folder, "--follow", job)
    assert followed.returncode == 0 and "seed: 42" in followed.stdout
    unknown = submit(cluster, folder, "--follow", "no-such-job")
    assert unknown.returncode == 1 and "knows no job" in unknown.stderr


def test_a_job_is_not_unknown_because_404_stands_in_its_id():
    class Away:
        def get_job_info(self, job_id: str) -> None:
            raise ConnectionError(f"Max retries exceeded with url: /api/jobs/{job_id}")

    with pytest.raises(BftError, match="no answer from the cluster for 0 s"):
        Followed(Away(), "bft-train-1404abcd", print, print).until_end(patience_s=0)


@pytest.mark.long
def test_a_client_without_the_token_is_refused_before_anything_is_uploaded(cluster, training):
    folder, _ = training
    refused = submit(cluster, folder, "config", RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2 and "RAY_AUTH_TOKEN_PATH" in refused.stderr and "upload" not in refused.stderr


@contextlib.contextmanager
def line_to(address: str) -> Iterator[tuple[str, threading.Event]]:
    """A line to a cluster on a port of its own, and an event: while it is set, the line is cut."""
    host, _, port = address.removeprefix("http://").partition(":")
    cut, ended = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.2)

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError), source, target:  # the other direction may have closed both
            source.settimeout(0.2)
            while not (cut.is_set() or ended.is_set()):
                with contextlib.suppress(TimeoutError):
                    if not (part := source.recv(65536)):
                        return
                    target.sendall(part)

    def listen() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                near, _ = listener.accept()
                if cut.is_set():
                    near.close()
                    continue
                far = socket.create_connection((host, int(port)))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", cut
    finally:
        ended.set()
        thread.join(10)
        listener.close()


def wait_for(process: subprocess.Popen, path: Path, text: str) -> None:
    end = time.monotonic() + LIMIT_S
    while text not in path.read_text():
        both = "\n".join((path.parent / name).read_text()[-3000:] for name in ("out.txt", "err.txt"))
        assert process.poll() is None and time.monotonic() < end, both
        time.sleep(0.1)


@contextlib.contextmanager
def running(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen, Path, Path]]:
    """A command, and the files that its output and its errors go to."""
    out, err = folder.parent / "out.txt", folder.parent / "err.txt"
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=stdout, stderr=stderr)
        try:
            yield process, out, err
        finally:
            process.kill()
            process.wait(20)


@pytest.mark.long
def test_a_dropped_connection_costs_nothing(cluster, training):
    folder, _ = training
    words = ["train", "bft.yaml", "schedule.steps=150"]
    with (
        line_to(cluster.dashboard) as (address, cut),
        running(command_of(cluster, address, *words), folder, cluster.env) as (process, out, err),
    ):
        wait_for(process, out, "worker")
        cut.set()
        wait_for(process, err, "no answer from the cluster")
        cut.clear()
        wait_for(process, err, "the cluster answers again")
        assert process.wait(LIMIT_S) == 0, err.read_text()[-2000:]
    text = out.read_text()
    assert text.count("step 150/150") == 1 and "exported" in text


@pytest.mark.long
def test_ctrl_c_stops_the_job_cleanly(cluster, training):
    folder, tree = training
    words = ["train", "bft.yaml", "schedule.steps=100000"]
    with running(command_of(cluster, cluster.dashboard, *words), folder, cluster.env) as (process, out, err):
        wait_for(process, out, "step ")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(LIMIT_S) == 130, err.read_text()[-2000:]
    assert "interrupted; the same command with its name resumes" in out.read_text()  # the job's own last line
    assert "has ended" in err.read_text()
    client = MlflowClient(tree["tracking"]["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
