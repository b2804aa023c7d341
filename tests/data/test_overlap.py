"""Items that share text with training rows: found in every spelling, and not where only a template is shared."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.data.overlap import FEWEST, NUM_WORDS, SHARE, _hashes, find_overlaps, words_of


def sentence(seed: int, count: int) -> list[str]:
    return random.Random(seed).choices([f"word{i}" for i in range(5000)], k=count)


ROWS = [(f"r{i}", " ".join(sentence(i, 60))) for i in range(200)]


def found(text: str, rows=ROWS) -> dict[str, str]:
    return dict(find_overlaps(rows, {"a": [("item", text)]})["a"].rows)


def test_a_question_within_a_row_is_found_however_it_is_spelt():
    words = ROWS[7][1].split()
    assert found(" ".join(words[10:40])) == {"item": "r7"}
    assert found("\u00a0\n".join(words[10:40]).upper() + "?!") == {"item": "r7"}
    assert found(", ".join(words[50:57])) == {"item": "r7"}  # shorter than a run: all of it
    assert found(" ".join([*words[50:56], "another"])) == {}
    assert words_of("The ﬁrst, IL-2's (p < 0.05)") == ["the", "first", "il", "2", "s", "p", "0", "05"]


@settings(max_examples=60)
@given(st.integers(NUM_WORDS, 50), st.integers(0, 60))
def test_most_of_the_words_must_be_in_one_row(inside, outside):
    """By the definition: the words within a run of 13, of all words."""
    row = ROWS[3][1].split()[: min(inside, 50)]
    text = " ".join([*row, *(f"new{i}" for i in range(outside))])
    assert bool(found(text)) == (len(row) >= SHARE * (len(row) + outside))


def test_two_rows_that_hold_half_each_hold_no_item():
    halves = " ".join([*ROWS[1][1].split()[:20], *ROWS[2][1].split()[:20]])
    assert found(halves) == {}
    border = [*ROWS[1][1].split()[-10:], *ROWS[2][1].split()[:10]]  # neighbours in the file, but not one text
    assert found(" ".join(border)) == {}


def test_a_template_is_not_an_overlap():
    """11 items with the same run: it is how the questions are made. With 10 it still counts."""
    stem = " ".join(sentence(900, 30))
    rows = [("r", f"{stem} x")]
    for count, expected in ((10, 10), (11, 0)):
        items = [(str(i), f"{stem} item{i}") for i in range(count)]
        assert len(find_overlaps(rows, {"a": items})["a"].rows) == expected


def test_too_short_an_item_says_nothing():
    assert found(" ".join(ROWS[0][1].split()[: FEWEST - 1])) == {} and found("") == {}
    assert find_overlaps([], {"a": [("i", ROWS[0][1])]})["a"].rows == {}
    assert find_overlaps(ROWS, {}) == {}


@pytest.mark.parametrize("block", [1, 64, 1 << 18])
def test_blocks_change_nothing(monkeypatch, block):
    monkeypatch.setattr("bft_ray.data.overlap._BLOCK", block)
    items = [(f"i{i}", " ".join(ROWS[i][1].split()[5:45])) for i in range(0, 200, 7)]
    told = find_overlaps(ROWS, {"a": items, "b": items[:3]})
    assert told["a"].rows == {f"i{i}": f"r{i}" for i in range(0, 200, 7)} and told["a"].num_items == len(items)
    assert told["b"].rows == dict(list(told["a"].rows.items())[:3])


def test_a_hash_is_of_the_run_and_its_order():
    numbers = np.array([3, 1, 4, 1, 5, 9, 3, 1, 4], np.uint64)
    runs = _hashes(numbers, 3)
    assert len(runs) == 7 and runs[0] == runs[6] and len(set(runs.tolist())) == 6
    assert _hashes(np.array([1, 3, 4], np.uint64), 3)[0] != runs[0]
    assert len(set(_hashes(np.arange(100_000, dtype=np.uint64), 2).tolist())) == 99_999
