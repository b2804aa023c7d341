"""Which metrics a config measures, and on which data each."""

from __future__ import annotations

import json
from collections.abc import Iterable

from bft_ray.config.metrics import describe
from bft_ray.config.tasks.shared import LIKELIHOOD
from bft_ray.config.tree import Config

VALIDATION = "validation"  # the name under which `data.validation` is measured


def has_item_scores(metric: str) -> bool:
    """Whether a metric can be confirmed: made of items one by one (`bft_ray.study.confirm.items`)."""
    found = describe(metric)
    return found is None or found.items is not None


def measured_names(config: Config) -> list[str]:
    """Names of the judged metrics that a run of this config has; of a harness task `<name>/`, for all of its own."""
    names = [f"{VALIDATION}/{metric.name}" for metric in LIKELIHOOD] if config.data.validation else []
    return names + [name for task in config.evaluation.tasks for name in task.judged()]


def is_measured(config: Config, metric: str) -> bool:
    """Whether a run of this config measures the metric."""
    return is_among(measured_names(config), metric)


def is_among(names: Iterable[str], metric: str) -> bool:
    """Whether the metric is one of the `measured_names`."""
    return any(metric == name or (name.endswith("/") and metric.startswith(name)) for name in names)


def source_of(config: Config, metric: str) -> str:
    """The data that a metric is measured on, as text that is equal for equal files; "" where it is not measured.

    How many of their items are used does not count: two looks at parts of one file may see the same items.
    """
    if not is_measured(config, metric):
        return ""
    of = metric.split("/")[0]
    if of == VALIDATION:
        return json.dumps([[one.path, one.split, one.config_name, one.revision] for one in config.data.validation])
    return json.dumps(next(task for task in config.evaluation.tasks if task.name == of).measured_on())
