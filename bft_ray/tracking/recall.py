"""What MLflow knows of a run whose own file is damaged: found by a tag that is made of its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass

from bft_ray.config import TrackingConfig
from bft_ray.places.addresses import absolute_uri
from bft_ray.tracking.retry import patiently
from bft_ray.tracking.server import connect, latest_runs

_TAG = "bft.folder_key"


@dataclass(frozen=True)
class Recalled:
    """What is left of a run.

    Args:
        run_id: of MLflow.
        date: that its chat template got; None where it got none.
        fingerprints: field of the config -> fingerprint of the tokenised rows, as far as they are known.
    """

    run_id: str
    date: str | None
    fingerprints: dict[str, str]


def folder_tag(folder: str) -> dict[str, str]:
    """The tag of a run by which it is found again; a hash, for a path may hold what a filter cannot."""
    return {_TAG: hashlib.sha256(folder.encode()).hexdigest()[:32]}


def recall(tracking: TrackingConfig, experiment: str, folder: str) -> Recalled | None:
    """The latest run that was trained in this folder, however it ended; None where there is none.

    Raises:
        Exception: of MLflow, if the server stays away for `tracking.timeout_s`.
    """
    client = connect(absolute_uri(tracking.uri))
    found = patiently(tracking.timeout_s, client.get_experiment_by_name, experiment)
    if found is None:
        return None
    wanted = f"tags.`{_TAG}` = '{folder_tag(folder)[_TAG]}'"
    runs = patiently(tracking.timeout_s, latest_runs, client, [found.experiment_id], wanted)
    if not runs:
        return None
    (run,) = runs
    fingerprints = {}
    for own in run.inputs.dataset_inputs if run.inputs else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # not one of ours
            fingerprints[f"data.{own.dataset.name}"] = str(json.loads(own.dataset.profile or "")["fingerprint"])
    date = run.data.params.get("data.date")
    return Recalled(run.info.run_id, None if date == "None" else date, fingerprints)
