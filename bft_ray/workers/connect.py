"""A Ray while a context lasts: that of an address, or one of this machine, on loopback and with a token."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bft_ray.config import ClusterConfig
from bft_ray.errors import BadInput, BftError, first_line
from bft_ray.places.addresses import redact
from bft_ray.places.modes import kept_for
from bft_ray.waits import waiting
from bft_ray.workers.address import PROBE_S, address_of, resolved, why_silent

log = logging.getLogger(__name__)

_SESSIONS = f"ray_{os.getuid()}"  # Ray's own folder `ray` is one that all users of a machine may write to
_LONGEST_FOLDER = 107 - len(f"/{_SESSIONS}/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")  # bytes
_WATCH_S = 2.0  # between two checks whether the head of the cluster answers
_SILENT_S, _AGAIN_S = 4.0, 30.0  # without an answer, until the first line, and between further lines


@contextmanager
def connect(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to Ray, or start it, while the context lasts.

    A Ray that this process is connected to already is used and left as it is. Otherwise connects to
    `cluster.address`, or to RAY_ADDRESS (as in a submitted job), or starts a Ray of its own on this machine,
    and at the end disconnects or stops that one, never somebody else's.

    Raises:
        BadInput: no cluster answers at the address or accepts this client, or a local one does not start.
    """
    address = address_of(cluster)
    if address is None:
        _lock_local_ray()
    import ray

    if ray.is_initialized():
        yield
        return
    if address is not None:
        address = resolved(address)
        _probe(address, cluster)
    options: dict[str, Any] = {} if address else {"include_dashboard": False, "_temp_dir": _sessions()}
    in_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # "owner": its sockets and logs, whoever else may have the results
        with kept_for("owner"), waiting(f"connecting to Ray at {address}" if address else "starting Ray"):
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=cluster.worker_logs,
                **options,
            )
    except (Exception, SystemExit) as error:  # bare Exceptions, and an exit if no node answers
        raise _unreachable(address, _root_cause(error)) from error
    if in_main and on_sigterm is not None:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own there, which aborts the process
    try:
        with _watched(ray.get_runtime_context().gcs_address), told_when_lost():
            yield
    finally:
        with waiting("taking leave of Ray"):
            ray.shutdown()


@contextmanager
def told_when_lost() -> Iterator[None]:
    """BftError where a new cluster answers at the address of the one that this process belongs to, or a process of Ray that
    it needs is gone; what a task has raised stays.
    """
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, RayError, RpcError

    try:
        yield
    except RayError as error:
        if "WrongClusterID" in str(error):
            what = "the head of the Ray cluster has started anew, and does not know this command"
        elif isinstance(error, (LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, RpcError)):
            what = f"the Ray cluster has lost a process that this command needs ({first_line(error)})"
        else:
            raise
        raise BftError(f"{what}. What is done stands: the same command goes on") from None


@contextmanager
def _watched(head: str | None) -> Iterator[None]:
    """Print lines while the head of the cluster does not answer: Ray prints nothing until it ends the process.

    Args:
        head: HOST:PORT of its GCS; None: not known, as to a Ray client.
    """
    ended = threading.Event()

    def watch() -> None:
        host, _, port = str(head).rpartition(":")
        answered, told = time.monotonic(), 0.0
        while not ended.wait(_WATCH_S):
            try:
                socket.create_connection((host.strip("[]"), int(port)), _SILENT_S).close()
                answered, told = time.monotonic(), 0.0
            except OSError:
                now = time.monotonic()
                if now - answered >= _SILENT_S and now - told >= _AGAIN_S:
                    told = now
                    log.warning(
                        "the head of the Ray cluster (its GCS at %s) has not answered for %.0f s. After a minute Ray ends "
                        "this process. What is done stands: once the cluster is back, the same command goes on",
                        head,
                        now - answered,
                    )

    if head and ":" in head:
        threading.Thread(target=watch, name="bft-ray-head", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def require_cluster(cluster: ClusterConfig) -> None:
    """Refuse the address of a cluster that nothing listens at, before anything is read or loaded for it.

    Raises:
        BadInput: names the address and the reason, within `PROBE_S` seconds.
    """
    address = address_of(cluster)
    if address is None or ("ray" in sys.modules and sys.modules["ray"].is_initialized()):
        return
    _probe(resolved(address), cluster)


def _lock_local_ray() -> None:
    """Give a Ray that this process is about to start a token of its own, and keep it on loopback.

    A local Ray listens on every interface of the machine and runs what anyone sends it. Ray reads these
    variables once, when it is imported: where it already is, or where the user has chosen a value, they are
    left alone.
    """
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux it would replace 127.0.0.1 else
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _sessions() -> str:
    """The folder of this user's local Rays, which nobody else gets to."""
    folder = Path(session_option().get("_temp_dir") or Path(_temporary()[1], _SESSIONS))
    with kept_for("owner"):
        folder.mkdir(parents=True, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        rule = f"a folder in which {folder} is not another user's"
        raise BadInput(
            "RAY_TMPDIR", str(folder.parent), rule, "Set RAY_TMPDIR to a folder of your own with a short path."
        )
    folder.chmod(0o700)
    return str(folder)


def _temporary() -> tuple[str, str]:
    """The variable that names the folder of temporary files, and the folder."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    return name, os.environ.get(name, "/tmp")


def session_option() -> dict[str, str]:
    """Where a local Ray keeps its session, as an option of `ray.init`, where the usual place has too long a name.

    Its sockets lie there, and a socket's path holds 107 bytes at most.
    """
    name, usual = _temporary()
    if len(os.fsencode(usual)) <= _LONGEST_FOLDER:
        return {}
    if os.access("/tmp", os.W_OK | os.X_OK):
        log.info("%s is too long for Ray's sockets: its session goes to /tmp/%s", name, _SESSIONS)
        return {"_temp_dir": f"/tmp/{_SESSIONS}"}
    rule = f"a folder whose path has at most {_LONGEST_FOLDER} bytes: Ray keeps sockets there, whose paths have 107 at most"
    raise BadInput(name, usual, rule, "Set RAY_TMPDIR to a folder with a short path, such as /dev/shm.")


def _probe(address: str, cluster: ClusterConfig) -> None:
    """Fail in seconds where nothing listens; Ray itself tries for minutes and then ends the process."""
    if address.startswith(("http://", "https://")):
        rule = "HOST:PORT of the head of a Ray cluster, or ray://HOST:PORT: this is the address of a dashboard"
        remedy = "To run the command there as a job: bft-ray submit --address URL -- COMMAND."
        raise BadInput("cluster.address", redact(address), rule, remedy)
    if reason := why_silent(address, min(PROBE_S, cluster.start_timeout_s)):
        raise _refused(address, reason)


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _unreachable(address: str | None, error: BaseException) -> BadInput:
    # Ray ends the process with a number where what listens there does not answer as Ray
    return _refused(address, "no Ray answers there" if isinstance(error, SystemExit) else first_line(error))


def _refused(address: str | None, reason: str) -> BadInput:
    return BadInput(
        "cluster.address",
        address,
        f"the address of a running Ray cluster (or null where a local one can start): {reason}",
        "Check the address, RAY_AUTH_MODE and the token, and that both sides have the same Ray and Python.",
    )
