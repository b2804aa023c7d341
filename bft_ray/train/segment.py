"""A segment by several workers, or by one with ZeRO-3: train up to a step, save the state, measure the weights."""

from __future__ import annotations

import sys
from collections.abc import Collection

from bft_ray.config import Config, make_config
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.evaluate.run import evaluate_model
from bft_ray.train.workers import run_workers


def train_segment(config: Config, folder: str, until: int | None, weights: str) -> tuple[int, list[dict[str, float]]]:
    """Train on the workers of `config.cluster` up to a step; within `bft_ray.workers.connect.connect` only. Returns steps done,
    and the metrics of each of them (`train/...`) from the first on.

    It resumes from the last checkpoint in `folder`, and saves one there; the learning rate is that of the whole run. The
    config's fields on validation, the best checkpoint and tracking are not used.

    Args:
        folder: of the run, shared by all nodes.
        until: steps done at the end; None: all.
        weights: folder or URI for the weights: an adapter or a whole model.

    Raises:
        NonFinite: a loss or gradient was not finite.
        BftError: the workers failed more often than `cluster.max_failures`; or what one of them raised on purpose.
    """
    tree = config.model_dump()
    tree["data"]["validation"] = []
    tree["checkpoint"] |= {"every_steps": config.checkpoint.every_steps or sys.maxsize, "keep": 1, "export": "last"}
    tree["tracking"]["profile_steps"] = 0
    storage_path, _, name = folder.rpartition("/")
    payload = {"folder": folder, "until": until, "export": weights}
    outcome = run_workers(make_config(tree), payload, storage_path, name)
    return outcome["step"], outcome["train"]


def measure_weights(config: Config, weights: str | None, names: Collection[str] | None = None) -> EvaluationResult:
    """Measure weights on the sets of these names (None: all), on the workers of `config.cluster`.

    Args:
        weights: folder or URI, which each node fetches for itself; None: the base model.
    """
    import ray

    model = config.model
    if weights is not None:
        model = model.model_copy(update={"path": weights, "adapter": None})
    # the address: not in this process, which has neither CPUs nor a GPU of its own
    cluster = config.cluster.model_copy(update={"address": ray.get_runtime_context().gcs_address})
    asked = config.model_copy(update={"model": model, "cluster": cluster})
    return evaluate_model(asked, names=None if names is None else list(names))
