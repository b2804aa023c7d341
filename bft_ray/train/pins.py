"""A config whose paths mean the same on every worker of this machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeVar

from bft_ray.config import Config
from bft_ray.config.base import Section, paths_of
from bft_ray.data.passing import passing_folder
from bft_ray.model.named import NAMES
from bft_ray.places import storage
from bft_ray.places.addresses import absolute_uri
from bft_ray.places.cache import require_local

S = TypeVar("S", bound=Section)


def pin(config: Config) -> Config:
    """The config with a name, and with paths that mean the same on every worker of this machine."""
    name = config.name or f"{config.loss.method}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return pin_paths(config.model_copy(update={"name": name}))


def pin_paths(config: Config) -> Config:
    """The config with paths that mean the same on every worker of this machine."""
    data, cluster, evaluation = config.data, config.cluster, config.evaluation
    require_local("data.cache_dir", data.cache_dir or "")
    cache_dir = None if data.cache_dir is None else str(Path(data.cache_dir).expanduser().resolve())
    if not data.keep_tokens:
        cache_dir = str(passing_folder(data.cache_dir))
    sources = {"train": list(map(_pinned, data.train)), "validation": list(map(_pinned, data.validation))}
    model = {"path": _pin_path(config.model.path), "adapter": _pin_path(config.model.adapter)}
    return config.model_copy(
        update={
            "cluster": cluster.model_copy(update={"storage_path": storage.absolute(cluster.storage_path)}),
            "data": data.model_copy(update=sources | {"cache_dir": cache_dir}),
            "evaluation": evaluation.model_copy(update={"tasks": list(map(_pinned, evaluation.tasks))}),
            "model": config.model.model_copy(update=model),
            "tracking": config.tracking.model_copy(update={"uri": absolute_uri(config.tracking.uri)}),
        }
    )


def _pinned(section: S) -> S:
    """A source or task with such paths."""
    return section.model_copy(update={name: _pin_path(getattr(section, name)) for name in paths_of(section)})


def _pin_path(path: str | None) -> str | None:
    return str(Path(path).resolve()) if path and Path(path).exists() and path not in NAMES else path
