"""All arms at once: by hand, against scipy, and, by simulation, errors as rare and intervals as right as promised."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from bft_ray.errors import BadInput
from bft_ray.stats.claim import Claims, how_often
from bft_ray.stats.crossed import Crossed, error_parts, pooled_square, run_variances
from bft_ray.stats.errors import as_groups
from bft_ray.stats.noise import step_down
from bft_ray.stats.simultaneous import compare_pair, compare_with, not_told_from_best
from jobs.bench.simulated import Cell, simulate
from jobs.bench.statistics import cells


def test_the_parts_of_the_error_by_hand():
    difference = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]])
    # means of seeds 2, 5, so variance 4.5 over 2; rest +-[.5, .5, -1]: squares 3, degrees 2, over 6
    assert error_parts(difference) == (pytest.approx(4.5 / 2), pytest.approx(3 / 2 / 6))
    # runs 1 2 3 and 3 4 8: rest +-[.5, .5, -1], squares 3, degrees 2; the same runs twice count once
    runs = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0], [3.0, 4.0, 8.0]])
    assert pooled_square(runs) == (pytest.approx(3 / 2), 2.0)


def test_seeds_alone_are_dunnetts_t_in_blocks():
    """Of two-way layouts without items of their own: p against the multivariate t of scipy."""
    draw = np.random.default_rng(3)
    runs = draw.normal(size=(4, 5, 1)) + np.array([0.0, 1.5, 0.2, -0.3])[:, None, None]
    scores = {str(arm): np.repeat(runs[arm], 6, 1) for arm in range(4)}
    found = compare_with(scores, "0", 0.05, draws=40_000).comparisons
    mean_square, freedom = pooled_square(runs[:, :, 0])
    assert freedom == 12
    top = max(found.values(), key=lambda c: c.gain)
    t = top.gain / math.sqrt(2 * mean_square / 5)
    joint = stats.multivariate_t(shape=0.5 * (1 + np.eye(3)), df=12, seed=0)
    adjusted = 1 - joint.cdf(np.full(3, t), maxpts=200_000)
    own = stats.ttest_rel(runs[int(top.name), :, 0], runs[0, :, 0]).pvalue  # two-sided, for itself
    assert top.p == pytest.approx(max(adjusted, own), abs=0.01)


def test_items_alone_are_a_t_test_over_items():
    items = np.linspace(-1.0, 1.13, 400)
    scores = {"a": np.repeat(items[None], 4, 0), "b": np.zeros((4, 400))}
    found = compare_pair("a", "b", scores, 0.05)
    expected = stats.ttest_1samp(items, 0).pvalue
    assert found.seed_share < 1e-12 and found.p == pytest.approx(expected, rel=0.2)
    assert found.se == pytest.approx(stats.sem(items))


def test_step_down_by_hand():
    """Draws of two arms: the larger statistic is held against the larger of both, the other against its own."""
    null = np.array([[0.0, 3.0], [1.0, 0.0], [2.0, 1.0], [0.0, 0.0]])
    assert step_down(np.array([2.5, 0.5]), null).tolist() == [(1 + 1) / 5, (1 + 2) / 5]


def test_arms_that_move_together_need_no_correction():
    draw = np.random.default_rng(0)
    item = draw.normal(size=(1, 1, 300))
    scores = item + 1e-3 * draw.normal(size=(6, 5, 300))
    scores[0] -= item[0]
    found = compare_with({str(arm): scores[arm] for arm in range(6)}, "0", 0.05).comparisons
    one = compare_with({"0": scores[0], "1": scores[1]}, "0", 0.05).comparisons["1"]
    assert found["1"].high - found["1"].low == pytest.approx(one.high - one.low, rel=0.05)  # Bonferroni: 31 %


def test_the_best_and_those_that_cannot_be_told_from_it():
    draw = np.random.default_rng(0)
    scores = {name: shift + 0.1 * draw.normal(size=(5, 60)) for name, shift in {"a": 0.3, "b": 0.3, "c": 0.0}.items()}
    family = compare_with(scores, "c", 0.05)
    assert family.best["c"] == 0 and family.best["a"] + family.best["b"] == pytest.approx(1)
    assert not_told_from_best(scores, 0.05) == {"a", "b"}


def test_groups_widen_the_intervals():
    draw = np.random.default_rng(0)
    patient = np.repeat(draw.normal(size=(1, 12)), 10, axis=1)
    scores = {"a": patient + 0.1 * draw.normal(size=(5, 120)), "b": 0.1 * draw.normal(size=(5, 120))}
    groups = as_groups([(str(i // 10),) for i in range(120)])
    alone, shared = (compare_with(scores, "b", 0.05, groups=g).comparisons["a"] for g in (None, groups))
    assert shared.se > 2.5 * alone.se


def test_what_is_not_asked_for_changes_nothing_else():
    draw = np.random.default_rng(0)
    scores = {name: draw.normal(size=(3, 40)) for name in "abc"}
    whole, part = (compare_with(scores, "c", 0.05, groups=None, in_full=full) for full in (True, False))
    assert part.best == {} and all(math.isnan(one.detectable) for one in part.comparisons.values())
    assert part.comparisons == {k: replace(c, detectable=math.nan) for k, c in whole.comparisons.items()}


def test_marks_of_a_test_by_own_runs():
    draw = np.random.default_rng(0)
    crossed = Crossed.of([draw.normal(size=(4, 50)) for _ in range(3)], [], None)
    marks = Claims.of(crossed, 10, 0).own_critical(0.025, np.array([0.0, 0.5, 1.0]))
    freedom = 1 / (0.25 / 3 + 0.25 / 49)  # Satterthwaite, of halves
    assert marks == pytest.approx(stats.t.isf(0.025, [49, freedom, 3]))


def test_scores_must_fit():
    with pytest.raises(BadInput, match="of one shape"):
        compare_with({"a": np.zeros((2, 3)), "b": np.zeros((2, 4))}, "a", 0.05)
    with pytest.raises(BadInput, match="at least 2 seeds"):
        compare_with({"a": np.zeros((1, 3)), "b": np.zeros((1, 3))}, "a", 0.05)
    assert compare_with({"a": np.zeros((2, 3))}, "a", 0.05).comparisons == {}


# ---- by simulation ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cell", cells(small=True), ids=lambda cell: f"{cell.kind} {cell.setting}")
def test_errors_are_as_rare_as_promised(cell):
    """200 studies a setting; bounds are those of docs/statistics.md, + 2.5 standard errors of this few."""
    found, error = simulate(cell, 200, draws=400), 2.5 * math.sqrt(0.05 * 0.95 / 200)
    assert found.get("false champion", 0) <= 0.057 + error
    assert found.get("coverage", 1) >= 0.94 - error


@pytest.mark.slow
def test_what_is_claimed_is_shown():
    """100 claims: 0.8, or 0.75 and 0.85 as the page allows, and 2.5 standard errors."""
    found = simulate(Cell("choice", "both", 5, 60), 400, draws=400)
    assert found["claims"] > 90 and found["claimed power"] == pytest.approx(0.8, abs=0.15)


def test_a_claim_says_how_exact_it_is():
    """docs/statistics.md: with fewer than 5 seeds or 100 items, 6.8 to 8.7 of 10 were seen."""
    assert how_often(5, 100) == how_often(10, 1_000) == "about 8 of 10"
    assert how_often(4, 1_000) == how_often(10, 99) == "7 to 9 of 10"
    draw = np.random.default_rng(0)
    for num_seeds, words in ((3, "7 to 9 of 10"), (5, "about 8 of 10")):
        scores = {name: draw.normal(size=(num_seeds, 120)) for name in "ab"}
        assert compare_with(scores, "b", 0.05).comparisons["a"].shows_in == words


def test_a_loud_arm_has_a_variance_of_its_own():
    draw = np.random.default_rng(0)
    runs = draw.normal(size=(5, 10)) * np.array([1, 1, 6, 1, 1])[:, None]
    variances, freedoms = run_variances(runs)
    assert freedoms[2] == 9 and (np.delete(freedoms, 2) == 27).all()
    assert variances[2] > 10 and (np.delete(variances, 2) == pooled_square(np.delete(runs, 2, 0))[0]).all()
    alike, freedoms = run_variances(draw.normal(size=(5, 10)))
    assert len(set(alike)) == 1 and (freedoms == 36).all()
