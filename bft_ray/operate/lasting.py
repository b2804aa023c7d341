"""Whether the results of a job are kept: Ray deletes a job's working directory when the job ends."""

from __future__ import annotations

import os
from pathlib import Path

from bft_ray.config import Config
from bft_ray.errors import BadInput

_JOB = "_ray_pkg_"  # in the name of such a folder


def require_outlasting(config: Config, database: str | None = None) -> None:
    """Within a job: check that nothing that must be kept goes to its working directory. Elsewhere nothing is checked.

    Args:
        database: of a study.

    Raises:
        BadInput: names the address, and what to give instead.
    """
    if _JOB not in os.getcwd():
        return
    remedies = {
        "--database": (
            database,
            "Set STUDY_DATABASE=postgresql://... for the job, or give sqlite:////SHARED/studies.db.",
        ),
        "cluster.storage_path": (
            config.cluster.storage_path,
            "Give a folder that all nodes share, or a URI (s3://...).",
        ),
        "tracking.uri": (config.tracking.uri, "Set MLFLOW_TRACKING_URI for the job, or tracking.uri."),
    }
    for field, (value, remedy) in remedies.items():
        place = (value or "").removeprefix("sqlite:///")
        if place and "://" not in place and _JOB in str(Path(place).expanduser().absolute()):
            rule = "outside of the job's working directory, which ends with the job"
            raise BadInput(field, value, rule, remedy)
