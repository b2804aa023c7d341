"""Skewness: by hand, by published values, and as much of it as a sample hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bft_ray.stats.paired import paired_t
from bft_ray.stats.skewness import (
    bend,
    careful,
    l_skewness,
    needed_items,
    reaches,
    skewness,
    skewness_error,
    unbend,
    without_noise,
)


def test_l_skewness_by_hand_and_by_hosking():
    # 1 2 6: b0 3, b1 (2 + 2 x 6) / 2 / 3 = 7/3, b2 6/3 = 2: l2 = 5/3, l3 = 12 - 14 + 3 = 1
    assert l_skewness(np.array([[1.0, 2.0, 6.0]])) == pytest.approx([1 / (5 / 3)])
    even = (np.arange(4000) + 0.5) / 4000
    for inverse, expected in ((stats.expon.ppf, 1 / 3), (stats.norm.ppf, 0.0), (stats.lognorm(1).ppf, 0.4625)):
        assert l_skewness(inverse(even)[None]) == pytest.approx([expected], abs=3e-3)


def test_a_lognormal_is_known_by_its_bulk_and_by_its_tail():
    even = (np.arange(120) + 0.5) / 120
    right = stats.lognorm(1).ppf(even)
    assert stats.skew(right, bias=False) < 4.2  # of 6.18: what 120 values show
    assert skewness(right[None]) == pytest.approx([6.0], abs=0.3)
    assert skewness(-right[None]) == pytest.approx([-6.3], abs=0.3)
    assert skewness(np.ones((2, 5))).tolist() == [0, 0] and skewness(np.zeros((1, 2))).tolist() == [0]


def test_its_error_is_that_of_repetitions():
    draw = np.random.default_rng(0).normal(size=(400, 120))
    errors = [skewness_error(values) for values in draw]
    assert np.median(errors) == pytest.approx(skewness(draw).std(), rel=0.2)


def test_what_is_bent_can_be_unbent():
    for a in (-0.2, -0.05, 0.0, 0.3):
        assert float(unbend(bend(2.5, a), np.array(a))) == pytest.approx(2.5)
    assert bend(2.0, -0.1) == pytest.approx(2 - 0.1 * (4 / 3 + 1 / 6) + 0.01 * 8 / 27)
    assert careful(2.0, -0.1) == bend(2.0, -0.1) and careful(2.0, 0.1) == 2.0
    assert all(float(unbend(2.3, np.array(-a))) < 10 for a in np.linspace(0.01, 5, 200))  # CLEAR
    assert math.isclose(float(unbend(2.3, np.array(0.0))), 2.3)


def test_how_many_items_a_skewness_takes():
    assert needed_items(np.array([-3.0, -1.0, 0.0, 3.0])).tolist() == [111, 23, 0, 0]
    # a quarter of V is noise: (4 / 3)^1.5; of less than half nothing is known
    assert without_noise(-1.0, 4.0, 3.0) == pytest.approx(-((4 / 3) ** 1.5))
    assert without_noise(np.array([-1.0, -1.0]), np.array([4.0, 0.0]), np.array([1.0, 0.0])).tolist() == [-1, -1]


def test_an_interval_reaches_to_where_the_bent_t_is_critical():
    down, up = reaches(2.0, -0.2)
    assert bend(down, -0.2) == pytest.approx(2.0) and down > 2.3 and up == 2.0
    assert reaches(2.0, 0.2) == (up, pytest.approx(down)) and reaches(2.0, 0.0) == (2.0, 2.0)
    assert reaches(2.0, -5.0) == reaches(2.0, -0.4)


@pytest.mark.parametrize("gain", [-1e-3, 0.0, 1e-3])
def test_a_difference_that_skewness_takes_back_whole_has_a_p_of_one(gain):
    """Of items in the mirror too; p agrees with the interval, and is never above 1."""
    draw = np.random.default_rng(1)
    for _ in range(50):
        items = -np.exp(1.3 * draw.normal(size=30))
        items += gain - items.mean()
        for signed in (items, -items):
            found = paired_t(signed)
            assert 0 <= found.p <= 1 and (found.p < 0.05) == (found.low > 0 or found.high < 0)
