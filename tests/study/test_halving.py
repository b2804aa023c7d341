"""Who goes on at a rung: by hand, and what holds for any values in any order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bft_ray.study.propose.halving import is_promoted, survivors
from bft_ray.study.records.record import TrialRecord

HIGHER, LOWER = "choices/probability", "validation/nll"


def at(number: int, state="running", merged: str | None = None, **rungs: float) -> TrialRecord:
    """`at(3, r8=0.5)`: trial 3 has 0.5 at the rung of step 8."""
    values = {int(name[1:]): {0: value} for name, value in rungs.items()}
    return TrialRecord("search", number, {}, state=state, rungs=values, duplicate_of=merged)


def test_asynchronous_by_hand():
    """reduction 3: the best of 1 to 5 goes on, then the best two of 6."""
    values = [0.5, 0.4, 0.6, 0.7, 0.1, 0.65, 0.62]
    arrived, went_on = [], []
    for number, value in enumerate(values):
        arrived.append(at(number, r8=value))
        went_on.append(is_promoted(arrived, number, 8, 3, HIGHER))
    assert went_on == [True, False, True, True, False, True, False]
    # with the other direction: 0.5 first, then 0.4, 0.1 are the least so far, and of 7 the least two are 0.1 and 0.4
    assert [is_promoted(arrived[: n + 1], n, 8, 3, LOWER) for n in range(7)] == [
        True,
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_asynchronous_counts_every_trial_that_was_there_and_no_merged_one():
    others = [at(0, "pruned", r8=0.9), at(1, "failed", r8=math.nan), at(2, "complete", r8=0.8), at(3, r4=0.99)]
    assert not is_promoted([*others, at(4, r8=0.7)], 4, 8, 2, HIGHER)  # third of four
    assert is_promoted([*others, at(4, r8=0.85)], 4, 8, 2, HIGHER)  # second of four
    merged = [at(5, "complete", "search/2", r8=0.8), at(6, "complete", "search/2", r8=0.8)]
    assert not is_promoted([*others, *merged, at(4, r8=0.7)], 4, 8, 2, HIGHER)
    ties = [at(0, r8=0.5), at(1, r8=0.5), at(2, r8=0.5)]
    assert [is_promoted(ties, number, 8, 3, HIGHER) for number in range(3)] == [
        True,
        False,
        False,
    ]  # the first of equals


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_never_goes_on(value):
    assert not is_promoted([at(0, r8=value)], 0, 8, 3, HIGHER)
    assert not is_promoted([at(0, r8=value)], 0, 8, 3, LOWER)
    assert survivors([at(0, r8=value), at(1, r8=0.1)], [8], 8, 2, LOWER) == {1}
    assert survivors([at(0, r8=value)], [8], 8, 2, HIGHER) == frozenset()


def test_a_mean_over_seeds_counts_when_all_are_there():
    halves = TrialRecord("search", 0, {}, seeds=(0, 1), state="running", rungs={8: {0: 0.4}})
    with pytest.raises(KeyError):
        is_promoted([halves], 0, 8, 3, HIGHER)
    whole = TrialRecord("search", 0, {}, seeds=(0, 1), state="running", rungs={8: {0: 0.4, 1: 0.6}})
    assert whole.rung_values == {8: 0.5}
    assert is_promoted([whole, at(1, r8=0.49)], 0, 8, 3, HIGHER)


def test_synchronous_by_hand():
    """Nine trials, reduction 3: three go on from 8, one of them from 24."""
    first = [0.3, 0.9, 0.1, 0.5, 0.8, 0.2, 0.7, 0.4]
    batch = [at(number, r8=value) for number, value in enumerate(first)]
    assert survivors([*batch, at(8)], [8, 24], 8, 3, HIGHER) is None  # the ninth is awaited
    batch.append(at(8, r8=0.6))
    assert survivors(batch, [8, 24], 8, 3, HIGHER) == {1, 4, 6}
    assert survivors(batch, [8, 24], 24, 3, HIGHER) is None
    for number, value in ((1, 0.90), (4, 0.95), (6, 0.93)):
        batch[number] = at(number, r8=first[number], r24=value)
    assert survivors(batch, [8, 24], 24, 3, HIGHER) == {4}
    assert survivors(batch, [8, 24], 8, 3, HIGHER) == {1, 4, 6}  # as before


def test_synchronous_with_failures_merges_and_short_runs():
    failed = [at(0, "failed"), at(1, "failed"), at(2, r8=0.1), at(3, r8=0.2)]
    assert survivors(failed, [8], 8, 2, HIGHER) == {2, 3}  # ceil(4 / 2)
    assert survivors(failed, [8], 8, 4, HIGHER) == {3}
    merged = [at(0, r8=0.5), at(1, "waiting", "search/0"), at(2, r8=0.4)]
    assert survivors(merged, [8], 8, 2, HIGHER) == {0}
    short = [at(0, "complete"), at(1, r8=0.2), at(2, r8=0.3)]  # the first ran fewer than 8 steps in all
    assert survivors(short, [8], 8, 2, HIGHER) == {2}
    ties = [at(2, r8=0.5), at(1, r8=0.5), at(0, r8=0.5)]
    assert survivors(ties, [8], 8, 3, HIGHER) == {0}
    with pytest.raises(KeyError, match="7 is none of the rungs"):
        survivors(short, [8], 7, 2, HIGHER)


VALUES = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.5, math.nan, math.inf])), min_size=1, max_size=40)


@given(VALUES, st.integers(2, 5), st.sampled_from([HIGHER, LOWER]), st.randoms())
def test_synchronous_for_any_values(values, reduction, metric, draw: random.Random):
    batch = [at(number, r8=value, r24=1 - value) for number, value in enumerate(values)]
    alive = survivors(batch, [8, 24], 8, reduction, metric)
    last = survivors(batch, [8, 24], 24, reduction, metric)
    assert alive is not None and last is not None and last <= alive
    assert len(alive) == min(math.ceil(len(values) / reduction), sum(map(math.isfinite, values)))
    assert len(last) <= math.ceil(len(alive) / reduction)
    assert all(math.isfinite(values[number]) for number in alive)
    sign = 1 if metric == HIGHER else -1
    out = [value for number, value in enumerate(values) if number not in alive and math.isfinite(value)]
    assert all(sign * values[number] >= sign * other for number in alive for other in out)
    draw.shuffle(batch)
    assert survivors(batch, [24, 8], 8, reduction, metric) == alive
    assert survivors(batch, [24, 8], 24, reduction, metric) == last


@given(VALUES, st.integers(2, 5), st.sampled_from([HIGHER, LOWER]), st.randoms())
def test_asynchronous_for_any_values(values, reduction, metric, draw: random.Random):
    """Whatever came before, at most a share goes on of those that are there, and the best always does."""
    records = [at(number, r8=value) for number, value in enumerate(values)]
    on = {number for number in range(len(values)) if is_promoted(records, number, 8, reduction, metric)}
    finite = [value for value in values if math.isfinite(value)]
    best = (max if metric == HIGHER else min)(finite, default=None)
    assert all(math.isfinite(values[number]) for number in on)
    assert len(on) == min(max(1, len(values) // reduction), len(finite))
    if finite:
        assert values.index(best) in on
    draw.shuffle(records)
    assert on == {number for number in range(len(values)) if is_promoted(records, number, 8, reduction, metric)}
