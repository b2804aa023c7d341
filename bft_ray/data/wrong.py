"""Wrong answers on purpose: a known share of the rows gets the completion of another one.

A row is chosen by the sha256 of its id, so the same rows are chosen in every order, whatever the other rows are, and those of
a smaller share are among those of a larger one. Chosen rows exchange completions among themselves: each gets that of the next
chosen row whose completion is another. So lengths and wording of the answers stay what they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bft_ray.config.wrong import WrongConfig
from bft_ray.data.record import BadRow, Row
from bft_ray.errors import BadInput

_SCALE = 2.0**64


def is_chosen(row_id: str, share: float) -> bool:
    """Whether a row is one of those with a wrong answer."""
    return int.from_bytes(hashlib.sha256(f"wrong answer {row_id}".encode()).digest()[:8], "big") < share * _SCALE


def with_wrong(rows: Iterable[Row | BadRow], wrong: WrongConfig, field: str) -> Iterable[Row | BadRow]:
    """The rows, with the wrong answers that are asked for; `Row.is_wrong` tells which.

    Args:
        field: dotted name of the source in the config, for errors.

    Raises:
        BadInput: rows without a completion, or no two chosen rows whose completions differ.
    """
    if not wrong.share:
        return rows
    every = list(rows)
    chosen = {i: row for i, row in enumerate(every) if isinstance(row, Row) and is_chosen(row.id, wrong.share)}
    if wrong.drop:
        return [row for i, row in enumerate(every) if i not in chosen]
    taken = _taken(list(chosen.values()), wrong.share, field)
    for (i, row), completion in zip(chosen.items(), taken, strict=True):
        every[i] = replace(row, completion=completion, is_wrong=True)
    return every


def _taken(rows: Sequence[Row], share: float, field: str) -> list[str | list[dict]]:
    """The completion that each of these rows gets."""
    for row in rows:
        if row.completion is None:
            rule = "0 for rows without prompt and completion: a conversation or a text has no answer to exchange"
            raise BadInput(f"{field}.wrong.share", share, rule)
    if len(rows) < 2:
        rule = f"large enough to choose two rows; it chooses {len(rows)}"
        raise BadInput(f"{field}.wrong.share", share, rule, "Raise it, or give more rows.")
    answers = [json.dumps(row.completion, sort_keys=True) for row in rows]
    taken: list[str | list[dict]] = []
    for i, answer in enumerate(answers):
        turn = range(i + 1, i + len(rows))
        other = next((k % len(rows) for k in turn if answers[k % len(rows)] != answer), None)
        if other is None:
            rule = "0 where all completions are the same: a wrong answer would be the right one"
            raise BadInput(f"{field}.wrong.share", share, rule)
        completion = rows[other].completion
        assert completion is not None
        taken.append(completion)
    return taken
