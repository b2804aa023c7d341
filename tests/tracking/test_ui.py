"""`bft-ray ui` as a user has it: a link, a browser, and nobody else."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path

import psutil
import pytest

from bft_ray.cli import main
from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import connect, page_of
from bft_ray.tracking.ui import show
from tests.support.servers import CHROMIUM, page_text

LINK = re.compile(r"http://127\.0\.0\.1:(\d+)/\?token=\S+")


@contextmanager
def running(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, list[str]]]:
    """The command, and the lines that it prints, which grow."""
    command = [sys.executable, "-m", "bft_ray.cli", "ui", *options]
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    lines: list[str] = []
    assert process.stdout is not None
    threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True).start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait(30)


def links(lines: list[str], count: int) -> list[str]:
    """The links printed, once there are so many."""
    end = time.monotonic() + 90
    while len(found := [link[0] for line in list(lines) if (link := LINK.search(line))]) < count:
        assert time.monotonic() < end, "".join(lines)
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_a_link_opens_the_page_once_and_nobody_else_gets_in(tmp_path):
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with Tracker.start(tracking, "bft/test", "a-run", {"a": 1}, {}, spool=tmp_path, keeper=False) as tracker:
        tracker.log_text("a: 1", "config.yaml")
    assert page_of(tracking.uri) == f"bft-ray ui --uri sqlite:///{tmp_path}/mlflow.db"
    with running(tmp_path) as (process, lines):
        (link,) = links(lines, 1)
        base = link.partition("?")[0]

        def status(address: str, opener=urllib.request.build_opener()) -> int:  # noqa: B008
            try:
                with opener.open(base + address, timeout=30) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code

        artifact = f"get-artifact?run_id={tracker.run_id}&path=config.yaml"
        for address in (
            "",
            "health",
            "static-files/x",
            "ajax-api/2.0/mlflow/experiments/search?max_results=1",
            artifact,
        ):
            assert status(address) == 401, address
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        assert status(link.removeprefix(base), browser) == 200
        assert status(artifact, browser) == 200 and status("", browser) == 200
        assert status(link.removeprefix(base)) == 401, "a second time"
        assert len(links(lines, 2)) == 2
        process_ = psutil.Process(process.pid)
        assert not process_.children()
        listens = [one.laddr for one in process_.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        assert [(one.ip, one.port) for one in listens] == [("127.0.0.1", int(LINK.search(link)[1]))]  # type: ignore[index]
        assert "token" not in " ".join(process_.cmdline())
        if CHROMIUM:
            text = page_text(
                links(lines, 2)[1] + f"#/experiments/{experiment(tracker)}/runs/{tracker.run_id}", tmp_path
            )
            assert "a-run" in text and ">Models<" in text  # which MLflow shows in its mode for models alone
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0, "".join(lines)
    assert "Traceback" not in "".join(lines)


def experiment(tracker: Tracker) -> str:
    return tracker.client.get_run(tracker.run_id).info.experiment_id


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("sqlite:///none.db", "a database that is there"),
        ("http://ann:s3cr3t@mlflow:5000", "a server has a page of its own"),
        ("file:///tmp/x", "an address that begins with sqlite:///"),
    ],
)
def test_what_is_no_database_is_refused(uri, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=re.escape(text)) as error:
        show(uri)
    assert "s3cr3t" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_refused_before_a_link_is_printed(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    connect(uri)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["ui", "--uri", uri, "--port", str(port)]) == 2
    printed = capsys.readouterr()
    assert (
        f"`--port` is {port}, but must be a port of 127.0.0.1 that is free" in printed.err
        and "token" not in printed.out
    )


def test_no_text_names_the_server_without_a_login():
    from tests.support.paths import ROOT

    for path in [*ROOT.glob("bft_ray/**/*.py"), *ROOT.glob("jobs/*.py"), *ROOT.glob("docs/*.md")]:
        assert "mlflow ui" not in path.read_text() and "mlflow'} ui" not in path.read_text(), path


def test_how_to_see_the_runs_has_no_password(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert page_of("sqlite:///mlflow.db") == "bft-ray ui"
    assert page_of("https://ann:s3cr3t@mlflow/x") == "open https://ann:***@mlflow/x"
    text = page_of("postgresql://ann:s3cr3t@db/mlflow")
    assert text.startswith('bft-ray ui --uri "$MLFLOW_TRACKING_URI"') and "s3cr3t" not in text
