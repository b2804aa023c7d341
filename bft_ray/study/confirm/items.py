"""Records of an evaluation -> one score an item; the plain mean of the scores is the metric.

A metric that is a mean over items needs no change. Another one (a ratio of sums, an area under a curve, a mean of means)
is linearised (`bft_ray.stats.linearise`). One theory of means then holds for every metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bft_ray.config.metrics import describe
from bft_ray.errors import BadInput
from bft_ray.metrics import Mean
from bft_ray.stats.errors import names_of
from bft_ray.stats.linearise import Made, columns_of, linear_scores

#: share of the items that a judge (another model) must have judged
COMPLETE = 0.99


def item_scores(metric: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Item id -> score, in the metric's unit and direction; their mean is the metric.

    Args:
        metric: full name, such as choices/probability.
        records: of all sets; those of the metric's set are used (`set`; all where none has one).

    Raises:
        BadInput: no records, too few verdicts of a judge, a metric that records of items do not determine, an id given
            twice, or a number that is not finite.
    """
    name, own = metric.rpartition("/")[2], _of_set(metric, records)
    if not own:
        raise BadInput(metric, "without records", "measured with a record an item")
    known = describe(metric)
    made = known.items if known else Mean()
    if isinstance(made, Mean) and made.may_lack:
        own = _judged(metric, made.column or name, own)
    ids = [str(record["id"]) for record in own]
    if len(set(ids)) < len(ids):
        again = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise BadInput(f"{metric} id", again, "given once", "Give the items of this set ids of their own.")
    scores = _scores(metric, name, made, own)
    if not np.isfinite(scores).all():
        raise BadInput(f"{metric} of {ids[int(np.argmin(np.isfinite(scores)))]}", "not finite", "a finite number")
    return dict(zip(ids, scores.tolist(), strict=True))


def _judged(metric: str, column: str, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The records that have a verdict; a judge may have failed for a few."""
    found = [record for record in records if column in record]
    if len(found) < COMPLETE * len(records):
        rule = f"of at least {COMPLETE:.0%} of the {len(records)} items"
        raise BadInput(metric, f"{len(found)} verdicts", rule, "Repair the judge, and run again: verdicts are kept.")
    return found


def item_groups(metric: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Item id -> the groups that it shares with others (genes, patients, documents); items without are left out."""
    return {str(record["id"]): list(names) for record in _of_set(metric, records) if (names := names_of(record))}


def items_of(metric: str, others: Iterable[str], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept of the items of a run of the confirmation: `items`, `groups` and `others`, the scores in other metrics.

    Args:
        metric: of the objective.
        others: metrics of claims.

    Raises:
        BadInput: as for `item_scores`.
    """
    kept: dict[str, Any] = {"items": item_scores(metric, records)}
    if groups := item_groups(metric, records):
        kept["groups"] = groups
    if scores := {name: item_scores(name, records) for name in others}:
        kept["others"] = scores
    return kept


def _of_set(metric: str, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    of = metric.removeprefix("final/").rpartition("/")[0]
    return [record for record in records if record.get("set", of) == of]


def _scores(metric: str, name: str, made: Made | None, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    for rule in (made, Mean(name)):  # where the declared columns are missing, that of the metric's own name
        if rule is not None and all(column in record for column in columns_of(rule, name) for record in records):
            return linear_scores(rule, name, records)
    raise BadInput(
        metric,
        "no figure of single items",
        "a mean over items, a ratio of their sums, or an area under a curve, to be confirmed item by item",
        "Use such a metric as objective.metric, for example the accuracy or probability of the same set.",
    )
