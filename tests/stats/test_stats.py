"""Errors, paired differences, power and linearised metrics: by hand, against scipy, and as often as promised."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bft_ray.errors import BadInput
from bft_ray.evaluate.classify import areas
from bft_ray.stats.errors import Groups, as_groups, freedom_of, mean_covariance, mean_error
from bft_ray.stats.linearise import linear_auprc, linear_auroc
from bft_ray.stats.paired import holm, mcnemar, paired_binary, paired_difference, paired_t, tango
from bft_ray.stats.power import detectable, detectable_binary, factor, power_of

# ---- power ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freedom", [2, 4, 9])
def test_what_is_detectable_is_shown_in_8_of_10_new_studies(freedom):
    """The effect is told from one study, and looked for in another; + 3 standard errors of 40,000 pairs."""
    draw, num = np.random.default_rng(0), 40_000
    told, seen = (np.sqrt(draw.chisquare(freedom, num) / freedom) for _ in range(2))
    critical = float(stats.t.isf(0.025, freedom))
    shown = (draw.normal(size=num) + factor(critical, freedom) * told) / seen > critical
    assert shown.mean() == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / num))
    plain = (draw.normal(size=num) + (critical + stats.t.ppf(0.8, freedom)) * told) / seen > critical
    assert plain.mean() < 0.77  # what it would be without the error of the error


def test_with_many_degrees_of_freedom_it_is_the_normal_formula():
    assert detectable(2.0) == pytest.approx(2 * (1.959964 + 0.841621))
    assert detectable(2.0, 1000) == pytest.approx(2 * 2.8066, rel=1e-3)
    assert power_of(0.0, 1.959964, math.inf) == pytest.approx(0.025)
    assert math.isnan(detectable(0.0, 5))


def test_what_mcnemar_can_detect():
    """Of 400 pairs with 60 discordant; the effect that it names, drawn 4,000 times."""
    least = detectable_binary(400, 60)
    draw = np.random.default_rng(1)
    discordant = draw.binomial(400, 0.15, 4000)
    lost = draw.binomial(discordant, (1 + least / 0.15) / 2)
    shown = [mcnemar(b, m - b) <= 0.05 and b > m - b for b, m in zip(lost, discordant, strict=True)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.02)
    assert math.isnan(detectable_binary(120, 0)) and math.isnan(detectable_binary(4, 2))


# ---- paired --------------------------------------------------------------------------------------------


def test_the_exact_test_and_its_interval_agree_about_0():
    for num in (5, 30, 120):
        for b in range(min(num, 16)):
            for c in range(min(num - b, 16)):
                found = paired_binary(b, c, num)
                assert (found.p <= 0.05) == (found.is_positive or found.is_negative), (num, b, c)
                assert found.low <= found.value <= found.high
                mirror = paired_binary(c, b, num)
                assert (mirror.low, mirror.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_tango_by_its_published_example():
    """Tango 1998, table II: 43 pairs, 0 and 1 discordant; and none."""
    assert tango(0, 1, 43) == (pytest.approx(-0.1203, abs=5e-4), pytest.approx(0.0608, abs=5e-4))
    z2 = stats.norm.isf(0.025) ** 2
    assert tango(0, 0, 120) == (pytest.approx(-z2 / (120 + z2)), pytest.approx(z2 / (120 + z2)))
    assert mcnemar(3, 1) == pytest.approx(2 * 5 / 16) and mcnemar(0, 0) == 1


@pytest.mark.parametrize(
    ("num", "lost", "gained"), [(30, 0.1, 0.1), (30, 0.05, 0.0), (120, 0.05, 0.0), (120, 0.2, 0.1)]
)
def test_intervals_of_shares_cover(num, lost, gained):
    """Every outcome with its probability: at least 93 %, where t covers as little as 78 %."""
    covered = 0.0
    for b in range(num + 1):
        for c in range(num + 1 - b):
            weight = stats.multinomial.pmf([b, c, num - b - c], num, [lost, gained, 1 - lost - gained])
            if weight > 1e-6:
                found = paired_binary(b, c, num)
                covered += weight * (found.low <= lost - gained <= found.high)
    assert covered > 0.93


def test_numbers_by_scipy_and_without_spread():
    draw = np.random.default_rng(0)
    half, second = draw.normal(size=6), draw.normal(size=12)
    first = second + 0.4 + np.concatenate([half, -half])  # symmetric: no skewness to take out
    found, expected = paired_difference(first, second), stats.ttest_rel(first, second)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == tuple(pytest.approx(end) for end in expected.confidence_interval(0.95))
    for values in (np.full(7, 0.1), np.zeros(7), np.array([0.3])):
        same = paired_t(values)
        assert (same.value, same.p) == (pytest.approx(values[0]), 1.0) and math.isnan(same.low)
        assert math.isnan(same.detectable) and not same.is_positive and not same.is_negative


@pytest.mark.parametrize("sign", [1, -1])
def test_a_skewed_difference_reaches_further_to_the_side_that_is_not_seen(sign):
    """35 items gain 0.1, one loses 1: t stops short of 0, and the next sample may have two of those."""
    values = sign * np.append(np.full(35, 0.1) + 1e-3 * np.random.default_rng(0).normal(size=35), -1.0)
    found, plain = paired_t(values), stats.ttest_1samp(values, 0)
    ends = plain.confidence_interval(0.95)
    assert (sign * found.value > 0) and plain.pvalue < 0.05
    assert found.low <= ends.low + 1e-12 and found.high >= ends.high - 1e-12
    assert found.p > 0.05 and not found.is_positive and not found.is_negative
    shorter, longer = sorted([found.value - found.low, found.high - found.value])
    assert (longer == found.value - found.low) == (sign == 1) and longer > 1.3 * shorter


def test_the_interval_and_p_agree_about_0():
    draw = np.random.default_rng(2)
    for _ in range(200):
        values = 0.5 - draw.lognormal(sigma=0.8, size=25) * draw.choice([1, 0.4, -0.4])
        found = paired_t(values)
        assert (found.p < 0.05) == (found.is_positive or found.is_negative)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


# ---- groups --------------------------------------------------------------------------------------------


def test_dyads_by_the_double_sum():
    draw = np.random.default_rng(0)
    names = [tuple(draw.choice(list("abcdefgh"), 2, replace=False)) for _ in range(25)] + [("a",), ("x",), ()]
    rows = draw.normal(size=(2, 28))
    groups = Groups(tuple(names))
    shares = np.array([[bool(set(a) & set(b)) or i == j for j, b in enumerate(names)] for i, a in enumerate(names)])
    centred = rows - rows.mean(1, keepdims=True)
    factor, freedom = groups.small
    expected = factor * centred @ shares @ centred.T / 28**2
    order = [*sorted({name for own in names for name in own}), ""]  # the one without a group is one of its own
    members = np.array([[name in (own or ("",)) for own in names] for name in order], dtype=float)
    flat = np.eye(28) - 1 / 28
    form = members @ flat @ shares @ flat @ members.T
    assert factor == pytest.approx((members.sum(1) ** 2).sum() / np.trace(form))
    assert freedom == pytest.approx(np.trace(form) ** 2 / (form**2).sum())
    np.testing.assert_allclose(groups.covariance(centred), expected, rtol=1e-10)


def test_one_group_each_is_a_mean_of_groups():
    values = np.repeat([1.0, 2.0, 6.0], 4)
    groups = as_groups([(name,) for name in "aaaabbbbcccc"])
    assert groups is not None and groups.freedom == pytest.approx(2)
    assert mean_error(values, groups) == pytest.approx(stats.sem([1, 2, 6]))
    assert freedom_of(12, groups) == pytest.approx(2) and freedom_of(12) == 11
    assert as_groups([("a",), ("b",), ()]) is None and as_groups(None) is None


def test_groups_never_make_a_figure_surer():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(3, 40))
    values[0] = np.tile([1.0, -1.0], 20)  # within each group they cancel
    groups = as_groups([(str(i // 2),) for i in range(40)])
    assert (np.diag(mean_covariance(values, groups)) >= np.diag(mean_covariance(values)) * (1 - 1e-12)).all()


# ---- linearised ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("linear", "which"), [(linear_auroc, 0), (linear_auprc, 1)])
def test_intervals_of_differences_of_areas_cover(linear, which):
    """60 items of which 12 are 1: the interval of the difference of two rankings has the true one in it."""
    rng = np.random.default_rng(0)

    def draw(num):
        label = (np.arange(num) < num / 5).astype(int)
        one, other = label + rng.normal(size=num), 1.4 * label + rng.normal(size=num)
        return label, one, 0.6 * one + 0.8 * other

    label, one, other = draw(50_000)
    true = float(areas(label, other)[which][0] - areas(label, one)[which][0])
    covered = 0
    for _ in range(400):
        label, one, other = draw(60)
        found = paired_difference(linear(label, other), linear(label, one))  # the drop from the first to the second
        covered += found.low <= true <= found.high
    assert 0.91 <= covered / 400 <= 0.98  # Monte Carlo error 0.011


def test_influence_by_difference():
    draw = np.random.default_rng(0)
    label, score = draw.integers(0, 2, 60), np.round(draw.normal(size=60), 1)
    weights = np.ones((60, 60)) + 1e-6 * np.eye(60)
    for which, linear in enumerate((linear_auroc, linear_auprc)):
        value = areas(label, score)[which][0]
        slope = (areas(label, score, weights)[which] - value) / 1e-6
        np.testing.assert_allclose(linear(label, score), value + 60 * slope, atol=1e-4)
        assert linear(label, score).mean() == pytest.approx(value, rel=1e-12)
        with pytest.raises(BadInput, match="of both kinds"):
            linear(np.ones(3), np.arange(3))
