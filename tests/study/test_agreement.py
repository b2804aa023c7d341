"""Rank agreement between rungs and the end: by hand, by scipy, and in the words of a report."""

from __future__ import annotations

import math

import pytest

from bft_ray.study.records.record import TrialRecord
from bft_ray.study.report.agreement import blind_rungs, by_rung, kendall
from jobs.bench.stopping import STEPS, asha, half, none, pasha, read, replay


def test_tau_by_hand():
    """Of 5 trials one pair of 10 is the other way round: (9 - 1) / 10; atanh(0.8) -+ 1.96 sqrt(0.437)."""
    found = kendall([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert found is not None and found.tau == pytest.approx(0.8) and found.num_trials == 5
    reach = 1.959964 * math.sqrt(0.437)
    assert found.low == pytest.approx(math.tanh(math.atanh(0.8) - reach))
    assert found.high == pytest.approx(math.tanh(math.atanh(0.8) + reach))
    assert kendall([1, 2, 3, 4], [1, 2, 3, 4]) is None and kendall([1] * 5, [1, 2, 3, 4, 5]) is None


def trials(rungs, ends, **more):
    return [
        TrialRecord("search", n, {}, state="complete", rungs={4: {0: at}}, value=end, **more)
        for n, (at, end) in enumerate(zip(rungs, ends, strict=True))
    ]


def test_which_trials_count_and_which_way_is_better():
    done = trials([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    stopped = TrialRecord("search", 9, {}, state="pruned", rungs={4: {0: -9.0}})
    merged = TrialRecord("search", 8, {}, state="complete", duplicate_of="search/1", rungs={4: {0: 9.0}}, value=-9.0)
    same = by_rung([*done, stopped, merged], "choices/probability", "choices/accuracy")
    assert set(same) == {4} and same[4].tau == pytest.approx(0.8)
    turned = by_rung(done, "validation/nll", "choices/accuracy")
    assert turned[4].tau == pytest.approx(-0.8)
    assert by_rung(done[:4], "choices/accuracy", "choices/accuracy") == {}


def test_a_rung_at_which_all_trials_are_equal_is_blind():
    alike = trials([0.25, 0.25, 0.25], [0.25, 0.3, 0.2])
    assert blind_rungs(alike) == {4: 3}
    assert blind_rungs(alike[:1]) == {} and blind_rungs(trials([0.25, 0.26], [0.25, 0.3])) == {}
    duplicate = TrialRecord(
        "search", 8, {}, state="complete", duplicate_of="search/0", rungs={4: {0: 0.25}}, value=0.25
    )
    assert blind_rungs([alike[0], duplicate]) == {}  # one run, twice


def curve(*values):
    return dict(zip((4, 12, 36, STEPS), values, strict=True))


def test_rules_by_hand():
    """Three trials: the best at the end comes last and stands second at every rung: asha stops it at the first one, for
    of 3 trials 1 goes on; the better half (2 of 3) keeps it.
    """
    some = [curve(3.0, 3.0, 3.0, 3.0), curve(1.0, 1.0, 1.0, 1.0), curve(2.0, 2.0, 2.0, 4.0)]
    assert none(some) == (3 * STEPS, 2)
    assert asha(some) == (STEPS + 4 + 4, 0)
    assert half(some, 12) == (3 * 12 + 2 * (STEPS - 12), 2)
    assert pasha(some) == (12 + 4 + 4, 0)  # never more than one trial at the second rung: no order to disagree with
    found = replay(some, asha, 3, 50)
    assert found["regret"] == pytest.approx(found["lost"]) and 0 < found["lost"] < 1


def test_curves_are_read_a_line_a_trial(tmp_path):
    path = tmp_path / "curves.jsonl"
    assert read(path) == {}
    path.write_text(
        '{"trial": 0, "status": "complete", "curve": {"4": 0.1, "60": 0.2}}\n{"trial": 1, "status": "failed", "curve": {"4": 1}}\n'
    )
    assert read(path) == {0: {4: 0.1, 60: 0.2}, 1: {}}
