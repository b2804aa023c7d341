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


def column_records(items: Sequence[Mapping[str, str]], columns: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """One record an item: what `of_item` says, and its numbers; what was not measured (NaN) is left out."""
    return [
        {**item} | {key: float(column[i]) for key, column in columns.items() if not math.isnan(column[i])}
        for i, item in enumerate(items)
    ]


def of_item(name: str, key: str, group: str | None = None) -> dict[str, str]:
    """What a record says of its item, whatever the model: `id`, `content` (`content_of` its key), and `group` (what related
    items share) where it has one."""
    return {"id": name, "content": content_of(key)} | ({} if group is None else {"group": group})


def content_of(key: str) -> str:
    """16 bits of a hash of what an item holds. They show that an id became another row, such as the place of a row in a
    file that was edited; and no text can be told from them, for one in 65,536 has the same.

    Args:
        key: the hash, in hexadecimal digits (`bft_ray.data.rows.row_key`).
    """
    return key[:4]
