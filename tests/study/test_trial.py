"""A trial in this process: what it measures and when, how it ends, pauses and goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bft_ray.config import make_config
from tests.support.alone import run_alone
from tests.support.ranks import run_ranks
from tests.support.trials import CHOICES, steps_of


def trial(tree: dict, rungs: list[int], stop_at: int | None = None, **options: Any) -> tuple[Any, list[Any]]:
    """The result of a trial, and what it reported."""
    import torch

    from bft_ray.study.execute.warm import Warm
    from jobs.bench.one_trial import run_trial

    told: list[Any] = []

    def report(step: int, metrics: dict[str, float]) -> bool:
        told.append((step, metrics))
        return step != stop_at

    return run_trial(make_config(tree), rungs, report, Warm(torch.device("cpu")), **options), told


def trial_and_run(tree: dict, folder: str) -> tuple[Any, dict]:
    return trial(tree, [2, 4], keep=f"{folder}/kept")[0], run_alone(tree, f"{folder}/run")


@pytest.mark.slow
def test_a_trial_is_a_run_of_the_loop(make_tree, tmp_path):
    """The same losses and weights as `fit`, bit for bit; and it measures what the evaluation of its weights does."""
    import torch
    from safetensors.torch import load_file

    from bft_ray.evaluate.run import evaluate_model

    tree = make_tree(evaluation={"every_steps": 2, "tasks": [CHOICES]}, loss={"method": "bft_inverse", "window": 8})
    [(result, run)] = run_ranks(trial_and_run, 1, tree, str(tmp_path))
    looped = [values for event, values in run["events"] if event == "step"]
    assert len(looped) == 6 == result.num_steps
    for mine, own in zip(steps_of(result), looped, strict=True):
        assert mine == {name: own[name] for name in mine}
    kept = load_file(tmp_path / "kept" / "model.safetensors")
    assert kept.keys() <= run["weights"].keys() and len(kept) > 10
    for name, value in kept.items():
        assert torch.equal(value, torch.from_numpy(run["weights"][name])), name

    validated = {values["step"]: values for event, values in run["events"] if event == "validation"}
    for step in (2, 4, 6):
        assert result.metrics[step]["validation/nll"] == pytest.approx(validated[step]["validation/nll"], rel=1e-5)
    tree["model"]["path"] = str(tmp_path / "kept")
    evaluated = evaluate_model(make_config(tree))
    assert result.metrics[6] == pytest.approx(evaluated.metrics, rel=1e-4)
    assert [(r["set"], r["id"]) for r in result.records] == [(r["set"], r["id"]) for r in evaluated.records]


@dataclass(frozen=True)
class Paused:
    """A trial in three parts, beside the same one in one."""

    parts: list[Any]
    whole: Any
    left: list[str]  # in the folder of states
    damaged: Any  # up to step 4, from a state that was damaged


def paused_and_resumed(tree: dict, folder: str) -> Paused:
    pause = Path(folder) / "state"
    parts = [trial(tree, [0, 2, 4], until=stop, pause=str(pause))[0] for stop in (2, 4, None)]
    left = [str(path.relative_to(folder)) for path in Path(folder).glob("*/*")]
    (state,) = pause.glob("*/engine/*.safetensors")
    state.write_bytes(state.read_bytes()[:-1] + b"!")
    damaged = trial(tree, [4], until=4, pause=str(pause))[0]
    return Paused(parts, trial(tree, [0, 2, 4])[0], left, damaged)


@pytest.fixture(scope="module", params=[("zero1", {"rank": 2}), ("zero0", None)], ids=["zero1-lora", "zero0"])
def paused(request, tree_in, tmp_path_factory) -> Paused:
    folder = tmp_path_factory.mktemp("paused")
    preset, lora = request.param
    tree = tree_in(folder, deepspeed={"preset": preset}, lora=lora)
    (folder / "pause").mkdir()
    return run_ranks(paused_and_resumed, 1, tree, str(folder / "pause"))[0]


@pytest.mark.slow
def test_a_trial_pauses_where_it_is_told_to(paused):
    assert [(part.status, part.num_steps) for part in paused.parts] == [("paused", 2), ("paused", 4), ("complete", 6)]
    assert [list(part.metrics) for part in paused.parts] == [[0, 2], [0, 2, 4], [0, 2, 4, 6]]


@pytest.mark.slow
def test_a_paused_trial_goes_on_as_if_nothing_had_been(paused):
    third = paused.parts[-1]
    assert steps_of(third) == steps_of(paused.whole)
    assert third.metrics == paused.whole.metrics
    assert third.records == paused.whole.records


@pytest.mark.slow
def test_only_the_last_state_of_a_paused_trial_stays(paused):
    assert paused.left == ["state/step-00000004"]


@pytest.mark.slow
def test_a_trial_whose_state_is_damaged_begins_anew(paused):
    assert paused.damaged.status == "paused" and steps_of(paused.damaged) == steps_of(paused.whole)[:4]


@dataclass(frozen=True)
class Ends:
    """Trials of one config that end in four ways; `told` is what the whole one reported."""

    whole: Any
    told: list[Any]
    pruned: Any  # stopped at step 4
    late: Any  # stopped at its end
    failed: Any  # its learning rate is absurd
    reported: list[Any]  # by the failed one


def several_ends(tree: dict) -> Ends:
    wild = tree | {"optimizer": {"learning_rate": 1e30, "max_grad_norm": None}}
    whole, told = trial(tree, [0, 2, 4], at_rungs=["choices"])
    pruned, _ = trial(tree, [2, 4], stop_at=4)
    late, _ = trial(tree, [2], stop_at=6)
    failed, reported = trial(wild, [1])
    return Ends(whole, told, pruned, late, failed, reported)


@pytest.fixture(scope="module")
def ends(tree_in, tmp_path_factory) -> Ends:
    tree = tree_in(tmp_path_factory.mktemp("ends"), evaluation={"tasks": [CHOICES]}, lora={"rank": 2})
    return run_ranks(several_ends, 1, tree)[0]


@pytest.mark.slow
def test_a_trial_that_nobody_stops_is_complete(ends):
    whole = ends.whole
    assert (whole.status, whole.reason, whole.num_steps, list(whole.metrics)) == ("complete", "", 6, [0, 2, 4, 6])
    assert ends.told == list(whole.metrics.items()) and len(whole.records) == 12 + 6
    assert set(whole.seconds) == {"start", "train", "measure", "report", "end"} and min(whole.seconds.values()) >= 0


@pytest.mark.slow
def test_only_what_rungs_ask_for_is_measured_at_them(ends):
    at_rung, at_end = ends.whole.metrics[4], ends.whole.metrics[6]
    assert "validation/nll" not in at_rung and "choices/probability" in at_rung and "validation/nll" in at_end


@pytest.mark.slow
def test_a_pruned_trial_is_the_beginning_of_the_whole_one(ends):
    pruned = ends.pruned
    assert (pruned.status, pruned.num_steps, pruned.records) == ("pruned", 4, [])
    assert steps_of(pruned) == steps_of(ends.whole)[:4]
    assert pruned.metrics[4]["choices/probability"] == ends.whole.metrics[4]["choices/probability"]


@pytest.mark.slow
def test_at_its_end_there_is_nothing_to_stop(ends):
    assert ends.late.status == "complete" and ends.late.metrics[6] == ends.whole.metrics[6]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_fails_the_trial(ends):
    failed = ends.failed
    assert failed.status == "failed" and "not finite" in failed.reason and not failed.records
    assert failed.num_steps < 6 and 6 not in failed.metrics
    assert [step for step, _ in ends.reported] in ([], [1])
