"""Whole studies with a known truth, simulated from search to choice; `jobs.bench.named` has many more of them."""

from __future__ import annotations

from collections import Counter

import pytest

from jobs.bench.named import METRIC, STEPS, detectable, run, space


@pytest.mark.slow
def test_the_best_setting_is_named_and_none_where_there_is_none():
    one = space()
    least = detectable(8, one)
    assert 0.01 < least < 0.05
    null = Counter(run(seed, 0.0, one).outcome for seed in range(20))
    assert null["false champion"] <= 3 and null["named"] == 0
    twice = Counter(run(seed, 2 * least, one).outcome for seed in range(20))
    assert twice["named"] >= 16 and twice["false champion"] <= 1


def test_a_study_is_a_function_of_its_seed():
    one = space()
    assert run(3, 0.02, one) == run(3, 0.02, one)
    assert one.objective.metric == METRIC and one.budget.steps == STEPS
