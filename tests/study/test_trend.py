"""Slopes of a gain over an axis: by hand, with a true slope, without one, and over conditions with other items."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from bft_ray.space.series import Contrast, Trend
from bft_ray.study.confirm.choice import Plan, Record
from bft_ray.study.confirm.combine import Confirmed
from bft_ray.study.confirm.trend import difference_of, slope_of

SEEDS = (1, 2, 3, 4, 5)
TREND = Trend(better="bft", than="sft", over="rows")
METRIC = "choices/probability"


def condition(gain: float, noise: float, seed: int, items: str = "", metric: str = METRIC, **at: float) -> Confirmed:
    """Two arms that differ by a gain; the difficulty of an item is the same under all conditions."""
    draw, common = np.random.default_rng(seed), np.random.default_rng(0).uniform(0.3, 0.7, 50)
    runs = []
    for name, shift in (("sft", 0.0), ("bft", gain)):
        for run in SEEDS:
            values = common + shift + noise * draw.normal(size=50)
            runs.append(Record(name, run, {f"{items}{i}": float(v) for i, v in enumerate(values)}))
    return Confirmed(at, Plan(metric, (), ("sft", "bft"), "bft", SEEDS), runs)


def test_the_slope_by_hand():
    """Gains 0.01, 0.03, 0.08 at 50, 100, 400 rows: log2 apart by 0, 1, 3, so z = (-4/3, -1/3, 5/3), and
    slope = (-4/3 0.01 - 1/3 0.03 + 5/3 0.08) / (16/9 + 1/9 + 25/9) = 0.11 / (14/3).
    """
    found = {str(rows): condition(gain, 0.0, 0, rows=rows) for gain, rows in ((0.01, 50), (0.03, 100), (0.08, 400))}
    slope = slope_of(TREND, found, 0.05)
    assert slope.value == pytest.approx(0.11 / (14 / 3)) and slope.num_conditions == 3
    assert math.isnan(slope.low) and slope.verdict == "cannot be told"  # without any noise there is none to judge by


def test_other_axes_are_blocks():
    """A gain that depends on passes alone has no slope over rows, however rows and passes are crossed."""
    found = {
        f"{rows}-{passes}": condition(0.1 * passes, 0.0, 0, rows=rows, passes=passes)
        for rows, passes in ((50, 1), (100, 1), (100, 4), (200, 4))
    }
    assert slope_of(TREND, found, 0.05).value == pytest.approx(0, abs=1e-12)
    alone = slope_of(Trend(better="bft", than="sft", over="passes"), found, 0.05)
    assert alone.num_conditions == 2 and alone.value == pytest.approx(0.15)  # at 100 rows: 0.3 over two doublings


def test_a_cap_is_no_axis():
    """The longest answer differs wherever the median does: it makes no block of its own."""
    found = {
        str(length): condition(0.1 * math.log2(length), 0.0, 0, length=length, longest=2 * length)
        for length in (32, 64)
    }
    over = Trend(better="bft", than="sft", over="length")
    assert slope_of(over, found, 0.05, {"longest"}).value == pytest.approx(0.1)
    assert math.isnan(slope_of(over, found, 0.05).value)


@pytest.mark.parametrize(("per_doubling", "verdict"), [(0.03, "grows"), (-0.03, "falls"), (0.0, "cannot be told")])
@pytest.mark.parametrize("items", ["same", "other"])
def test_a_slope_beyond_noise(per_doubling, verdict, items):
    found = {
        str(rows): condition(
            per_doubling * math.log2(rows), 0.05, rows, str(rows) if items == "other" else "", rows=rows
        )
        for rows in (50, 100, 200, 400)
    }
    slope = slope_of(TREND, found, 0.05)
    assert slope.verdict == verdict
    assert slope.low < per_doubling < slope.high


def test_lower_is_better_turns_it_round():
    found = {
        str(rows): condition(-0.02 * math.log2(rows), 0.01, rows, metric="validation/nll", rows=rows)
        for rows in (50, 200)
    }
    assert slope_of(TREND, found, 0.05).verdict == "grows"


@pytest.mark.slow
def test_a_true_slope_of_nothing_is_seldom_told():
    """300 series without a trend: at most 5 % with three standard errors of that share."""
    told = 0
    for number in range(300):
        found = {str(rows): condition(0.02, 0.1, 1000 * number + rows, rows=rows) for rows in (50, 100, 200)}
        told += slope_of(TREND, found, 0.05).verdict != "cannot be told"
    assert told / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_too_few_conditions_say_so():
    one = {"50": condition(0.1, 0.05, 1, rows=50)}
    slope = slope_of(TREND, one, 0.05)
    assert math.isnan(slope.value) and slope.verdict == "cannot be told"
    broken = condition(0.1, 0.05, 2, rows=100)
    failed = Confirmed(broken.at, broken.plan, [Record("bft", 1, failed="out of memory"), *broken.records[1:]])
    assert math.isnan(slope_of(TREND, one | {"100": failed}, 0.05).value)


def test_a_slope_in_another_metric():
    """Bits a byte of bft grow by 0.02 per doubling, those of sft stay: its gain falls, whatever the objective does."""
    metric, found = "general/bits_per_byte", {}
    for rows in (50, 100, 200):
        own = condition(0.1, 0.01, rows, rows=rows)
        draw = np.random.default_rng(rows)
        grows = {"sft": 0.0, "bft": 0.02 * math.log2(rows)}
        runs = [
            replace(one, others={metric: {f"t{i}": 1 + grows[one.name] + 0.01 * draw.normal() for i in range(30)}})
            for one in own.records
        ]
        found[str(rows)] = Confirmed(own.at, own.plan, runs)
    slope = slope_of(Trend(better="bft", than="sft", over="rows", metric=metric), found, 0.05)
    assert slope.verdict == "falls" and slope.low < -0.02 < slope.high
    assert slope_of(TREND, found, 0.05).verdict == "cannot be told"
    without = Trend(better="bft", than="sft", over="rows", metric="other/bits_per_byte")
    assert math.isnan(slope_of(without, found, 0.05).value)


BETWEEN = Contrast(better="bft", than="sft", of=["a", "b"], against=["c"])


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [((0.10, 0.06, 0.0), "larger"), ((0.0, 0.0, 0.1), "smaller"), ((0.05, 0.05, 0.05), "cannot be told")],
)
@pytest.mark.parametrize("items", ["same", "other"])
def test_gains_between_groups_of_conditions(gains, verdict, items):
    found = {
        name: condition(gain, 0.03, place, name if items == "other" else "")
        for place, (name, gain) in enumerate(zip("abc", gains, strict=True))
    }
    between = difference_of(BETWEEN, found, 0.05)
    assert between.verdict == verdict
    assert between.low < (gains[0] + gains[1]) / 2 - gains[2] < between.high
    assert math.isnan(difference_of(BETWEEN, {name: found[name] for name in "ab"}, 0.05).value)


def test_a_difference_by_hand():
    found = {name: condition(gain, 0.0, 0) for name, gain in (("a", 0.01), ("b", 0.05), ("c", 0.02))}
    between = difference_of(BETWEEN, found, 0.05)
    assert between.value == pytest.approx(0.01) and between.verdict == "cannot be told" and math.isnan(between.low)
