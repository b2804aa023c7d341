"""What a study has come to, from records made by hand."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace

import pytest

from bft_ray.study.records import clock
from bft_ray.study.records.leaderboard import (
    as_markdown,
    as_text,
    counts,
    expected_s,
    metric_by,
    saved,
    status_text,
    table,
)
from bft_ray.study.records.ranking import best, ranked, tuned
from bft_ray.study.records.record import (
    TrialRecord,
    begun_segment,
    ended_segment,
    last_s,
    mean,
    trained_s,
    worker_hours,
)

METRIC = "choices/probability"


def trial(number, state="complete", value=None, window=64, runs=None, **more) -> TrialRecord:
    by_seed = {seed: {METRIC: run} for seed, run in enumerate(runs or ([value] if value is not None else []))}
    more.setdefault("num_steps", 24 if state == "complete" else 0)
    return TrialRecord(
        part="search",
        number=number,
        assignment={"loss.window": window, "optimizer.learning_rate": 1e-3},
        seeds=tuple(range(len(runs or [0]))),
        state=state,
        planned_steps=24,
        by_seed=by_seed,
        metrics={} if not by_seed else {METRIC: mean(run[METRIC] for run in by_seed.values())},
        value=None if state != "complete" else mean(run[METRIC] for run in by_seed.values()),
        **more,
    )


RECORDS = [
    trial(0, value=0.30, started=0.0, finished=10.0),
    trial(1, value=0.50, window=256, started=0.0, finished=20.0),
    trial(2, "pruned", num_steps=8, rungs={8: {0: 0.20}}, started=10.0, finished=14.0),
    trial(3, value=0.50, window=512, duplicate_of="search/1", started=20.0, finished=20.0),
    trial(4, "failed", reason="choices/probability is nan (seed 0)", started=20.0, finished=26.0, num_steps=24),
    trial(5, "running", started=25.0),
    trial(6, "waiting"),
    trial(7, "pruned", num_steps=16, rungs={8: {0: 0.4}, 16: {0: 0.10}}, started=20.0, finished=30.0),
]


def test_order_best_and_counts():
    assert [record.number for record in ranked(RECORDS, METRIC)] == [1, 3, 0, 7, 2, 5, 6, 4]
    assert [record.number for record in ranked(RECORDS, "validation/nll")] == [0, 1, 3, 7, 2, 5, 6, 4]
    found = best(RECORDS, METRIC)
    assert found is not None and found.number == 1
    assert best(RECORDS[4:], METRIC) is None
    assert counts(RECORDS) == {"waiting": 1, "running": 1, "complete": 2, "pruned": 2, "failed": 1, "duplicate": 1}


def test_baselines_at_their_best():
    """A merged one counts: two baselines may be the same run."""
    records = [
        trial(0, value=0.1, extra={"baseline": "sft"}),
        trial(1, value=0.3, extra={"baseline": "sft"}),
        trial(2, value=0.4, extra={"baseline": "bft"}),
        trial(3, value=0.4, extra={"baseline": "twin"}, duplicate_of="search/2"),
        trial(4, "failed", extra={"baseline": "dft"}),
    ]
    assert [(name, record.number) for name, record in tuned(records, METRIC).items()] == [
        ("bft", 2),
        ("twin", 3),
        ("sft", 1),
    ]
    assert list(tuned(records, "validation/nll")) == ["sft", "bft", "twin"]


def test_steps_that_were_saved():
    """Trained 24 + 24 + 8 + 24 (failed) + 16; merged 24; stopped (24 - 8) + (24 - 16)."""
    found = saved(RECORDS)
    assert (found.trained, found.duplicates, found.pruned) == (96, 24, 24)
    assert (found.num_duplicates, found.num_pruned) == (1, 2)
    both = saved(
        [trial(0, "pruned", runs=[0.1, 0.2], num_steps=16), trial(1, "pruned", duplicate_of="search/0", num_steps=16)]
    )
    assert (both.trained, both.pruned, both.duplicates) == (16, 32, 16)


def test_metric_against_window():
    records = [trial(0, runs=[0.2, 0.4]), trial(1, runs=[0.3, 0.5]), trial(2, window=16, value=0.9), *RECORDS[4:]]
    small, large = metric_by(records, METRIC, "loss.window")
    assert (small.at, small.mean, small.num_runs) == (16, 0.9, 1)
    assert math.isnan(small.sd)
    assert (large.at, large.low, large.high, large.num_runs) == (64, 0.2, 0.5, 4)
    assert large.mean == pytest.approx(0.35)
    assert large.sd == pytest.approx(math.sqrt((0.15**2 + 0.05**2 + 0.05**2 + 0.15**2) / 3))
    assert metric_by(records, METRIC, "loss.gamma") == []


def test_the_table():
    rows = table(RECORDS, METRIC)
    assert rows[0] == ["place", "trial", "window", "learning_rate", METRIC, "steps", "status"]
    assert rows[1] == ["1", "1", "256", "0.001", "0.500", "24", "complete"]
    assert rows[2] == ["2", "3", "512", "0.001", "0.500", "24", "duplicate of 1"]
    assert rows[4] == ["", "7", "64", "0.001", "", "16", "pruned at 16: 0.100"]
    assert rows[8][-1] == "failed: choices/probability is nan (seed 0)"
    assert len(table(RECORDS, METRIC, limit=2)) == 3
    spread = table([trial(0, runs=[0.2, 0.4])], METRIC)
    assert spread[0][5] == "sd" and spread[1][4:6] == ["0.300", "0.14"]
    uncapped = table([trial(0, value=0.3, window=None)], METRIC)
    assert uncapped[1][2] == "none"
    lines = as_text(rows).splitlines()
    assert lines[1].split() == ["1", "1", "256", "0.001", "0.500", "24", "complete"]
    markdown = as_markdown([["a", "b"], ["1|2", "x\ny"]])
    assert markdown == "| a | b |\n| --- | --- |\n| 1\\|2 | x y |"


def test_expected_end():
    """Run trials took 10, 20, 4, 6 and 10 s: mean 10; 5 of 6 were run. Of 12, 4 are to come beside the running one."""
    assert expected_s(RECORDS, 12, now=30.0) == pytest.approx(5 * 5 / 6 * 10 + 5)
    assert expected_s(RECORDS, 8, now=100.0) == pytest.approx(1 * 5 / 6 * 10)
    assert expected_s(RECORDS[5:7], 12, now=30.0) is None
    assert expected_s(RECORDS, 12, now=30.0, slots=4) == pytest.approx((5 * 5 / 6 * 10 + 5) / 4)
    assert expected_s(RECORDS, 8, now=30.0, slots=4) == pytest.approx((5 / 6 * 10 + 5) / 2)  # only two are left


def test_status():
    lines = status_text(RECORDS, METRIC, 12, now=30.0, time_s=3700.0).splitlines()
    assert lines[0] == "trials   6 of 12 finished: 1 waiting, 1 running, 2 complete, 2 pruned, 1 failed, 1 duplicate"
    assert lines[1] == "steps    96 trained, 24 saved by duplicates, 24 by early stops"
    assert lines[2] == "time     1 h 01 min left of 1 h 01 min for starting trials"
    assert lines[3] == "end      expected in 47 s"
    assert lines[4] == "best     choices/probability 0.500: trial 1, loss.window=256 optimizer.learning_rate=0.001"
    assert lines[5] == "failed   trial 4: choices/probability is nan (seed 0)"
    assert status_text([], METRIC, 12, now=0.0).splitlines() == [
        "trials   0 of 12 finished",
        "steps    0 trained, 0 saved by duplicates, 0 by early stops",
    ]


def test_worker_hours_are_those_of_segments_and_of_old_records_those_since_the_last_start():
    ran = trial(
        0, state="running", started=100.0, extra={"worker_s": 7200.0, "since": {"0": [1000.0, 2], "1": [4600.0, 1]}}
    )
    assert worker_hours(ran, now=8200.0) == 2 + 4 + 1
    ended = trial(0, value=0.5, started=100.0, finished=8200.0, extra={"worker_s": 3600.0, "since": {}})
    assert worker_hours(ended, now=1e9, num_workers=4) == 1
    old = trial(0, value=0.5, started=100.0, finished=3700.0)
    assert (worker_hours(old, now=1e9, num_workers=4), worker_hours(old, now=1e9)) == (4, 1)
    assert worker_hours(trial(1, value=0.5, started=0.0, finished=9.0, duplicate_of="search/0"), now=9.0) == 0
    lines = status_text([ran], METRIC, 12, now=1.0, hours=(1.25, 8.0)).splitlines()
    assert lines[2] == "workers  1.25 of 8 worker-hours used by baselines and search"


def test_time_counts_once_and_not_while_the_study_lay_still():
    records = [
        trial(0, value=0.5, started=100.0, finished=110.0),
        trial(1, value=0.5, started=105.0, finished=120.0),  # at the same time
        trial(2, value=0.5, started=5000.0, finished=5010.0),  # the next day
        trial(3, value=0.5, started=0.0, finished=9000.0, duplicate_of="search/0"),
        trial(4, state="waiting", started=0.0),  # sent back when its driver died
        trial(5, state="running", started=5008.0),
    ]
    assert trained_s(records, now=5020.0) == 20 + 20
    assert trained_s([], now=1.0) == 0


def test_time_is_that_of_segments_and_not_the_difference_of_two_dates():
    """Dates an hour apart, of a system clock that was set anew; segments of 10 s each, of which 4 s are the same."""

    def ran(number: int, *segments: tuple[float, float], **more) -> TrialRecord:
        record = trial(number, state="running", started=100.0)
        for began, ended in segments:
            record = replace(record, extra={**record.extra, **begun_segment(record, 0, began, 2)})
            record = replace(record, extra={**record.extra, **ended_segment(record, 0, ended)})
        return replace(record, **more)

    first = ran(0, (100.0, 110.0), state="complete", finished=3710.0)
    second = ran(1, (106.0, 116.0), state="complete", finished=3716.0)
    paused = ran(2, (200.0, 210.0), (300.0, 310.0))  # waits at a rung
    waits = ran(3, (400.0, 410.0), state="waiting")  # released
    assert trained_s([first, second, paused, waits], now=5000.0) == 16 + 20 + 10
    assert worker_hours(first, now=5000.0) == 20 / 3600
    runs = replace(paused, extra={**paused.extra, **begun_segment(paused, 0, 500.0, 2)})
    assert trained_s([first, runs], now=507.0) == 10 + 20 + 7
    assert trained_s([first, runs], now=499.0) == 10 + 20  # of another machine, whose clock is behind
    back = replace(runs, extra={**runs.extra, **ended_segment(runs, 0, 499.0)})
    assert back.extra["ran"][-1] == [500.0, 500.0]
    assert last_s([first, runs]) == 500.0 and last_s([]) == 0.0 and last_s([first, second]) == 116.0


def test_the_clock_of_a_driver(monkeypatch):
    system, steady = [5000.0], [0.0]
    monkeypatch.setattr("time.time", lambda: system[0])
    monkeypatch.setattr("time.monotonic", lambda: steady[0])
    importlib.reload(clock)
    assert clock.now() == 5000.0
    system[0], steady[0] = 8600.0, 10.0  # an hour was jumped
    assert clock.now() == 5010.0
    clock.start_after(4000.0)
    assert clock.now() == 5010.0
    clock.start_after(9000.0)
    assert clock.now() == 9000.0
    steady[0] = 15.0
    assert clock.now() == 9005.0
    monkeypatch.undo()
    importlib.reload(clock)
