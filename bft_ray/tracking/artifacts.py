"""Where the artifacts of an experiment go, and whether this machine can store any there."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput, first_line
from bft_ray.places.addresses import absolute_uri, redact, sqlite_path
from bft_ray.places.cache import try_folder
from bft_ray.places.scratch import scratch
from bft_ray.tracking.server import FIELD, artifact_root, connect, load_client
from bft_ray.waits import bounded, waiting

_PROBE = "bft_ray_writable"


def check_artifacts(tracking: TrackingConfig, experiment: str) -> str:
    """Store a small file where the experiment's artifacts go, and delete it; returns that place.

    A folder is tried without MLflow, and nothing is left there. Call `check_server` first.

    Raises:
        BadInput: it cannot be stored, or not within `tracking.timeout_s`.
    """
    place = redact(tracking.uri)
    load_client(absolute_uri(tracking.uri))
    try:
        with waiting("waiting for the store of artifacts"):
            place = bounded(tracking.timeout_s, location_of, tracking, experiment)
            bounded(tracking.timeout_s, _try, place, absolute_uri(tracking.uri))
    except Exception as error:  # every store raises a different type
        reason = redact(f"{type(error).__name__}: {first_line(error)}")
        raise BadInput(
            FIELD,
            redact(tracking.uri),
            f"a tracking server whose artifacts this machine can store: those of the experiment {experiment} go to "
            f"{redact(place)} ({reason})",
            "Give this user the right to write there, take another tracking.experiment, or start the server with "
            "`--serve-artifacts --artifacts-destination PLACE`.",
        ) from None
    return redact(place)


def location_of(tracking: TrackingConfig, experiment: str) -> str:
    """Folder or URI of an experiment's artifacts; of one that is not made yet, where it would be."""
    uri = absolute_uri(tracking.uri)
    root, path = artifact_root(uri), sqlite_path(uri)
    if path is None or path.exists():  # a new database is not made for a question
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return found.artifact_location
        if root is None:  # the server decides, as it did for its own
            return client.get_experiment("0").artifact_location
    return f"{root}/{experiment}"


def _try(place: str, uri: str) -> None:
    local = re.sub("^file:(//)?", "", place)
    if "://" not in local and not re.match(r"^[a-z0-9+-]{2,}:", local):
        try_folder(Path(local))
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store = get_artifact_repository(place, tracking_uri=uri)
    with scratch("probe") as temporary:
        (temporary / _PROBE).touch()
        store.log_artifact(str(temporary / _PROBE))
    with contextlib.suppress(NotImplementedError):  # a store that never deletes keeps the empty file
        store.delete_artifacts(_PROBE)
