"""Answers that are labels: few, short, and the same ones in many rows. They are trained as answers and measured as options."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from bft_ray.data.rows import text_key
from bft_ray.operate.init.look import Found, Look, options_of

MOST = 20  # labels; more would make an evaluation long, for each is scored after each question
LEAST_ROWS = 10  # rows a label, on average
MOST_CHARACTERS = 60  # of a label


def with_labels(look: Look, others: Mapping[str, Look]) -> tuple[Look, dict[str, Look], list[str]]:
    """The same contents, and lines on them. Where the answers are labels, the rows to be measured have all labels as their
    options: then the study is about whether the right one is the likeliest. Likelihood a token would mostly measure the
    token that ends an answer.

    Args:
        look: the training rows.
        others: split -> contents of the file beside them, which may have labels of their own.
    """
    every = [row for each in (look, *others.values()) for row in each.rows]
    found = [_label(row) for row in every]
    counts = Counter(label for label in found if label is not None)
    if None not in found and len(counts) == 1 and len(every) >= LEAST_ROWS:
        return (
            look,
            dict(others),
            [f"{'hint':<13}all {len(every):,} answers are the same one: there is nothing to tell apart"],
        )
    if None in found or not 2 <= len(counts) <= MOST or len(every) < LEAST_ROWS * len(counts):
        return look, dict(others), []
    if len({text_key(label) for label in counts}) < len(counts):
        why = f"{len(counts)} answers in {len(every):,} rows look like labels, and some are read as the same text"
        remedy = "Write each with the same case, blanks and forms of letters: they are then measured as labels"
        return look, dict(others), [f"{'hint':<13}{why}. {remedy}"]
    labels = tuple(label for label, _ in counts.most_common())
    taught = {row.record["completion"] for row in look.rows}
    notes = [
        f"{'note':<13}{len(new)} of the labels of {each.path} are in no training row"
        for each in others.values()
        if (new := {row.record["completion"] for row in each.rows} - taught)
    ]
    made = {split: _with_options(each, labels) for split, each in others.items()}
    return _with_options(look, labels), made, notes


def _label(row: Found) -> str | None:
    """The answer of a row where it may be a label."""
    asked, answer = row.record.get("prompt"), row.record.get("completion")
    if not isinstance(asked, str) or not isinstance(answer, str) or "tools" in row.record:
        return None
    return answer if asked.strip() and answer.strip() and len(answer) <= MOST_CHARACTERS else None


def _with_options(look: Look, labels: tuple[str, ...]) -> Look:
    rows = []
    for row in look.rows:
        own = {name: row.record[name] for name in ("id", "group") if name in row.record}
        item = options_of(labels, labels.index(row.record["completion"]))
        rows.append(replace(row, record=own | {"question": row.record["prompt"]} | item))
    return replace(look, kind="choice", labels=labels, rows=rows)
