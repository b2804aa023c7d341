"""Which ports processes listen on, what they are, and what a client without a token gets there."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from cluster.local.state import State
from tests.support.cluster_command import living
from tests.support.family import command_of

#: a method of each service of Ray; the one that a port has refuses, for the others it is unknown
UNKNOWN = "nothing that is known"  # as of a server whose services are not there yet
_METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Pull",
    "ReporterService/GetTraceback",
    "CoreWorkerService/NumPendingTasks",
    "RayletDriver/ClusterInfo",
)


def listening(pids: Iterable[int]) -> list[tuple[str, int, str]]:
    """Address, port and process of each socket that one of them listens on."""
    found = []
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name = command_of(process)[:300]
            sockets = process.net_connections("inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # of a zombie there are no sockets to read
            continue
        for one in sockets:
            if one.status == psutil.CONN_LISTEN:
                found.append((one.laddr.ip.removeprefix("::ffff:"), one.laddr.port, name))
    return found


def named_ports(folder: Path) -> dict[int, str]:
    """Port -> what it is called where it was chosen."""
    state = State.load(folder)
    names = {port: name for name, port in state.ports.items()}
    for one in living(folder):
        process = psutil.Process(one.pid)
        command = process.cmdline()
        if any(word.endswith("ray_start.py") for word in command):
            for word in command:
                option, _, value = word.removeprefix("--").partition("=")
                if option.endswith("-port") and option != "port":
                    names.setdefault(int(value), option)
            for name, value in process.environ().items():
                if name.endswith("_METRIC_PORT"):
                    names[int(value)] = name
    return names


def answer_of(port: int) -> str:
    """What this port answers to who has no token: `401`, `numbers`, `page`, `UNAUTHENTICATED`, `password`."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status == 401:
            connection.request("GET", "/")
            page = connection.getresponse()
            page.read()
            return "401" if page.status == 401 else "401, but for the page"
        return "numbers" if b"# HELP" in body else f"{answer.status} {body[:60]!r}"
    except http.client.RemoteDisconnected:
        return _of_postgres(port)
    except (http.client.HTTPException, OSError):
        return _of_grpc(port)


def refusal_of(port: int, patience_s: float = 30.0) -> str:
    """What the port answers, as soon as it is one thing: a busy one may take longer than a call waits."""
    end = time.monotonic() + patience_s
    while ((answer := answer_of(port)) == UNKNOWN or "DEADLINE" in answer) and time.monotonic() < end:
        time.sleep(0.5)
    return answer


def _of_postgres(port: int) -> str:
    body = b"\0\3\0\0user\0bft\0\0"
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall((len(body) + 4).to_bytes(4, "big") + body)
        answer = client.recv(100)
    return "password" if answer[:1] == b"R" and b"SCRAM-SHA-256" in answer else repr(answer)


def _of_grpc(port: int) -> str:
    import grpc

    codes = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in _METHODS:
            try:
                channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5)
                codes.add(f"an answer of {method}")
            except grpc.RpcError as error:
                codes.add(error.code().name)
    return ", ".join(sorted(codes - {"UNIMPLEMENTED"})) or UNKNOWN


def rows_of(page: Path, head: str) -> dict[str, tuple[str, str]]:
    """The table whose first column is headed `head`: name -> (address, what a client without a token gets)."""
    table = page.read_text().partition(f"| {head} |")[2].partition("\n\n")[0]
    rows = {}
    for line in table.splitlines()[2:]:
        names, address, gets = (cell.strip() for cell in line.strip("|").split("|")[:3])
        for name in re.findall("`([^`]+)`", names) or [names]:
            rows[name] = (address.strip("`"), gets.split(":")[0].strip("`"))
    assert rows, f"{page} has no table of the {head}"
    return rows
