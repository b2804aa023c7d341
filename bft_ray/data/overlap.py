"""Which items of an evaluation share text with training rows: by runs of words, told by ids alone.

An item overlaps with a row where most of its words (`SHARE`) lie in runs of 13 words that the row holds too; an item of 5 to 12 words
where the row holds all of it. Runs of 13 are the measure of Brown et al. 2020 (arXiv 2005.14165, appendix C), and the share of the
words that lie in them that of Touvron et al. 2023 (arXiv 2307.09288, appendix A.6). Shorter items say too little. Words are what
letters and digits make, after Unicode's caseless match under compatibility. A run that more than 10 items of a set have is its
template and counts for none of them.

Runs are compared by a hash of 61 bits; n runs of items and m of rows collide by chance with probability n m / 2^61.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

NUM_WORDS, FEWEST, SHARE = 13, 5, 0.8
_TEMPLATE = 10  # more items with the same run are made by a template
_WORD = re.compile(r"[^\W_]+")
_PRIME = (1 << 61) - 1
_BASE = 1_000_003
_BLOCK = 1 << 18  # words whose runs are looked up at a time

#: id and text
Text = tuple[str, str]


@dataclass(frozen=True)
class Overlap:
    """Items of one set that share text with training rows.

    Args:
        num_items: of the set.
        rows: id of an item -> id of the first row that it shares text with.
    """

    num_items: int
    rows: Mapping[str, str]


def find_overlaps(rows: Iterable[Text], sets: Mapping[str, Sequence[Text]]) -> dict[str, Overlap]:
    """Which items of each set share text with the rows; see the head of the file.

    Args:
        rows: of the training data, read once.
        sets: name -> items.
    """
    words: dict[str, int] = {}
    wanted = _Wanted(words)
    for name, items in sets.items():
        wanted.add(name, items)
    for ids, row_of, numbers in _blocks(rows, words):
        wanted.look_up(ids, row_of, numbers)
    return {name: Overlap(len(items), wanted.found[name]) for name, items in sets.items()}


def words_of(text: str) -> list[str]:
    """The words of a text in their order, as they are compared."""
    return _WORD.findall(unicodedata.normalize("NFKD", text).casefold())


class _Wanted:
    """The runs of all items, by their length, and which items were found."""

    def __init__(self, words: dict[str, int]):
        self.found: dict[str, dict[str, str]] = {}  # set -> item -> row
        self._words = words
        self._lengths: dict[tuple[str, str], int] = {}  # (set, item) -> its number of words
        # length of a run -> hash -> (set, item, place of the run in the item)
        self._owners: dict[int, dict[int, list[tuple[str, str, int]]]] = {}

    def add(self, name: str, items: Sequence[Text]) -> None:
        self.found[name] = {}
        runs: dict[tuple[int, int], list[tuple[str, str, int]]] = {}
        for own, text in items:
            numbers = np.array(
                [self._words.setdefault(word, len(self._words) + 1) for word in words_of(text)], np.uint64
            )
            self._lengths[name, own] = len(numbers)
            if len(numbers) >= FEWEST:
                size = min(NUM_WORDS, len(numbers))
                for place, run in enumerate(_hashes(numbers, size).tolist()):
                    runs.setdefault((size, run), []).append((name, own, place))
        for (size, run), owners in runs.items():
            if len({own for _, own, _ in owners}) <= _TEMPLATE:
                self._owners.setdefault(size, {}).setdefault(run, []).extend(owners)

    def look_up(self, ids: Sequence[str], row_of: np.ndarray, numbers: np.ndarray) -> None:
        """Find the items of which the rows hold enough; `row_of` [n]: place in `ids` of the row of each word."""
        for size, owners in self._owners.items():
            if len(numbers) < size:
                continue
            runs = _hashes(numbers, size)
            is_whole = row_of[: len(runs)] == row_of[size - 1 :]  # within one row
            held: dict[tuple[str, str, int], set[int]] = {}  # (set, item, row) -> places of its runs
            for place in np.flatnonzero(is_whole & np.isin(runs, np.fromiter(owners, np.uint64, len(owners)))):
                for name, own, start in owners[int(runs[place])]:
                    held.setdefault((name, own, int(row_of[place])), set()).add(start)
            for (name, own, row), starts in held.items():
                covered = len({start + word for start in starts for word in range(size)})
                if covered >= SHARE * self._lengths[name, own]:
                    self.found[name].setdefault(own, ids[row])


def _blocks(rows: Iterable[Text], words: Mapping[str, int]) -> Iterable[tuple[list[str], np.ndarray, np.ndarray]]:
    """(ids, row of each word, words as numbers; 0: of no item), some rows at a time."""
    ids: list[str] = []
    row_of: list[int] = []
    numbers: list[int] = []
    for own, text in rows:
        found = words_of(text)
        row_of += [len(ids)] * len(found)
        numbers += [words.get(word, 0) for word in found]
        ids.append(own)
        if len(numbers) >= _BLOCK:
            yield ids, np.array(row_of), np.array(numbers, np.uint64)
            ids, row_of, numbers = [], [], []
    if numbers:
        yield ids, np.array(row_of), np.array(numbers, np.uint64)


def _hashes(numbers: np.ndarray, size: int) -> np.ndarray:
    """[n - size + 1]: a hash of each run of `size` numbers."""
    mixed = _mix(numbers)
    result = np.zeros(len(numbers) - size + 1, np.uint64)
    for place in range(size):
        result = _mix(result * np.uint64(_BASE) + mixed[place : place + len(result)])
    return result & np.uint64(_PRIME)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every other one."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
