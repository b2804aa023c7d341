"""Addresses at which nothing listens are told in seconds; addresses that only Ray can judge are left to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput
from bft_ray.workers.address import address_of, resolved, why_silent
from bft_ray.workers.connect import require_cluster


@pytest.fixture
def closed() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def opened() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("form", ["{}", "ray://{}", "http://{}", "https://{}/path"])
def test_a_closed_port_is_told_and_an_open_one_is_not(form, closed, opened, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    place = f"127.0.0.1:{closed}"
    assert why_silent(form.format(place)) == f"nothing listens at {place} (connection refused)"
    assert why_silent(form.format(f"127.0.0.1:{opened}")) is None
    assert why_silent(form.format(f"localhost:{opened}")) is None


def test_ipv6_stands_in_brackets(closed):
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        assert why_silent(f"[::1]:{server.getsockname()[1]}") is None
    assert why_silent(f"ray://[::1]:{closed}") == f"nothing listens at [::1]:{closed} (connection refused)"


def test_the_ports_of_addresses_without_one(monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: asked.append(place) or socket.socket())
    monkeypatch.setattr("urllib.request.getproxies", dict)
    for one in ("ray://head", "http://head", "https://head/ray", "[fd00::2]:6379", "user@head:1"):
        assert why_silent(one) is None
    assert asked == [("head", 10001), ("head", 80), ("head", 443), ("fd00::2", 6379), ("head", 1)]


def test_what_is_no_port_is_left_to_ray(monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    for one in ("auto", "local", "head", "anyscale://head:1", "head:none", "::1:6379", "[::1", ""):
        assert why_silent(one) is None
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "http://proxy:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: host == "near")
    assert why_silent("http://far:8265") is None
    with pytest.raises(pytest.fail.Exception):
        why_silent("http://near:8265")


def test_a_host_that_is_unknown_and_one_that_is_silent(monkeypatch):
    began = time.monotonic()
    assert str(why_silent("no-host.invalid:6379")).startswith("no host of the name no-host.invalid is known here (")
    monkeypatch.setattr(
        socket, "create_connection", lambda *_: time.sleep(40)
    )  # as where a firewall drops what is sent
    assert why_silent("127.0.0.1:6379", 0.1) == "127.0.0.1:6379 has not answered within 0.1 s"
    assert time.monotonic() - began < 30


def test_auto_is_what_ray_finds_and_its_port_is_tried(monkeypatch, closed):
    monkeypatch.setenv("RAY_ADDRESS", "head:1")
    assert (resolved("auto"), resolved("other:2")) == ("head:1", "other:2")
    assert address_of(ClusterConfig()) == "head:1" and address_of(ClusterConfig(address="local")) is None
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert address_of(ClusterConfig()) == "auto"
    monkeypatch.delenv("RAY_ADDRESS")
    place = f"127.0.0.1:{closed}"  # of a raylet that has outlived its head
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: {place})
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(BadInput, match=r"cluster\.address.*nothing listens at .*Check the address"):
        require_cluster(ClusterConfig(address="auto"))
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", set)
    assert resolved("auto") == "auto"


def test_a_cluster_that_is_away_is_refused_before_anything_is_read(closed, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for form in ("127.0.0.1:{}", "ray://127.0.0.1:{}"):
        with pytest.raises(BadInput, match=rf"nothing listens at 127\.0\.0\.1:{closed} \(connection refused\)"):
            require_cluster(ClusterConfig(address=form.format(closed)))
    with pytest.raises(BadInput, match=r"the address of a dashboard.*bft-ray submit"):
        require_cluster(ClusterConfig(address=f"https://127.0.0.1:{closed}"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    require_cluster(ClusterConfig())  # a local Ray
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    require_cluster(ClusterConfig(address=f"127.0.0.1:{closed}"))  # not asked: this process is connected


@pytest.mark.slow
@pytest.mark.parametrize("words", [["search", "starter"], ["submit"]])
def test_commands_refuse_it_before_they_read_anything(words, closed, tmp_path):
    """Before, a search read and tokenised its rows first (here it would miss them), and a submission waited for 30 s."""
    more = [f"cluster.address=127.0.0.1:{closed}", "data.train.0.path=none.jsonl"]
    if words == ["submit"]:
        more = ["--address", f"ray://127.0.0.1:{closed}", "--", "doctor"]
    command = [sys.executable, "-m", "bft_ray.cli", *words, *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=360)
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("still ")]
    assert done.returncode == 2 and f"nothing listens at 127.0.0.1:{closed} (connection refused)" in line
