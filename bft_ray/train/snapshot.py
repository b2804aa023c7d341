"""Ray Train's own list of a run's checkpoints, checked before Ray reads it.

Ray writes it in place. Ray ends where it cannot read it, or where it names a checkpoint that is gone; a changed score in it
would make Ray delete the wrong checkpoint. The folders decide from which checkpoint a run resumes. So a list that does not
fit them is deleted, and Ray begins a new one.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from bft_ray.places import storage
from bft_ray.places.kept import delete, read_bytes, read_kept
from bft_ray.train.checkpoint import flaw_of
from bft_ray.train.host import SCORE_FILE
from bft_ray.workers.ray_private import check_snapshot

log = logging.getLogger(__name__)

FILE = "checkpoint_manager_snapshot.json"
SCORE = "bft_score"  # Ray Train keeps the checkpoints with the largest
NOT_MEASURED = -sys.float_info.max


def score_of(score: float | None) -> float:
    """A checkpoint's score as it is reported to Ray."""
    return NOT_MEASURED if score is None else score


def delete_unfit(folder: str) -> None:
    """Delete the list of the run in this folder where it is damaged or does not fit the checkpoints."""
    path = storage.join(folder, FILE)
    content = read_bytes(path)
    if content is not None and (why := _why_unfit(folder, content)):
        log.warning(
            "%s, Ray's list of checkpoints, is damaged (%s): it counts as absent. The run resumes from the last whole "
            "checkpoint; Ray will not delete those that exist now",
            *(path, why),
        )
        delete(path)


def _why_unfit(folder: str, content: bytes) -> str:
    """As a clause; "" where it fits."""
    try:
        state = json.loads(content)
        check_snapshot(state)
        results, latest = state["checkpoint_results"], state.get("latest_checkpoint_result")
        named = {entry["checkpoint_dir_name"]: entry["metrics"] for entry in results}
    except Exception:  # of json and of pydantic
        return "it is no whole JSON as this version of Ray writes it"
    if len(results) != len(state["checkpoint_report_indices"]) or len(named) != len(results):
        return "it contradicts itself"
    if latest is not None and latest["checkpoint_dir_name"] not in named:
        return f"it names {latest['checkpoint_dir_name']} in only one place"
    return next((why for name, metrics in named.items() if (why := _why_other(folder, name, metrics))), "")


def _why_other(folder: str, name: str, metrics: dict[str, Any]) -> str:
    place = storage.join(folder, name)
    if not storage.exists(place):
        return f"it names {name}, which is gone"
    if flaw_of(place):
        return f"it names {name}, which is not whole"
    kept = read_kept(storage.join(place, SCORE_FILE), ["score"])  # of an earlier version: none
    if kept is not None and json.dumps(score_of(kept["score"])) != json.dumps(metrics.get(SCORE)):
        return f"it has another score of {name} than that checkpoint"
    return ""
