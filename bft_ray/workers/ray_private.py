"""The private parts of Ray that are used, all of them: no other file imports one. Ray has no public way to do these things.

Tried on Ray 2.60.0. Private parts may change in any version: `tests/workers/test_ray_private.py` fails where the installed Ray no longer
has one of them, and where another file imports one.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def address_of_auto() -> str | None:
    """HOST:PORT that `auto` stands for: of the Ray that runs on this machine. `ray.init` knows it too, but only once it has connected,
    and where nothing listens there it tries for minutes.

    Raises:
        ConnectionError, ValueError: there is none, or more than one.
    """
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address("auto")


def notices() -> Mapping[str, int]:
    """Node id -> when it will be taken away, in ms since 1970, 0 where that is not known: of each node with a notice.

    Public are `ray.train.get_preemption_info`, which only workers of Ray Train may call, and `ray.nodes` and the State API, which do not
    show notices.
    """
    from ray._private.state import state

    return state.get_draining_nodes()


def zip_folder(folder: Path, target: Path, include_gitignore: bool, logger: logging.Logger) -> None:
    """Zip a folder as a job's working directory. Public is only the whole way, `JobSubmissionClient.submit_job`, which says neither what
    the zip holds nor what it leaves out.

    Args:
        include_gitignore: leave out what `.gitignore` names.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    excludes = get_runtime_env_default_excludes()
    create_package(str(folder), target, include_gitignore=include_gitignore, excludes=excludes, logger=logger)


def largest_upload_bytes() -> int:
    """The smallest zip that a cluster refuses."""
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    return GCS_STORAGE_MAX_SIZE


def check_snapshot(tree: Any) -> None:
    """Read Ray Train's list of a run's checkpoints as Ray does. Where Ray cannot, it ends the run.

    Raises:
        Exception: pydantic's, where it does not fit.
    """
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

    _CheckpointManagerState.parse_obj(tree)


def stay_on_loopback() -> None:
    """Let `ray start` in this process bind to 127.0.0.1, and join other nodes there. Its options cannot: on Linux it replaces loopback
    addresses by the machine's own, and the variable that stops this lets no second node start.
    """
    from ray._private import ray_constants, services

    services.get_node_ip_address = lambda address=None: "127.0.0.1"
    ray_constants.ENABLE_RAY_CLUSTER = True


def end_train_controllers() -> None:
    """Kill the actors that wait for the workers of Ray Train's calls in this process: each call then ends, with an error. Public are
    only the calls, which give no handle, and signals in the main thread, which end the process with status 0.

    Found among this process's objects: a list of actors would be asked of the head of the cluster, which may be away.
    """
    import ray
    from ray.actor import ActorHandle
    from ray.train.v2._internal.execution.controller import TrainController

    for thing in gc.get_objects():
        # by its very type: proxies answer for other classes, and `isinstance` would ask them
        if type(thing) is ActorHandle and repr(thing).startswith(f"Actor({TrainController.__name__},"):
            ray.kill(thing)
