"""What changed between two evaluations of the same items.

Differences are bootstrapped over items, the same items before and after in each resample: percentile interval of Efron
and Tibshirani (1993). The smallest effect that a comparison can show is the half width of a 95 % interval: 1.96 times
the standard error of the difference. Pairing takes the difficulty of the items out of it: it is smaller than the
`_detectable` of the metric itself, which is of two evaluations on items of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import areas, with_error
from bft_ray.metrics import format_value, higher_is_better, is_judged

_Z = 1.96
_TIE = 1e-5  # items whose value moved by less (times the value where that is above 1) are neither lost nor gained
_RESAMPLES = 1000
_BLOCK = 2**22  # resampled items held at once

#: weights of the items [R, n] -> the metric [R]
_Value = Callable[[np.ndarray], np.ndarray]


class Evaluation(Protocol):
    """An `EvaluationResult`."""

    @property
    def metrics(self) -> dict[str, float]:
        """By name."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """One an item: `set`, `id`, numbers."""


@dataclass(frozen=True)
class Paired:
    """A metric before and after, on the items that both evaluations have.

    Args:
        drop: how much worse it became, in the metric's unit; below 0 where it became better.
        low, high: 95 % interval of the drop.
        detectable: smallest drop that stands out at this size, 1.96 se.
        num_lost, num_gained: items that became worse, better (an answer right before and wrong after is lost).
        num_items: items compared.
        num_unpaired: items that only one of the evaluations has; they are left out.
    """

    before: float
    after: float
    drop: float
    low: float
    high: float
    detectable: float
    num_lost: int
    num_gained: int
    num_items: int
    num_unpaired: int


def mean_metrics(name: str, values: np.ndarray) -> dict[str, float]:
    """`name`: the mean of `values` [n], with its error (see `with_error`), which is left out for a single item."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {name: mean}
    return with_error(name, mean, float(np.std(values, ddof=1)) / math.sqrt(len(values)))


def ratio_error(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Standard error of sum(numerator) / sum(denominator) over n > 1 items: the linearised one of a ratio estimator.

    R = sum a / sum b;  se = sqrt( n / (n - 1) sum (a_i - R b_i)^2 ) / sum b
    """
    ratio = numerator.sum() / denominator.sum()
    spread = float(((numerator - ratio * denominator) ** 2).sum())
    return math.sqrt(len(numerator) / (len(numerator) - 1) * spread) / float(denominator.sum())


def paired(
    before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], metric: str, seed: int = 0
) -> Paired | None:
    """Compare the records of one set, paired by `id`; None for a metric that is no statistic of its records.

    Args:
        before, after: records of the set.
        metric: full name, such as mmlu/accuracy.

    Raises:
        BadInput: no item is in both, or a metric that is not known or has no better and worse.
    """
    sign = 1.0 if higher_is_better(metric) else -1.0
    name = metric.rpartition("/")[2]
    old, new = ({record["id"]: record for record in records} for records in (before, after))
    if not old.keys() & new.keys():
        raise BadInput(metric, "no item in common", "measured on the same items before and after")
    columns = _columns(name, [*old.values(), *new.values()])
    both = [key for key in old if key in new and _has(old[key], columns) and _has(new[key], columns)]
    if not both:
        return None
    value_before, items_before = _statistic(name, columns, [old[key] for key in both])
    value_after, items_after = _statistic(name, columns, [new[key] for key in both])
    resampled = np.concatenate(
        [
            sign * (value_before(weights) - value_after(weights))
            for weights in _resamples(len(both), np.random.default_rng(seed))
        ]
    )
    whole = np.ones((1, len(both)))
    was, is_now = float(value_before(whole)[0]), float(value_after(whole)[0])
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    moved = sign * (items_after - items_before) / np.maximum(1.0, np.abs(items_before))
    return Paired(
        before=was,
        after=is_now,
        drop=sign * (was - is_now),
        low=float(low),
        high=float(high),
        detectable=_Z * float(np.nanstd(resampled, ddof=1)),
        num_lost=int((moved < -_TIE).sum()),
        num_gained=int((moved > _TIE).sum()),
        num_items=len(both),
        num_unpaired=len(old) + len(new) - 2 * len(both),
    )


@dataclass(frozen=True)
class Change:
    """A metric of two evaluations; `paired` where it could be paired by item."""

    name: str
    before: float
    after: float
    paired: Paired | None


def compare(before: Evaluation, after: Evaluation) -> list[Change]:
    """Every judged metric that both evaluations have, in the order of the second."""
    old, new = (_by_set(each.records) for each in (before, after))
    changes = []
    for name, value in after.metrics.items():
        if name in before.metrics and is_judged(name):
            own = name.rpartition("/")[0]
            both = paired(old[own], new[own], name) if own in old and own in new else None
            changes.append(Change(name, before.metrics[name], value, both))
    return changes


def render(changes: Sequence[Change]) -> str:
    """A table: before, after, the difference (after - before) with its 95 % interval, items lost and gained, and the
    smallest difference that would have stood out.
    """
    if not changes:
        return "nothing in common to compare"
    header = ["metric", "before", "after", "difference", "95 % interval", "lost", "gained", "items", "detectable"]
    rows = [header, *map(_cells, changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(r, widths, strict=True))) for r in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(change: Change) -> list[str]:
    def shown(value: float) -> str:
        text = format_value(change.name, value)
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text

    both = change.paired
    if both is None:
        return [change.name, shown(change.before), shown(change.after), shown(change.after - change.before), *[""] * 5]
    has_spread = both.detectable > 0  # no item moved: that shows nothing about what could have been seen
    ends = sorted((-both.low, -both.high) if higher_is_better(change.name) else (both.low, both.high))
    return [
        change.name,
        shown(both.before),
        shown(both.after),
        shown(both.after - both.before),
        f"[{shown(ends[0])}, {shown(ends[1])}]" if has_spread else "",
        str(both.num_lost),
        str(both.num_gained),
        str(both.num_items),
        shown(both.detectable) if has_spread else "",
    ]


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _by_set(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sets.setdefault(record["set"], []).append(record)
    return sets


#: metric -> sums of which record columns it is the quotient of, and a factor
_RATIOS = {
    "nll": ("nll", "num_tokens", 1.0),
    "bits_per_byte": ("nll", "num_bytes", 1 / math.log(2)),
    "token_accuracy": ("num_correct", "num_tokens", 1.0),
}
#: areas under a curve of the scores in a record: what stands before, which, and which score
_AREA = re.compile(r"(?:embedding_)?(auroc|auprc)(_mlp)?")


def _columns(name: str, records: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """The record columns that a metric is made of; else it is the mean of the column of its name."""
    if area := _AREA.fullmatch(name):
        return f"score{area[2] or ''}", "label"
    if name in _RATIOS and any(_has(record, _RATIOS[name][:2]) for record in records):
        return _RATIOS[name][:2]
    is_named = any(name in record for record in records)
    return ("correct",) if name == "accuracy" and not is_named else (name,)


def _has(record: dict[str, Any], columns: Sequence[str]) -> bool:
    return all(isinstance(record.get(column), (int, float)) for column in columns)


def _statistic(name: str, columns: Sequence[str], records: Sequence[dict[str, Any]]) -> tuple[_Value, np.ndarray]:
    """A metric as a function of the weights of its items, and its value on each item [n]."""
    first, *rest = (_column(records, column) for column in columns)
    if area := _AREA.fullmatch(name):
        which, [label] = ("auroc", "auprc").index(area[1]), rest
        return lambda weights: areas(label, first, weights)[which], np.where(label == 1, first, -first)
    if rest:
        top, bottom = _RATIOS[name][2] * first, rest[0]
        return lambda weights: (weights @ top) / (weights @ bottom), top / np.maximum(bottom, 1)
    return lambda weights: (weights @ first) / weights.sum(1), first


def _column(records: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], dtype=np.float64)


def _resamples(num_items: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """How often each resample holds each item, [R, n] in blocks."""
    at_once = max(1, _BLOCK // num_items)
    blocks = [min(at_once, _RESAMPLES - start) for start in range(0, _RESAMPLES, at_once)]
    for block in blocks:
        drawn = draw.integers(num_items, size=(block, num_items)) + num_items * np.arange(block)[:, None]
        yield np.bincount(drawn.ravel(), minlength=block * num_items).reshape(block, num_items)
