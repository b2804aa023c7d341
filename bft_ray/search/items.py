"""Records of an evaluation -> one score an item, whose plain mean is the metric.

What is a mean over items is taken as it is. What is not (a ratio of sums, an area under a curve, a mean of means) is
linearised (`bft_ray.stats.linearise`). One theory of means then serves every metric.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bft_ray.errors import BadInput
from bft_ray.stats.errors import names_of
from bft_ray.stats.linearise import linear_auroc, linear_macro_mean, linear_ratio

#: metric -> columns of the records whose sums it is the quotient of, and a factor
_RATIOS = {
    "nll": ("nll", "num_tokens", 1.0),
    "bits_per_byte": ("nll", "num_bytes", 1 / math.log(2)),
    "token_accuracy": ("num_correct", "num_tokens", 1.0),
}
#: the metric that another model judges, and the share of the items that it must have judged
JUDGED, COMPLETE = "rubric_score", 0.99
#: metric -> column of the scores that it ranks by
_AREAS = {"auroc": "score", "embedding_auroc": "score", "embedding_auroc_mlp": "score_mlp"}


def item_scores(metric: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Item id -> score, in the metric's unit and direction; their mean is the metric.

    Args:
        metric: full name, such as choices/probability.
        records: of all sets; those of the metric's set are used (`set`; all where none has one).

    Raises:
        BadInput: no records, too few verdicts of a judge, a metric that cannot be told from records of items, an id given
            twice, or a number that
            is not finite.
    """
    name, own = metric.rpartition("/")[2], _of_set(metric, records)
    if not own:
        raise BadInput(metric, "without records", "measured with a record an item")
    if name == JUDGED:
        own = _judged(metric, own)
    ids = [str(record["id"]) for record in own]
    if len(set(ids)) < len(ids):
        again = next(name for place, name in enumerate(ids) if name in ids[:place])
        raise BadInput(f"{metric} id", again, "given once", "Give the items of this set ids of their own.")
    scores = _scores(metric, name, own)
    if not np.isfinite(scores).all():
        raise BadInput(f"{metric} of {ids[int(np.argmin(np.isfinite(scores)))]}", "not finite", "a finite number")
    return dict(zip(ids, scores.tolist(), strict=True))


def _judged(metric: str, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records with a verdict, which a judge may not have given for a few."""
    found = [record for record in records if JUDGED in record]
    if len(found) < COMPLETE * len(records):
        rule = f"of at least {COMPLETE:.0%} of the {len(records)} items"
        raise BadInput(metric, f"{len(found)} verdicts", rule, "Mend the judge, and run again: verdicts are kept.")
    return found


def item_groups(metric: str, records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Item id -> the groups that it shares with others (genes, patients, documents); items without are left out."""
    return {str(record["id"]): list(names) for record in _of_set(metric, records) if (names := names_of(record))}


def _of_set(metric: str, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    of = metric.removeprefix("final/").rpartition("/")[0]
    return [record for record in records if record.get("set", of) == of]


def _scores(metric: str, name: str, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if name in _RATIOS and _have(records, *_RATIOS[name][:2]):
        top, bottom, factor = _RATIOS[name]
        return linear_ratio(factor * _column(records, top), _column(records, bottom))
    if name in _AREAS and _have(records, _AREAS[name], "label"):
        return linear_auroc(_column(records, "label"), _column(records, _AREAS[name]))
    if name == "macro_accuracy" and _have(records, "correct", "subject"):
        return linear_macro_mean(_column(records, "correct"), [str(record["subject"]) for record in records])
    for column in (name, "correct") if name == "accuracy" else (name,):
        if _have(records, column):
            return _column(records, column)
    raise BadInput(
        metric,
        "no figure of single items",
        "a mean over items, a ratio of their sums, or an AUROC, to be confirmed item by item",
        "Take such a metric as objective.metric, for example the accuracy or probability of the same set.",
    )


def _have(records: Sequence[Mapping[str, Any]], *columns: str) -> bool:
    return all(name in record for record in records for name in columns)


def _column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], dtype=np.float64)
