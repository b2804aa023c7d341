"""A training by fresh Ray Train workers, without MLflow and validation: what jobs measure, and compare with."""

from __future__ import annotations

import sys
from typing import Any

from bft_ray.config import Config, make_config
from bft_ray.places import storage
from bft_ray.train.progress import Board
from bft_ray.train.workers import run_workers


def fresh_run(config: Config, folder: str) -> list[dict[str, float]]:
    """Train on new workers (TorchTrainer and DeepSpeed); within `bft_ray.workers.connect.connect` only. Returns the metrics of
    each step (`train/...`); the weights go to `export` in the folder.

    Args:
        folder: of the run, shared by all nodes; a checkpoint is saved at the end alone.

    Raises:
        NonFinite: a loss or gradient was not finite.
        BftError: the workers failed more often than `cluster.max_failures`; or what one of them raised on purpose.
    """
    import ray

    tree = config.model_dump()
    tree["data"]["validation"] = []
    tree["checkpoint"] |= {"every_steps": sys.maxsize, "keep": 1, "export": "last"}
    tree["tracking"]["profile_steps"] = 0
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    payload = {"folder": folder, "export": storage.join(folder, "export"), "board": board}
    run_workers(make_config(tree), payload)
    steps = [values for event, values in ray.get(board.take.remote()) if event == "step"]
    return [{name: value for name, value in step.items() if name.startswith("train/")} for step in steps]
