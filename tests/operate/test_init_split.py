"""The splits of `bft-ray init`: no question and no group on two sides, the same every time, nothing lost."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.errors import BadInput
from bft_ray.operate.init.split import MOST_ROWS, SPLITS, assign, num_units
from bft_ray.operate.init.tell import rare_labels
from bft_ray.space.draft import differing_windows, grace_steps, window_grid
from bft_ray.stats.power import smallest_share


@st.composite
def rows(draw, least: int = 2):
    """(questions, groups) of up to 2,000 rows; questions repeat, groups are chained through them."""
    size = draw(st.integers(5, 2000) | st.integers(5, 60))
    questions = draw(st.integers(least, size))
    patients = draw(st.integers(1, size))
    random = Random(draw(st.integers(0, 2**32)))
    keys = [f"q{random.randrange(questions)}" for _ in range(size)]
    share = draw(st.sampled_from([0.0, 0.3, 1.0]))
    groups = [f"p{random.randrange(patients)}" if random.random() < share else None for _ in range(size)]
    return keys, groups


def expected_splits(units: int) -> set[str]:
    if units < 20:
        return {"train", "validation"}
    return {"train", "validation", "confirmation"} | ({"test"} if units >= 40 else set())


@settings(max_examples=60)
@given(rows(), st.integers(0, 2**32))
def test_a_split_is_whole_apart_and_the_same_every_time(made, seed):
    keys, groups = made
    units = num_units(keys, groups)
    if units < 2:
        with pytest.raises(BadInput, match="at least 2"):
            assign(keys, groups)
        return
    held = assign(keys, groups)
    assert None not in held and set(held) == expected_splits(units)  # the union is the input
    for labels in (keys, groups):
        sides: dict[str, set[str | None]] = {}
        for label, split in zip(labels, held, strict=True):
            if label is not None:
                sides.setdefault(label, set()).add(split)
        assert all(len(side) == 1 for side in sides.values())
    order = list(range(len(keys)))
    Random(seed).shuffle(order)  # the order of the rows decides nothing
    again = assign([keys[place] for place in order], [groups[place] for place in order])
    assert again == [held[place] for place in order]


@settings(max_examples=60)
@given(rows(), st.data())
def test_rows_of_given_splits_stay_there_or_are_left_out(made, data):
    keys, groups = made
    names = data.draw(st.sampled_from([["train", "validation"], ["train", "test"], list(SPLITS)]))
    random = Random(data.draw(st.integers(0, 2**32)))
    given_in = [random.choice(names) for _ in keys]
    try:
        held = assign(keys, groups, given_in)
    except BadInput as error:
        assert error.field == "data"
        return
    for row, split in enumerate(held):
        assert split in (None, given_in[row]) or given_in[row] == "train"
    sides: dict[str, set[str]] = {}
    for key, split in zip(keys, held, strict=True):
        if split is not None:
            sides.setdefault(key, set()).add(split)
    assert all(len(side) == 1 for side in sides.values())
    last = {
        key: max((given_in[row] for row, own in enumerate(keys) if own == key), key=SPLITS.index) for key in keys[:9]
    }
    for row, split in enumerate(held[:9]):
        if split is None:  # some row of its unit is given in a later split
            assert given_in[row] != SPLITS[-1]
        elif not any(groups):
            assert last[keys[row]] in (split, "train")


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        (5, {"train": 4, "validation": 1}),
        (19, {"train": 15, "validation": 4}),
        (20, {"train": 10, "validation": 5, "confirmation": 5}),
        (39, {"train": 25, "validation": 6, "confirmation": 8}),
        (40, {"train": 24, "validation": 5, "confirmation": 6, "test": 5}),
        (201, {"train": 131, "validation": 20, "confirmation": 30, "test": 20}),
        (1999, {"train": 1299, "validation": 200, "confirmation": 300, "test": 200}),
        (20_000, {"train": 17_500, **MOST_ROWS}),
    ],
)
def test_how_many_rows_go_where(size, counts):
    assert Counter(assign([f"q{n}" for n in range(size)], [None] * size)) == counts


def test_a_large_group_trains_and_is_not_what_is_tested():
    groups = ["large" if n < 500 else f"p{n % 60}" for n in range(1000)]
    held = assign([f"q{n}" for n in range(1000)], groups)
    few = assign([f"q{n}" for n in range(2000)], ["large"] * 1940 + [f"p{n}" for n in range(60)])
    assert Counter(few) == {"train": 1940 + 18, "validation": 12, "confirmation": 18, "test": 12}  # nothing is starved
    assert set(held[:500]) == {"train"}
    counts = Counter(held)
    assert counts["test"] < 130 and counts["validation"] < 130 and counts["confirmation"] < 190


def test_too_little_to_split_is_said():
    with pytest.raises(BadInput, match=r"`data` is '1 independent question', but must be at least 2\. Add rows"):
        assign(["q", "q"], [None, None])
    assert assign(["a", "b"], [None, None], ["train", "validation"]) == ["train", "validation"]
    with pytest.raises(
        BadInput,
        match=r"0 independent questions that the files beside it do not hold.* Take the questions of the one out",
    ):
        assign(["a", "a"], [None, None], ["train", "validation"])


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=200))
def test_windows_differ_and_lie_below_the_longest_answer(lengths):
    grid = window_grid(max(lengths))
    windows = differing_windows(grid, lengths)
    assert grid[-1] >= 2 * max(lengths) and len(grid) <= 9
    assert windows == sorted(set(windows)) and len(windows) <= 5
    assert all(window < max(lengths) for window in windows)
    assert (256 in windows) == (max(lengths) > 256)


def test_splits_that_lack_a_label_are_told():
    def rows(**counts: int) -> list:
        return [SimpleNamespace(taught={"completion": label}) for label, count in counts.items() for _ in range(count)]

    parts = {"train": rows(yes=39), "validation": rows(yes=19, no=1), "confirmation": rows(yes=9), "test": []}
    assert rare_labels(parts, 2) == [
        "note         train: lacks 1 of the 2 labels, which cannot be learned",
        "note         validation: always saying its most frequent label is right in 95% of it",
        "note         confirmation: lacks 1 of the 2 labels; always saying its most frequent label is right in 100% of it",
    ]
    assert rare_labels({"train": rows(yes=20, no=9), "validation": rows(yes=4, no=2)}, 2) == []


def test_what_so_few_items_can_show():
    assert smallest_share(1) is None and smallest_share(5) is None  # five changes that go one way are within chance
    found = [smallest_share(n) for n in (6, 20, 30, 100, 1000)]
    assert found == pytest.approx([0.963, 0.366, 0.251, 0.128, 0.040], abs=1e-3)
    assert [grace_steps(n, "validation/token_accuracy") for n in (1, 2, 9, 45, 263)] == [None, 1, 1, 5, 30]
    assert [grace_steps(n, "choices/probability") for n in (1, 2, 9, 45, 263)] == [None, 2, 6, 27, 158]


def test_a_group_is_the_same_however_it_is_spelled():
    names = [f"P{number}" for number in range(30)]
    groups = [spelled for name in names for spelled in (name, f"{name} ", name.lower())]
    keys = [str(place) for place in range(len(groups))]
    held = assign(keys, groups)
    assert all(len(set(held[place : place + 3])) == 1 for place in range(0, len(held), 3))
    assert num_units(keys, groups) == 30
