"""A trial in this process: what it measures and when, how it ends, pauses and goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from tests.support.alone import run_alone
from tests.support.ranks import run_ranks
from tests.support.trials import CHOICES, steps_of


def trial(tree: dict, rungs: list[int], stop_at: int | None = None, **options: Any) -> tuple[Any, list[Any]]:
    """The result of a trial, and what it reported."""
    import torch

    from bft_ray.study.execute.trial import run_trial
    from bft_ray.study.execute.warm import Warm

    told: list[Any] = []

    def report(step: int, metrics: dict[str, float]) -> bool:
        told.append((step, metrics))
        return step != stop_at

    return run_trial(make_config(tree), rungs, report, Warm(torch.device("cpu")), **options), told


def trial_and_run(tree: dict, folder: str) -> tuple[Any, dict]:
    return trial(tree, [2, 4], keep=Path(folder) / "kept")[0], run_alone(tree, f"{folder}/run")


def test_a_trial_is_a_run_of_the_loop(make_tree, tmp_path):
    """The same losses and weights as `fit`, bit for bit; and it measures what the evaluation of its weights does."""
    import torch
    from safetensors.torch import load_file

    from bft_ray.evaluate.run import evaluate_model

    tree = make_tree(evaluation={"every_steps": 2, "tasks": [CHOICES]}, loss={"method": "bft_inverse", "window": 8})
    ((result, run),) = run_ranks(trial_and_run, 1, tree, str(tmp_path))
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


def paused_and_resumed(trees: list[dict], folder: str) -> list[Any]:
    found = []
    for number, tree in enumerate(trees):
        pause = Path(folder) / str(number)
        parts = [trial(tree, [0, 2, 4], until=stop, pause=pause)[0] for stop in (2, 4, None)]
        (state,) = (pause / "engine").glob("*model_states.pt")
        state.write_bytes(state.read_bytes()[:-1] + b"!")
        damaged = trial(tree, [4], until=4, pause=pause)[0]
        found.append((parts, trial(tree, [0, 2, 4])[0], [path.name for path in pause.parent.iterdir()], damaged))
    return found


def test_a_paused_trial_goes_on_as_if_nothing_had_been(make_tree, tmp_path):
    trees = [
        make_tree(deepspeed={"preset": preset}, lora=lora) for preset, lora in (("zero1", {"rank": 2}), ("zero0", None))
    ]
    for (parts, whole, folders, damaged), name in zip(
        run_ranks(paused_and_resumed, 1, trees, str(tmp_path))[0], "01", strict=True
    ):
        assert [(part.status, part.num_steps) for part in parts] == [("paused", 2), ("paused", 4), ("complete", 6)]
        assert [list(part.metrics) for part in parts] == [[0, 2], [4], [6]]
        assert [step for part in parts for step in steps_of(part)] == steps_of(whole)
        assert parts[0].metrics | parts[1].metrics | parts[2].metrics == whole.metrics
        assert parts[2].records == whole.records and name in folders and f"{name}.part" not in folders
        assert (steps_of(damaged), damaged.status) == (steps_of(whole)[:4], "paused")  # it began anew


def several_ends(tree: dict) -> list[Any]:
    wild = tree | {"optimizer": {"learning_rate": 1e30, "max_grad_norm": None}}
    return [
        trial(tree, [0, 2, 4], at_rungs=["choices"]),
        trial(tree, [2, 4], stop_at=4),
        trial(tree, [2], stop_at=6),
        trial(wild, [1]),
    ]


def test_how_trials_end(make_tree):
    tree = make_tree(evaluation={"tasks": [CHOICES]}, lora={"rank": 2})
    ((whole, told), (pruned, _), (late, _), (failed, wild)) = run_ranks(several_ends, 1, tree)[0]
    assert (whole.status, whole.reason, whole.num_steps, list(whole.metrics)) == ("complete", "", 6, [0, 2, 4, 6])
    assert told == list(whole.metrics.items())
    assert "validation/nll" not in whole.metrics[4] and "choices/probability" in whole.metrics[4]
    assert "validation/nll" in whole.metrics[6] and len(whole.records) == 12 + 6
    assert set(whole.seconds) == {"start", "train", "measure", "report", "end"} and min(whole.seconds.values()) >= 0

    assert (pruned.status, pruned.num_steps, pruned.records) == ("pruned", 4, [])
    assert steps_of(pruned) == steps_of(whole)[:4]
    assert pruned.metrics[4]["choices/probability"] == whole.metrics[4]["choices/probability"]
    assert late.status == "complete" and late.metrics[6] == whole.metrics[6]  # at the end there is nothing to stop

    assert failed.status == "failed" and "not finite" in failed.reason and not failed.records
    assert failed.num_steps < 6 and 6 not in failed.metrics and [step for step, _ in wild] in ([], [1])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cluster": {"num_workers": 2}}, "cluster.num_workers"),
        ({"deepspeed": {"preset": "zero3"}}, "deepspeed.preset"),
    ],
)
def test_what_needs_other_machinery_is_refused(make_tree, change, field):
    with pytest.raises(BadInput, match=f"`{field}` is .* for a trial within one process"):
        trial(make_tree(**change), [])
