"""Spreading a function over shards: in this process, on a real Ray of two CPUs, and when things break."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput, BftError, NoRoom
from bft_ray.workers import connect as reach
from bft_ray.workers.connect import connect, session_option
from bft_ray.workers.room import num_places, require_resources, worker_resources
from bft_ray.workers.spread import spread


def square(state, shard):
    return state, shard * shard


def two_workers(**settings) -> ClusterConfig:
    return ClusterConfig(num_workers=2, cpus_per_worker=1.0, gpus_per_worker=0.0, **settings)


@pytest.fixture(scope="module")
def ray_of_two_cpus():
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    yield ray
    ray.shutdown()


# --- without Ray ----------------------------------------------------------------------------------


def test_a_head_that_is_gone_is_told_again_and_again(monkeypatch, caplog):
    for name, seconds in (("_WATCH_S", 0.05), ("_SILENT_S", 0.2), ("_AGAIN_S", 0.3)):
        monkeypatch.setattr(reach, name, seconds)
    head = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{head.getsockname()[1]}"
    with reach._watched(address):
        time.sleep(0.6)
        assert not caplog.records
        head.close()
        deadline = time.monotonic() + 10
        while len(caplog.records) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    first, *_ = said = [record.getMessage() for record in caplog.records]
    assert len(said) >= 2 and f"(its GCS at {address}) has not answered for 0 s. After a minute Ray ends" in first
    assert first.endswith("once the cluster is back, the same command goes on")
    told = len(caplog.records)
    time.sleep(0.5)
    assert len(caplog.records) <= told + 1  # the watch has ended
    with reach._watched(None):
        pass


def test_without_a_cluster_all_runs_here_and_setup_runs_once():
    pids: list[int] = []
    seen = []

    def setup() -> int:
        pids.append(os.getpid())
        return len(pids)

    results = spread(
        lambda state, shard: (state, shard, os.getpid()),
        [3, 1, 2],
        cluster=None,
        setup=setup,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert results == [(1, shard, os.getpid()) for shard in (3, 1, 2)]
    assert pids == [os.getpid()] and seen == [(1, 3), (2, 3), (3, 3)]


def test_one_worker_without_an_address_is_this_process(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    results = spread(lambda _, shard: os.getpid(), [1, 2], cluster=ClusterConfig(num_workers=1))
    assert results == [os.getpid()] * 2


def test_no_shards_give_no_results():
    assert spread(square, [], cluster=two_workers(), setup=lambda: 1 / 0) == []


def test_an_address_where_nobody_listens_is_told_in_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(BadInput, match=rf"`cluster.address` is '{address}'.*refused"):
        spread(square, [1], cluster=ClusterConfig(num_workers=1, address=address))
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Traceback (most recent call last):\n  File x\nConnectionError: nobody there.\n"),
            "nobody there",
        ),
        (
            RuntimeError("RPC failed: Traceback (most recent call last):\n  File x\nValueError: of a token"),
            "of a token",
        ),
        (SystemExit(15), "no Ray answers there"),
        (RuntimeError("\n"), "RuntimeError"),
    ],
)
def test_why_a_cluster_does_not_answer_is_told_in_one_line(error, reason):
    text = str(reach._unreachable("127.0.0.1:6379", error))
    assert f"{reason}. Check the address" in text and "\n" not in text and "Traceback" not in text and ".." not in text


@pytest.mark.parametrize(
    ("placement", "places"), [("PACK", 5), ("SPREAD", 5), ("STRICT_PACK", 3), ("STRICT_SPREAD", 2)]
)
def test_how_many_workers_nodes_hold(placement, places):
    nodes = [{"CPU": 7.0, "GPU": 8.0}, {"CPU": 64.0, "GPU": 2.0}, {"CPU": 64.0}]
    assert num_places(nodes, {"CPU": 2.0, "GPU": 1.0}, placement) == places


def test_fractions_of_a_cpu_add_up():
    assert num_places([{"CPU": 1.0}], {"CPU": 0.1}) == 10
    assert num_places([], {"CPU": 1.0}) == 0


def test_a_ray_of_our_own_is_locked_and_stopped():
    code = """
import os
from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput
from bft_ray.workers.connect import connect
from bft_ray.workers.spread import spread
cluster = ClusterConfig(num_workers=1000, gpus_per_worker=0.0)
with connect(cluster):
    import ray
    print(ray.is_initialized(), os.environ["RAY_AUTH_MODE"], len(os.environ["RAY_AUTH_TOKEN"]))
    try:
        spread(print, range(1000), cluster=cluster)
    except BadInput as error:
        print(error)
print(ray.is_initialized())
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, timeout=360)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("True token 64", "False"), done.stderr
    assert "`cluster.num_workers` is 1000, but must be at most" in lines[1]


# --- on Ray ---------------------------------------------------------------------------------------


def test_actors_return_results_in_order_and_set_up_once_each(ray_of_two_cpus):
    seen = []
    results = spread(
        lambda state, shard: (state, os.getpid(), shard),
        list(range(7)),
        cluster=two_workers(),
        setup=os.getpid,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [shard for _, _, shard in results] == list(range(7))
    assert all(state == pid != os.getpid() for state, pid, _ in results)
    assert len({pid for _, pid, _ in results}) <= 2
    assert sorted(seen) == [(n, 7) for n in range(1, 8)]


def test_torch_gets_as_many_threads_as_cpus(ray_of_two_cpus):
    import torch

    def threads(state, shard):
        return torch.get_num_threads()

    assert spread(threads, [0, 1], cluster=two_workers()) == [1, 1]


def test_what_a_shard_raises_comes_back_as_it_was(ray_of_two_cpus):
    def fail(state, shard):
        raise BadInput("rows.jsonl:7 answer", 9, "the index of the right option", "Mend it.")

    with pytest.raises(BadInput) as caught:
        spread(fail, [0, 1], cluster=two_workers())
    assert type(caught.value) is BadInput
    assert (caught.value.field, caught.value.value, caught.value.remedy) == (
        "rows.jsonl:7 answer",
        9,
        "Mend it.",
    )


def test_what_setup_raises_comes_back_as_it_was(ray_of_two_cpus):
    def setup():
        raise BadInput("model.path", "nowhere", "a folder")

    with pytest.raises(BadInput, match=r"`model.path` is 'nowhere'"):
        spread(square, [0, 1], cluster=two_workers(), setup=setup)


def test_a_killed_worker_is_replaced_and_its_shard_tried_again(ray_of_two_cpus, tmp_path: Path):
    def die_once(state, shard):
        mark = tmp_path / "died"
        if shard == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return shard * 10

    assert spread(die_once, [0, 1, 2, 3], cluster=two_workers(max_failures=1)) == [0, 10, 20, 30]
    assert (tmp_path / "died").exists()


def test_a_worker_that_always_dies_ends_the_run(ray_of_two_cpus, tmp_path: Path):
    def die(state, shard):
        if shard == 1:
            with (tmp_path / "tries").open("a") as tries:
                tries.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return shard

    with pytest.raises(BftError, match=r"the worker of shard 1 died 3 times, and cluster.max_failures is 2"):
        spread(die, [0, 1], cluster=two_workers(max_failures=2))
    assert (tmp_path / "tries").read_text() == "xxx"


def test_more_workers_than_cpus_are_refused_at_once(ray_of_two_cpus):
    cluster = ClusterConfig(num_workers=3, gpus_per_worker=0.0)
    began = time.monotonic()
    with pytest.raises(BadInput) as caught:
        spread(square, [1, 2, 3], cluster=cluster)
    assert time.monotonic() - began < 60  # start_timeout_s is 300
    message = str(caught.value)
    assert "`cluster.num_workers` is 3, but must be at most 2" in message
    assert "each worker asks for CPU 1 (PACK), and the cluster has CPU 2 on 1 node" in message


def test_gpus_that_are_not_there_are_refused(ray_of_two_cpus):
    with pytest.raises(
        BadInput, match=r"`cluster.gpus_per_worker` is 1.*, but must be at most 0: no node of the cluster has more GPU"
    ):
        require_resources(ClusterConfig(num_workers=1, gpus_per_worker=1.0))
    assert worker_resources(ClusterConfig(cpus_per_worker=0.5, resources_per_worker={"tape": 2.0})) == {
        "CPU": 0.5,
        "tape": 2.0,
    }


def test_cpus_that_others_keep_are_waited_for_no_longer_than_told(ray_of_two_cpus):
    holder = ray_of_two_cpus.remote(num_cpus=1)(type("Holder", (), {"there": lambda self: True})).remote()
    ray_of_two_cpus.get(holder.there.remote())
    try:
        with pytest.raises(NoRoom, match=r"within start_timeout_s = 1 s: .* has CPU 2 on 1 node \(CPU 1 free\)"):
            spread(square, [1, 2], cluster=two_workers(start_timeout_s=1.0))
    finally:
        ray_of_two_cpus.kill(holder)


def test_connect_leaves_a_ray_that_it_did_not_start(ray_of_two_cpus):
    with connect(two_workers()):
        pass
    assert ray_of_two_cpus.is_initialized()


def test_a_long_temporary_folder_is_not_ray_s(monkeypatch):
    """A socket's path holds 107 bytes; what Ray puts behind the folder takes 70 of them for root, more for others."""
    longest = 37 - len(str(os.getuid())) + 1
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/" + "x" * (longest - 1))
    assert session_option() == {}
    monkeypatch.setenv("TMPDIR", "/" + "x" * longest)
    assert session_option() == {"_temp_dir": f"/tmp/ray_{os.getuid()}"}
    monkeypatch.setenv("RAY_TMPDIR", "/dev/shm")
    assert session_option() == {}
    monkeypatch.setenv("RAY_TMPDIR", "/" + "y" * 60)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(BadInput) as caught:
        session_option()
    assert str(caught.value) == (
        f"`RAY_TMPDIR` is {'/' + 'y' * 60!r}, but must be a folder whose path has at most {longest} bytes: Ray keeps sockets "
        "there, whose paths have 107 at most. Set RAY_TMPDIR to a folder with a short path, such as /dev/shm."
    )


def test_a_head_that_was_replaced_is_one_line():
    from ray.exceptions import ActorUnavailableError, AuthenticationError, RaySystemError

    from bft_ray.workers.connect import told_when_lost

    with pytest.raises(BftError, match=r"started anew.*the same command goes on"), told_when_lost():
        raise AuthenticationError(
            "RPC error: WrongClusterID: Perhaps the client is accessing GCS after it has restarted."
        )
    with pytest.raises(BftError, match=r"lost a process .*Socket closed.*the same command goes on"), told_when_lost():
        raise ActorUnavailableError("Socket closed", None)
    with pytest.raises(RaySystemError, match="another"), told_when_lost():
        raise RaySystemError("another")
