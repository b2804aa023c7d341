"""Rows -> train, validation, confirmation and test; the same question and related rows stay on one side.

A unit is a set of rows that belong together: they ask the same question (`question_key`), or are of the same group, or
are linked by a chain of both. Units are independent of each other; so they, not rows, are what a split needs enough of:

    units       splits
    40 or more  train, validation (10 % of the rows), confirmation (15 %), test (10 %)
    20 to 39    train, validation (15 %), confirmation (20 %): a test of fewer than 5 units would show nothing
    2 to 19     train, validation (20 %): too few to confirm a choice on

Of four or three splits each held-out one has at least 5 units; of many rows it takes no more than 500 (validation,
which is measured most often), 1,000 (confirmation) and 1,000 (test).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from bft_ray.data.rows import text_key
from bft_ray.errors import BadInput

TRAIN, VALIDATION, CONFIRMATION, TEST = "train", "validation", "confirmation", "test"
#: in the order of use: where a unit is in several given splits, the last one keeps it
SPLITS = (TRAIN, VALIDATION, CONFIRMATION, TEST)
LEAST_UNITS = 5  # of a held-out split of three or four
#: units that it takes -> held-out split -> its share of the rows
SHARES = (
    (40, {VALIDATION: 0.10, CONFIRMATION: 0.15, TEST: 0.10}),
    (20, {VALIDATION: 0.15, CONFIRMATION: 0.20}),
    (2, {VALIDATION: 0.20}),
)
MOST_ROWS = {VALIDATION: 500, CONFIRMATION: 1000, TEST: 1000}
_OVER = 1.25  # times its share, up to which a split may take a large unit


@dataclass(frozen=True)
class _Unit:
    """Rows that belong together: their places, and the hash that decides where they go."""

    digest: bytes
    places: tuple[int, ...]


def assign(keys: Sequence[str], groups: Sequence[str | None], given: Sequence[str] | None = None) -> list[str | None]:
    """The split of each row; None for a row that is left out.

    The same questions and groups give the same splits, in any order of the rows.

    Args:
        keys: the normalised question of each row.
        groups: patient, document, gene ... of each row; None: the row is of no group.
        given: the split that each row was given in; None: `train` for all. What is given as another split stays there;
            splits that nothing was given for are drawn from the rows of `train`. A row of a unit that is also in a later
            given split is left out.

    Raises:
        BadInput: fewer than 2 units to draw from.
    """
    given = given or [TRAIN] * len(keys)
    held: list[str | None] = [None] * len(keys)
    free: list[_Unit] = []
    for unit in _units(keys, groups):
        last = max((given[place] for place in unit.places), key=SPLITS.index)
        if last == TRAIN:
            free.append(unit)
        for place in unit.places:
            held[place] = last if given[place] == last else None
    for name, units in _draw(free, {name for name in given if name != TRAIN}).items():
        for place in (place for unit in units for place in unit.places):
            held[place] = name
    return held


def num_units(keys: Sequence[str], groups: Sequence[str | None]) -> int:
    """How many of these rows are independent of each other."""
    return len(_units(keys, groups))


def _units(keys: Sequence[str], groups: Sequence[str | None]) -> list[_Unit]:
    """In the order of their hashes. Groups that are spelled alike but for case and white space are one."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for key, group in zip(keys, groups, strict=True):
        own = root(("key", key))
        if group is not None:
            parent[root(("group", text_key(group)))] = own
    members: dict[tuple[str, str], list[int]] = {}
    for place, key in enumerate(keys):
        members.setdefault(root(("key", key)), []).append(place)
    units = [_Unit(min(_hash(keys[place]) for place in places), tuple(places)) for places in members.values()]
    return sorted(units, key=lambda unit: unit.digest)


def _draw(free: Sequence[_Unit], given: set[str]) -> dict[str, list[_Unit]]:
    """Held-out split that was not given -> the units drawn for it; the rest trains."""
    shares = _shares(len(free), given)
    least = LEAST_UNITS if CONFIRMATION in shares else 1
    num_rows = sum(len(unit.places) for unit in free)
    drawn: dict[str, list[_Unit]] = {}
    left = list(free)
    for name in reversed([name for name in shares if name not in given]):
        rows = min(MOST_ROWS[name], round(shares[name] * num_rows))
        drawn[name] = _take(left, rows, least, max(least, round(2 * shares[name] * len(free))))
        taken = set(map(id, drawn[name]))
        left = [unit for unit in left if id(unit) not in taken]
    return drawn


def _shares(units: int, given: set[str]) -> dict[str, float]:
    for least, shares in SHARES:
        if units >= least:
            return shares
    if units == 1 and VALIDATION in given:
        return {}
    beside = " that the files beside it do not hold" if given else ""
    what = "1 independent question" if units == 1 else f"{units} independent questions"
    remedy = (
        "Add rows (with --group: of other groups; groups that share a question stay together, and count as one), or put a "
        "validation file beside it (train.csv, validation.csv)."
    )
    if given:
        remedy = "Take the questions of the one out of the other, or name the one file, in a folder without the others."
    raise BadInput("data", f"{what}{beside}", "at least 2", remedy)


def _take(units: Sequence[_Unit], num_rows: int, least: int, most: int) -> list[_Unit]:
    """The first units that make up `num_rows`, without those too large for it; from `least` to `most` units: where
    one group has most of the rows, the others are shared out all the same.
    """
    taken: list[_Unit] = []
    size = 0
    for unit in units:
        if (size >= num_rows and len(taken) >= least) or len(taken) == most:
            break
        if size + len(unit.places) <= max(least, _OVER * num_rows):
            taken.append(unit)
            size += len(unit.places)
    chosen = set(map(id, taken))
    smallest = sorted((unit for unit in units if id(unit) not in chosen), key=lambda unit: len(unit.places))
    return taken + smallest[: max(0, least - len(taken))]


def _hash(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
