"""Columns of numbers, one an item -> metrics and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bft_ray.stats.errors import mean_metrics


def summarise(prefix: str, columns: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """`<prefix>/<name>`, the mean of each column, with its error (see `mean_metrics`).

    NaN marks an item on which this was not measured; a column of nothing else is left out. Where all values are
    the same (no answer right, say) the errors are left out: a spread of 0 would promise that any effect is detectable.
    """
    metrics: dict[str, float] = {}
    for name, column in columns.items():
        values = np.asarray(column, dtype=np.float64)
        values = values[~np.isnan(values)]
        if len(values):
            has_spread = values.max() > values.min()
            metrics |= mean_metrics(f"{prefix}/{name}", values if has_spread else values[:1])
    return metrics


def column_records(
    ids: Sequence[str], columns: Mapping[str, Sequence[float]], groups: Sequence[str | None] | None = None
) -> list[dict[str, Any]]:
    """One record an item: `id`, `group` where it has one, its numbers; what was not measured (NaN) is left out."""
    return [
        {"id": name}
        | with_group(groups[i] if groups else None)
        | {key: float(column[i]) for key, column in columns.items() if not math.isnan(column[i])}
        for i, name in enumerate(ids)
    ]


def with_group(group: str | None) -> dict[str, str]:
    """What related items share, for statistics over groups; nothing where an item has no group."""
    return {} if group is None else {"group": group}
