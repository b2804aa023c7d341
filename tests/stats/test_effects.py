"""Effects of settings with the others averaged out: by hand, against a plain regression, and where trials cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from bft_ray.stats.effects import effects


def test_a_balanced_design_gives_plain_means():
    """2 x 3 cells, each twice: marginal means are the means of the cells, and the interval is that of the residuals."""
    a, b = ["x"] * 6 + ["y"] * 6, [64, 64, 128, 128, 256, 256] * 2
    y = [
        0.3 + 0.1 * (one == "y") + 0.02 * (two == 128) + e for one, two, e in zip(a, b, [0.01, -0.01] * 6, strict=True)
    ]
    found = effects(y, {"method": a, "window": b})
    method = {level.at: level for level in found["method"].levels}
    assert method["x"].mean == pytest.approx(np.mean(y[:6])) and method["y"].mean == pytest.approx(np.mean(y[6:]))
    freedom, rss = 12 - 4, 12 * 1e-4
    reach = stats.t.isf(0.025, freedom) * math.sqrt(rss / freedom / 6)
    assert method["x"].high - method["x"].mean == pytest.approx(reach)
    assert [level.num_trials for level in found["window"].levels] == [4, 4, 4]
    f = (12 * 0.05**2) / (rss / freedom)  # one degree of freedom between the methods
    assert found["method"].share == pytest.approx((f - 1) / (f - 1 + 12))
    assert found["method"].p == pytest.approx(stats.f.sf(f, 1, freedom))


def test_others_are_averaged_out_where_trials_are_not_balanced():
    """Window 64 met the good method nine times of ten: its plain mean is better, its effect is none."""
    random = np.random.default_rng(0)
    window = [64] * 10 + [128] * 10
    method = ["good"] * 9 + ["bad"] + ["good"] + ["bad"] * 9
    y = [0.5 + 0.2 * (m == "good") + 0.005 * random.normal() for m in method]
    found = effects(y, {"window": window, "method": method})
    first, second = found["window"].levels
    assert np.mean(y[:10]) - np.mean(y[10:]) > 0.15
    assert abs(first.mean - second.mean) < 0.01 and first.low < second.mean < first.high
    assert found["method"].share > 0.9 and found["window"].low == 0.0


def test_a_setting_that_only_some_trials_have():
    """By hand: bft 0.4; inverse 0.5 with epsilon 0.05, 0.6 with 0.1. The method's means take its epsilons evenly."""
    method, epsilon = ["bft"] * 4 + ["inverse"] * 4, [None] * 4 + [0.05, 0.05, 0.1, 0.1]
    y = [0.4, 0.401, 0.399, 0.4, 0.5, 0.501, 0.6, 0.599]
    found = effects(y, {"method": method, "epsilon": epsilon})
    assert [level.mean for level in found["epsilon"].levels] == pytest.approx([0.5005, 0.5995])
    assert [level.mean for level in found["method"].levels] == pytest.approx([0.4, 0.55])


def test_the_interval_of_a_share_holds_the_truth_in_19_of_20_studies():
    """The true share is var(effects) / (var(effects) + noise), 0.01 / (0.01 + 0.04) = 0.2."""
    random, held = np.random.default_rng(1), 0
    window = [64, 128] * 30
    for _ in range(200):
        y = [0.1 * (1 if at == 64 else -1) + 0.2 * random.normal() for at in window]
        found = effects(y, {"window": window})["window"]
        held += found.low <= 0.2 <= found.high
    assert 183 <= held <= 198  # 190 +- 2.3 standard errors of 3.1


def test_what_trials_cannot_tell_is_not_a_number():
    y = [0.1, 0.2, 0.3, 0.4]
    both = effects(y, {"window": [1, 1, 2, 2], "rate": ["a", "a", "b", "b"]})  # always together
    assert all(math.isnan(level.mean) for effect in both.values() for level in effect.levels)
    assert math.isnan(both["window"].share)
    alone = effects(y, {"window": [1, 2, 3, 4]})["window"]  # no degree of freedom is left
    assert [level.mean for level in alone.levels] == pytest.approx(y) and math.isnan(alone.levels[0].low)
    assert effects(y, {"window": [1, 1, 1, 1]}) == {} and effects(y[:2], {"window": [1, 2]}) == {}
