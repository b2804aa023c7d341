"""The search space of two short trials that tests of whole commands run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def write_space(folder: Path, **more: Any) -> Path:
    """`space.yaml` over the `config.yaml` beside it."""
    space = {
        "name": "small",
        "domain": "test",
        "config": "config.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
        "fixed": {"loss.method": "bft"},
        "objective": {"metric": "validation/token_accuracy"},
        "budget": {"trials": 2, "steps": 4},
        "sampler": {"kind": "grid"},
        "scheduler": {"kind": "none"},
    }
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(space | more))
    return path
