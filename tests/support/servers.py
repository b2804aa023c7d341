"""PostgreSQL, an MLflow server and a browser, as long as a context lasts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.local_cluster import free_ports

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
HAS_POSTGRES = pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def running(command: list[str], ready, log: Path, **options) -> Iterator[subprocess.Popen]:
    """A server for as long as the context lasts."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, **options)
        try:
            end = time.monotonic() + 120
            while not ready():
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
                time.sleep(0.5)
            yield process
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL of our own on loopback; yields its URI."""
    (port,) = free_ports(1)
    binaries = POSTGRES[-1].parent
    command, user = _postgres_command(folder, port)
    if user:
        folder.chmod(0o777)
        for parent in folder.parents[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)
    initdb = [binaries / "initdb", "-D", folder / "pg", "-U", "bft", "-A", "trust"]
    subprocess.run(initdb, check=True, capture_output=True, **user)

    def ready() -> bool:
        return subprocess.run([binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode == 0

    with running(command, ready, folder / "pg.log", **user):
        yield f"postgresql://bft:secret@127.0.0.1:{port}/postgres"


def _postgres_command(folder: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """The command of the server, and whom it runs as: PostgreSQL refuses to run as root."""
    command = [str(POSTGRES[-1].parent / "postgres"), "-D", str(folder / "pg"), "-p", str(port)]
    command += ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    return command, {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}


def restart_postgres(folder: Path, url: str) -> subprocess.Popen:
    """The server of `postgres` again, after it was ended, at the same address."""
    command, user = _postgres_command(folder, int(url.rpartition(":")[2].partition("/")[0]))
    with (folder / "again.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, **user)


@contextmanager
def mlflow_server(folder: Path, store: str) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", str(folder / "artifacts")]

    def ready() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        except OSError:
            return False

    with running(command, ready, folder / "mlflow.log", cwd=folder):
        yield f"http://127.0.0.1:{port}"


def page_text(url: str, folder: Path) -> str:
    """The page as the browser holds it after its scripts ran."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=30000", "--window-size=1400,1600"]
    return subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=360).stdout
