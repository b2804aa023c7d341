"""What changed between two evaluations of the same items.

The metric of each side is linearised, so that it is the mean of one score an item (`bft_ray.stats.linearise`), and the
difference is judged pairwise (`bft_ray.stats.paired`): exact for right and wrong, Student's t else, and over groups where items
share them. Pairing takes the difficulty of the items out of it: a smaller effect can be detected than the `_detectable` of
the metric itself tells, which is of two evaluations on items of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bft_ray.config.measured import is_among
from bft_ray.config.metrics import describe, format_value, higher_is_better, is_judged
from bft_ray.errors import BadInput
from bft_ray.evaluate.alike import measured_otherwise, unlike
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.metrics import Area, Mean, Ratio
from bft_ray.page.model import as_text
from bft_ray.stats.errors import as_groups, names_of
from bft_ray.stats.linearise import Made, column_of, columns_of, linear_scores
from bft_ray.stats.paired import holm, paired_difference

_TIE = 1e-5  # items whose value moved by less (times the value where that is above 1) are neither lost nor gained


@dataclass(frozen=True)
class Paired:
    """A metric before and after, on the items that both evaluations have.

    Args:
        drop: how much worse it became, in the metric's unit; below 0 where it became better.
        low, high: 95 % interval of the drop; not a number where there is none.
        p: two-sided, of no difference.
        detectable: smallest true drop that 8 of 10 such comparisons show; NaN where it is not known.
        num_lost, num_gained: items that became worse, better (an answer right before and wrong after is lost).
        num_items: items compared.
        num_unpaired: items that only one of the evaluations has; they are left out.
        num_groups: groups that items share; 0 where they are independent.
    """

    before: float
    after: float
    drop: float
    low: float
    high: float
    p: float
    detectable: float
    num_lost: int
    num_gained: int
    num_items: int
    num_unpaired: int
    num_groups: int = 0


def paired(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], metric: str) -> Paired | None:
    """Compare the records of one set, paired by `id`; None for a metric that is no statistic of its records
    (an area of labels of one kind alone, say).

    Args:
        before, after: records of the set; `group` or `groups`, where they have it, names what items share.
        metric: full name, such as mmlu/accuracy.

    Raises:
        BadInput: no item is in both, or a metric that is not known or has no better and worse.
    """
    name = metric.rpartition("/")[2]
    old, new = ({record["id"]: record for record in records} for records in (before, after))
    if not old.keys() & new.keys():
        raise BadInput(metric, "no item in common", "measured on the same items before and after")
    made = _made(metric, name, [*old.values(), *new.values()])
    columns = columns_of(made, name)
    both = [key for key in old if key in new and _has(old[key], columns) and _has(new[key], columns)]
    if not both:
        return None
    if isinstance(made, Area) and any(len({side[key][made.label] for key in both}) < 2 for side in (old, new)):
        return None
    was, items_before = _statistic(made, name, [old[key] for key in both])
    is_now, items_after = _statistic(made, name, [new[key] for key in both])
    groups = as_groups([names_of(new[key]) for key in both])
    ends = (was, is_now) if higher_is_better(metric) else (is_now, was)
    found = paired_difference(*ends, groups=groups)
    sign = 1.0 if higher_is_better(metric) else -1.0
    moved = sign * (items_after - items_before) / np.maximum(1.0, np.abs(items_before))
    return Paired(
        before=float(was.mean()),
        after=float(is_now.mean()),
        drop=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        detectable=found.detectable,
        num_lost=int((moved < -_TIE).sum()),
        num_gained=int((moved > _TIE).sum()),
        num_items=len(both),
        num_unpaired=len(old) + len(new) - 2 * len(both),
        num_groups=groups.num if groups else 0,
    )


@dataclass(frozen=True)
class Change:
    """A metric of two evaluations; `paired` where it could be paired by item."""

    name: str
    before: float
    after: float
    paired: Paired | None


def check_question(question: str, measured: Sequence[str], before: EvaluationResult) -> None:
    """Refuse a question that a comparison could not answer, before anything is measured.

    Args:
        measured: names of the metrics that will be measured, as of `measured_names`.

    Raises:
        BadInput: the metric will not be measured, or was not.
    """
    if not is_among(measured, question):
        names = ", ".join(f"{name}..." if name.endswith("/") else name for name in measured)
        raise BadInput("--question", question, "a metric that is measured here", f"These are: {names or 'none'}.")
    if question not in before.metrics:
        names = ", ".join(filter(is_judged, before.metrics))
        rule = "a metric that the evaluation of --against has measured too"
        raise BadInput("--question", question, rule, f"It has: {names or 'none'}.")


def compare(before: EvaluationResult, after: EvaluationResult) -> tuple[list[Change], list[str]]:
    """Every judged metric that both evaluations have, in the order of the second; and why some of them are left out."""
    old, new = (_by_set(each.records) for each in (before, after))
    unlike_of = {
        name: unlike(name, old[name], new[name]) | _otherwise(name, before, after) for name in new if name in old
    }
    changes, why = [], []
    for name, value in after.metrics.items():
        if name in before.metrics and is_judged(name):
            own, _, what = name.rpartition("/")
            reasons = unlike_of.get(own, {})
            if reason := reasons.get("*") or reasons.get(what):
                why.append(reason)
                continue
            both = paired(old[own], new[own], name) if own in old and own in new else None
            changes.append(Change(name, before.metrics[name], value, both))
    return changes, list(dict.fromkeys(why))


def _otherwise(name: str, before: EvaluationResult, after: EvaluationResult) -> dict[str, str]:
    """Why the set was measured otherwise; sets of the harness have the settings of their task."""
    ways = [each.settings.get(name) or each.settings.get(name.partition("/")[0]) or {} for each in (before, after)]
    is_cut = any(each.metrics.get(f"{name}/num_truncated", 0) > 0 for each in (before, after))
    return measured_otherwise(name, ways[0], ways[1], is_cut)


def render(changes: Sequence[Change], question: str | None = None) -> str:
    """A table: before, after, the difference (after - before) with its 95 % interval, its p, items lost and gained, and
    the smallest difference that 8 of 10 such comparisons show. It can be read only with the question: a metric that was
    named beforehand is first and needs no adjustment; the p of all others are adjusted for their number (Holm).

    Args:
        question: the metric that the comparison is about; None: none was named.
    """
    if not changes:
        return "nothing in common to compare"
    changes = sorted(changes, key=lambda change: change.name != question)  # stable
    others = [change.paired.p for change in changes if change.paired and change.name != question]
    adjusted = iter(holm(others))
    header = ["metric", "before", "after", "difference", "95 % interval", "p", "lost", "gained", "items", "detectable"]
    rows = [header]
    for change in changes:
        p = None if change.paired is None else change.paired.p if change.name == question else next(adjusted)
        rows.append(_cells(change, p))
    asked = any(change.name == question for change in changes)
    return "\n".join([as_text(rows, num_left=1), *_reading(changes, question if asked else None, len(others))])


def _reading(changes: Sequence[Change], question: str | None, num_others: int) -> list[str]:
    """Below the table: which figure was the question, what groups the items share, and how many could not be paired."""
    lines = []
    if num_others + (question is not None) > 1:
        first = f"the question is {question}; " if question else "no metric was named as the question; "
        rest = "" if num_others == 1 else f", and their p is adjusted for all {num_others} (Holm)"
        also = "every other one is a lead, no finding" if question else "each is a lead, no finding"
        lines.append(f"{first}{also}: at 95 % one of 20 differs by chance{rest}")
    shared = [
        f"{change.name} {change.paired.num_groups}" for change in changes if change.paired and change.paired.num_groups
    ]
    if shared:
        lines.append(f"items share groups, and the errors are over these: {', '.join(shared)}")
    alone = [
        f"{change.name} {change.paired.num_unpaired}"
        for change in changes
        if change.paired and change.paired.num_unpaired
    ]
    if alone:
        lines.append(f"items that only one of the evaluations has are left out: {', '.join(alone)}")
    return lines


def _cells(change: Change, p: float | None) -> list[str]:
    def shown(value: float) -> str:
        text = format_value(change.name, value)
        return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text

    both = change.paired
    if both is None:
        return [change.name, shown(change.before), shown(change.after), shown(change.after - change.before), *[""] * 6]
    has_interval = not math.isnan(both.low)
    ends = sorted((-both.low, -both.high) if higher_is_better(change.name) else (both.low, both.high))
    return [
        change.name,
        shown(both.before),
        shown(both.after),
        shown(both.after - both.before),
        f"[{shown(ends[0])}, {shown(ends[1])}]" if has_interval else "",
        f"{p:.2g}" if has_interval and p is not None else "",
        str(both.num_lost),
        str(both.num_gained),
        str(both.num_items),
        "" if math.isnan(both.detectable) else shown(both.detectable),
    ]


def _by_set(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    sets: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sets.setdefault(record["set"], []).append(record)
    return sets


def _made(metric: str, name: str, records: Sequence[dict[str, Any]]) -> Made:
    """How the records make a metric; where they lack the columns for that, it is the mean of the column of its name."""
    known = describe(metric)
    made = (known.items if known else None) or Mean()
    return made if any(_has(record, columns_of(made, name)) for record in records) else Mean(name)


def _has(record: dict[str, Any], columns: Sequence[str]) -> bool:
    return all(record.get(column) is not None for column in columns)


def _statistic(made: Made, name: str, records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [n] whose mean is the metric, and the value of each item [n]."""
    first, *others = columns_of(made, name)
    values = column_of(records, first)
    if isinstance(made, Ratio):
        values = made.factor * values / np.maximum(column_of(records, others[0]), 1)
    if not isinstance(made, Area):
        return linear_scores(made, name, records), values
    return linear_scores(made, name, records), np.where(column_of(records, others[0]) == 1, values, -values)
