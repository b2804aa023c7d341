"""Where a setting does best: by hand, with a true peak, without one, with one that moves, and what is said of each."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bft_ray.space.series import Peak
from bft_ray.study.confirm.choice import Plan, Record
from bft_ray.study.confirm.combine import Confirmed
from bft_ray.study.confirm.peak import peak_of
from bft_ray.study.report.peaks import peak_parts, peak_sentences

SEEDS = (1, 2, 3, 4, 5)
ARMS = {"w8": 8.0, "w32": 32.0, "w64": 64.0, "w128": 128.0, "bft": 256.0}
PEAK = Peak(setting="window", arms=ARMS, over="length")
STILL = Peak(setting="window", arms=ARMS)


def condition(best: float, curvature: float, noise: float, seed: int, *, items: str = "", **at: float) -> Confirmed:
    """Scores 0.5 - curvature (log2 window - log2 best)^2, each arm, seed and item with noise of its own; the difficulty
    of an item is the same in all arms.
    """
    draw, common = np.random.default_rng(seed), np.random.default_rng(0).uniform(-0.2, 0.2, 60)
    runs = []
    for name, window in ARMS.items():
        height = 0.5 - curvature * (math.log2(window) - math.log2(best)) ** 2
        for run in SEEDS:
            values = common + height + noise * draw.normal(size=60)
            runs.append(Record(name, run, {f"{items}{i}": float(v) for i, v in enumerate(values)}))
    return Confirmed(at, Plan("choices/probability", (), tuple(ARMS), "bft", SEEDS), runs)


def test_the_peak_of_an_exact_parabola():
    """Without noise the fit is the truth: best window 40 at length 50 and 80 at length 100 moves one doubling per doubling."""
    found = peak_of(
        PEAK, {"a": condition(40, 0.01, 0.0, 0, length=50), "b": condition(80, 0.01, 0.0, 0, length=100)}, 0.05
    )
    assert found.best["a"].value == pytest.approx(40) and found.best["b"].value == pytest.approx(80)
    assert found.move.value == pytest.approx(1)
    assert found.best["a"].shown[32.0] == pytest.approx(max(found.best["a"].shown.values()))
    for window, score in found.best["b"].shown.items():
        assert found.best["b"].curve[min(found.best["b"].curve, key=lambda u: abs(u - window))] == pytest.approx(
            score, abs=1e-9
        )


@pytest.mark.parametrize("items", ["same", "other"])
def test_a_peak_beyond_noise_is_inside_its_interval(items):
    conditions = {
        name: condition(best, 0.02, 0.05, place, items=name if items == "other" else "", length=length)
        for place, (name, best, length) in enumerate((("a", 30, 40), ("b", 60, 80), ("c", 90, 120)))
    }
    found = peak_of(PEAK, conditions, 0.05)
    for name, best in (("a", 30), ("b", 60), ("c", 90)):
        one = found.best[name]
        assert one.is_told and one.low <= best <= one.high and one.high / one.low < 8, one
    assert found.move.verdict == "grows" and found.move.low < 1 < found.move.high
    text = " ".join(peak_sentences(found))
    assert "the best window is" in text and "**The best window grows with length**: by a factor of" in text
    heading, figure, table = peak_parts(found, "peak-0")
    assert heading == "**The best window**" and len(figure.marks) == 6 and len(table.rows) == 3


@pytest.mark.parametrize("noise", [0.01, 0.001])
def test_the_less_noise_the_narrower(noise):
    """Also where the interval is narrower than the places at which the test is inverted."""
    lengths = {"a": (30, 40), "b": (60, 80), "c": (90, 120)}
    conditions = {
        name: condition(best, 0.02, noise, place, length=length)
        for place, (name, (best, length)) in enumerate(lengths.items())
    }
    found = peak_of(PEAK, conditions, 0.05)
    assert found.move.verdict == "grows" and found.move.low <= 1 <= found.move.high <= found.move.low + 0.25
    for name, (best, _) in lengths.items():
        assert found.best[name].low <= best <= found.best[name].high < 1.4 * found.best[name].low


def test_a_curve_that_only_rises_or_falls():
    """The truth peaks far outside, at the side of a parabola that still bends: the best lies at an end of those tried, or beyond."""
    rises = peak_of(STILL, {"a": condition(1000, 0.01, 0.01, 1)}, 0.05)
    assert rises.move is None and rises.best["a"].low == rises.best["a"].high == 256
    assert "the best window is 256 or more in a" in " ".join(peak_sentences(rises))
    falls = peak_of(STILL, {"a": condition(2, 0.01, 0.01, 2)}, 0.05)
    assert "the best window is 8 or less in a" in " ".join(peak_sentences(falls))


def test_a_curve_with_a_dip_has_no_peak():
    dip = peak_of(STILL, {"a": condition(48, -0.02, 0.01, 1)}, 0.05)
    assert math.isnan(dip.best["a"].value)
    (text,) = peak_sentences(dip)
    assert text == "Which window is best cannot be told in a: the parabola has no peak."


def test_a_condition_with_two_settings_says_nothing():
    """The parabola of the others would tell its peak from two arms, or one."""
    own, other = condition(60, 0.02, 0.02, 1, length=50), condition(60, 0.02, 0.02, 2, length=100)
    two = Confirmed(other.at, other.plan, [one for one in other.records if one.name in ("w8", "bft")])
    found = peak_of(STILL, {"a": own, "b": two}, 0.05)
    assert set(found.best) == {"a"}


@pytest.mark.slow
def test_a_flat_curve_is_seldom_told():
    """60 series of windows that make no difference: a best window, or its movement, is told in at most 5 % (and three se)."""
    told = 0
    for number in range(60):
        conditions = {
            str(length): condition(64, 0.0, 0.1, 3000 * number + length, length=length) for length in (40, 60, 90)
        }
        found = peak_of(PEAK, conditions, 0.05)
        told += any(one.is_told for one in found.best.values()) or found.move.verdict != "cannot be told"
    assert told / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)


def test_flat_curves_say_so():
    flat = {str(length): condition(64, 0.0, 0.1, length, length=length) for length in (40, 60, 90)}
    text = " ".join(peak_sentences(peak_of(PEAK, flat, 0.05)))
    assert "Which window is best cannot be told in 40, 60, 90" in text
    assert "Whether the best window moves with length cannot be told: the parabola has no peak" in text
    bent = {str(length): condition(64, 0.002, 0.1, length, length=length) for length in (40, 60, 90)}
    text = " ".join(peak_sentences(peak_of(PEAK, bent, 0.05)))
    assert "Which window is best cannot be told in 40, 60, 90: no part of the curve rises or falls beyond noise" in text
    assert "moves with length cannot be told: no factor per doubling of length is excluded" in text


def test_settings_beyond_the_cap_are_one():
    """At a longest answer of 50, windows 64, 128 and 256 are the same run: the parabola sees them at 50."""
    capped = Peak(setting="window", arms=ARMS, capped_by="longest")
    own = condition(30, 0.02, 0.0, 0, longest=50)
    same = {name: next(r for r in own.records if r.name == "w64") for name in ("w64", "w128", "bft")}
    records = [Record(r.name, r.seed, same.get(r.name, r).items) for r in own.records]
    found = peak_of(capped, {"a": Confirmed(own.at, own.plan, records)}, 0.05)
    assert sorted(found.best["a"].shown) == pytest.approx([8, 32, 50])
    free = peak_of(STILL, {"a": Confirmed(own.at, own.plan, records)}, 0.05)
    assert sorted(free.best["a"].shown) == pytest.approx(sorted(ARMS.values()))


def test_too_little_to_lay_a_parabola_through():
    own = condition(64, 0.02, 0.05, 1, length=50)
    two = Confirmed(own.at, own.plan, [r for r in own.records if r.name in ("w8", "bft")])
    assert not peak_of(STILL, {"a": two}, 0.05).best
    one_place = peak_of(PEAK, {"a": own}, 0.05)  # nothing to move along
    assert not one_place.best and math.isnan(one_place.move.value)
    assert peak_sentences(one_place) == [
        "Which window is best cannot be told yet: too few arms and conditions have an answer."
    ]
    assert peak_parts(one_place, "peak-0") == []
    assert not peak_of(PEAK, {}, 0.05).best
