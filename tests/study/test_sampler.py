"""Suggestions as functions of records: each sampler, its determinism in any order, process and interruption."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.errors import BadInput
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import grid
from bft_ray.study.propose.halving import survivors
from bft_ray.study.propose.sampler import (
    WINDOW,
    batch_of,
    batch_size,
    draw_seed,
    is_ready,
    known,
    num_trials,
    propose,
)
from bft_ray.study.records.record import TrialRecord
from jobs.bench.store import score
from tests.support.records import METRIC
from tests.support.suggestions import NUMBERS, SPACES, make_space, ran, sequence


@pytest.mark.parametrize("kind", SPACES)
def test_suggestions_lie_in_the_space_and_repeat(kind):
    space = SPACES[kind]
    count = min(num_trials(space), 30)
    records = sequence(space, count)
    assert sequence(space, count) == records
    assert len({json.dumps(record.assignment) for record in records}) > 5
    shuffled = records[:-1]
    random.Random(1).shuffle(shuffled)
    assert propose(space, count - 1, shuffled) == records[-1].assignment
    # what is known of later trials, when and by whom a trial was run, does not matter
    others = [replace(r, started=5.0, finished=9.0, attempts=3, name="n", key="k") for r in records]
    assert propose(space, count - 1, others) == records[-1].assignment


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_small_space_is_not_drawn_from_twice(kind):
    """30 settings: 15 different ones, where draws of their own would repeat about three; and after them it ends too."""
    parameters = {
        "loss.window": {"kind": "categorical", "values": [8, 16, 32, 64, 128, 256]},
        "optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 2e-4, 3e-4, 1e-3, 3e-3]},
    }
    startup = {"startup_trials": 6} if kind == "tpe" else {}
    space = make_space(parameters=parameters, sampler={"kind": kind, **startup}, budget={"trials": 15, "steps": 24})
    assert len({json.dumps(record.assignment) for record in sequence(space, 15)}) == 15
    one = make_space(parameters={"loss.window": {"kind": "categorical", "values": [8]}}, sampler={"kind": "random"})
    assert [record.assignment for record in sequence(one, 3)] == [{"loss.window": 8}] * 3


def test_another_seed_draws_others():
    other = make_space(sampler={"kind": "tpe", "startup_trials": 6, "seed": 1})
    assert propose(SPACES["tpe"], 0, []) != propose(other, 0, [])
    assert draw_seed(SPACES["tpe"], 0) == 3757596540 and draw_seed(other, 0) != draw_seed(SPACES["tpe"], 1)


def test_a_grid_is_gone_through_once():
    space = SPACES["grid"]
    records = sequence(space, 6)
    assert num_trials(space) == 6
    key = lambda assignment: json.dumps(assignment, sort_keys=True)  # noqa: E731
    assert sorted(key(record.assignment) for record in records) == sorted(map(key, grid(space)))
    assert [record.assignment for record in records] != list(grid(space))
    assert propose(space, 6, records) is None
    assert {record.assignment.get("loss.epsilon") for record in records} == {None, 0.1, 0.2, 0.3, 0.4, 0.5}


def test_values_are_those_that_the_space_names():
    values = [True, 1, 0, "1", None]
    space = make_space(
        parameters={
            "data.packing": {"kind": "categorical", "values": values},
            "loss.gamma": {"kind": "float", "low": 0.1, "high": 0.7, "step": 0.1},
        },
        sampler={"kind": "random"},
    )
    drawn = [propose(space, number, []) for number in range(60)]
    assert {repr(each["data.packing"]) for each in drawn if each} == {repr(value) for value in values}
    assert {each["loss.gamma"] for each in drawn if each} == {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}
    ints = make_space(parameters=NUMBERS, sampler={"kind": "random"})
    assert all(type(each["loss.window"]) is int for n in range(9) if (each := propose(ints, n, [])))


def test_tpe_learns():
    """Its draws come near to gamma 1.5 (and bft_inverse): nearer than random draws do."""
    space = SPACES["tpe"].model_copy(update={"budget": SPACES["tpe"].budget.model_copy(update={"trials": 60})})

    def value(assignment) -> float:
        return 1 - abs(assignment["loss.gamma"] - 1.5) - 0.5 * (assignment.get("loss.method") == "bft")

    records: list[TrialRecord] = []
    for number in range(60):
        assignment = propose(space, number, records)
        assert assignment is not None
        records.append(ran(number, assignment, value=value(assignment)))
    first, last = (sum(record.value or 0 for record in part) / 15 for part in (records[:15], records[-15:]))
    assert last > first + 0.15
    assert last > 0.65


@pytest.mark.parametrize("state", ["failed", "pruned"])
def test_failed_trials_are_left_and_stopped_ones_count_by_their_rung(state):
    """Of two methods one always fails, or is always stopped early: it is drawn in less than a third, not in half."""
    drawn = []
    for seed in range(3):
        space = make_space(sampler={"kind": "tpe", "startup_trials": 6, "seed": seed})
        records: list[TrialRecord] = []
        for number in range(40):
            assignment = propose(space, number, records)
            assert assignment is not None
            if assignment["loss.method"] == "bft":
                records.append(ran(number, assignment, state, **({"r8": 0.9} if state == "pruned" else {})))
            else:
                records.append(ran(number, assignment, value=assignment["loss.gamma"]))
        drawn += [record.assignment["loss.method"] for record in records[20:]]
    assert drawn.count("bft") <= 20


def test_a_rung_metric_of_the_other_direction():
    """Among stopped trials the one with the lower NLL counts as the better."""
    space = make_space(
        scheduler={"kind": "asha", "grace_steps": 8, "metric": "validation/nll"},
        parameters={"loss.gamma": {"kind": "float", "low": 0.0, "high": 1.0}, "loss.epsilon": {"kind": "float", "low": 0.1, "high": 0.2}},
    )  # fmt: skip
    drawn = []
    for sign in (1, -1):
        records = [
            ran(n, {"loss.gamma": n / 40, "loss.epsilon": 0.1 + n / 400}, "pruned", r8=5 + sign * n / 40)
            for n in range(40)
        ]
        numbers = range(40, 50)
        more = [ran(n, {"loss.gamma": 0.5, "loss.epsilon": 0.15}, "failed") for n in numbers]
        drawn.append([propose(space, n, records + more[: n - 40])["loss.gamma"] for n in numbers])  # type: ignore[index]
    low, high = (sum(values) / len(values) for values in drawn)
    assert low < 0.4 and high > 0.6


def test_the_window_keeps_the_best_and_is_the_same_in_any_order():
    space = make_space(budget={"trials": 400, "steps": 24})
    draw = random.Random(0)
    records = [
        ran(
            n, {"loss.method": "bft", "loss.window": draw.choice([16, 64, 256]), "loss.gamma": 1.0}, value=draw.random()
        )
        for n in range(WINDOW + 100)
    ]
    assignment = propose(space, len(records), records)
    old = replace(records[5], value=0.99)  # the best of all, long ago
    assert propose(space, len(records), [*records[:5], replace(old, value=1e-9), *records[6:]]) is not None
    draw.shuffle(records)
    assert propose(space, len(records), records) == assignment


@pytest.mark.slow
def test_the_same_in_every_process():
    """Also where Python hashes text differently."""
    code = (
        "import json; from tests.support.suggestions import *;"
        "print(json.dumps([record.assignment for record in sequence(SPACES['tpe'], 24)]))"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    here = [record.assignment for record in sequence(SPACES["tpe"], 24)]
    assert [json.loads(other.communicate(timeout=360)[0]) for other in others] == [here, here]


# ---- deterministic: true ---------------------------------------------------------------------------------------------


def test_batches():
    assert batch_size(make_space()) == 9
    assert batch_size(make_space(scheduler={"kind": "asha", "grace_steps": 8, "reduction": 2})) == 8
    assert batch_size(make_space(scheduler={"kind": "asha", "grace_steps": 8, "reduction": 4})) == 16
    assert batch_size(make_space(scheduler={"kind": "none"})) == 8
    space = make_space(deterministic=True)
    records = sequence(space, 12)
    assert [record.number for record in batch_of(space, 4, records) or []] == list(range(9))
    assert batch_of(space, 10, records) is None
    assert [r.number for r in batch_of(space, 29, [ran(n, {}) for n in range(30)]) or []] == [27, 28, 29]


def test_only_batches_that_are_done_are_known():
    space = make_space(deterministic=True)
    records = sequence(space, 12)
    running = [*records[:8], ran(8, records[8].assignment, "running")]
    assert not is_ready(space, 9, running)
    with pytest.raises(BadInput, match="`trial` is 9, but must be proposed when the trials before 9 have finished"):
        propose(space, 9, running)
    with pytest.raises(BadInput, match="There are 8 records before it"):
        propose(space, 9, records[:8])
    assert is_ready(space, 8, records[:8]) and is_ready(make_space(), 9, running)
    seen = known(space, 11, records)
    assert [record.state for record in seen[9:]] == ["running", "running"]
    assert seen[:9] == records[:9]
    later = [*records[:9], *(ran(n, records[n].assignment, value=0.1) for n in (9, 10))]
    assert propose(space, 11, later) == propose(space, 11, records)


def disturbed(space: SearchSpace, draw: random.Random, slots: int, forget: float = 0.0) -> list[TrialRecord]:
    """A deterministic study whose trials go on in any order; with chance `forget` a killed driver's trials begin anew."""
    records: dict[int, TrialRecord] = {}
    rungs = space.scheduler.rungs(24)  # type: ignore[union-attr]

    def go_on(number: int) -> TrialRecord | None:
        """The trial after its next event; None while it must wait."""
        record = records[number]
        reached = record.last_rung
        if reached is not None:
            batch = batch_of(space, number, list(records.values()))
            on = None if batch is None else survivors(batch, rungs, reached[0], 3, METRIC)
            if on is None:
                return None
            if number not in on:
                return replace(record, state="pruned")
        step = next((rung for rung in rungs if reached is None or rung > reached[0]), 24)
        value = score(dict(record.assignment), 0, step)
        if math.isnan(value):
            return replace(record, state="failed")
        if step < 24:
            return replace(record, rungs={**record.rungs, step: {0: value}})
        return replace(record, state="complete", value=value)

    while len(records) < num_trials(space) or any(not record.is_finished for record in records.values()):
        if draw.random() < forget:  # what was not written to the end is run again, its rungs stand
            records = {n: replace(record, attempts=record.attempts + 1) for n, record in records.items()}
        moves = {n: moved for n, r in records.items() if not r.is_finished and (moved := go_on(n)) is not None}
        number = len(records)
        can_add = number < num_trials(space) and len(moves) < slots and is_ready(space, number, list(records.values()))
        if can_add and (not moves or draw.random() < 0.5):
            shuffled = list(records.values())
            draw.shuffle(shuffled)
            records[number] = TrialRecord("search", number, propose(space, number, shuffled) or {}, state="running")
        else:
            number = draw.choice(list(moves))
            records[number] = moves[number]
    return [replace(records[number], attempts=0) for number in sorted(records)]


@pytest.mark.slow
@settings(max_examples=6)
@given(st.randoms(use_true_random=False), st.integers(1, 9))
def test_a_deterministic_study_is_the_same_in_any_order(draw, slots):
    space = make_space(deterministic=True, budget={"trials": 24, "steps": 24})
    plain = disturbed(space, random.Random(0), 1)
    assert len({json.dumps(record.assignment) for record in plain}) > 15
    assert {record.state for record in plain} >= {"complete", "pruned"}
    assert disturbed(space, draw, slots, forget=0.2) == plain


def test_a_study_broken_off_at_each_point_goes_on_the_same():
    """From every number of finished batches and every number of proposals within a batch."""
    space = make_space(deterministic=True, budget={"trials": 24, "steps": 24})
    whole = disturbed(space, random.Random(3), 4)
    for number in range(24):
        first = number - number % 9
        left = [record if record.number < first else replace(record, state="running") for record in whole[:number]]
        assert propose(space, number, left) == whole[number].assignment
