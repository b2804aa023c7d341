"""From finished records to an answer: the arms, one look at the test split, and what is kept of the weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bft_ray.config import make_config
from bft_ray.errors import BftError
from bft_ray.search.answer import answer, as_json
from bft_ray.search.arms import arms_of
from bft_ray.search.record import TrialRecord
from bft_ray.search.store import BASELINES, SEARCH
from bft_ray.search.study import Study, trial_name
from tests.test_conductor import METRIC, Executor, make_study


def record(part: str, number: int, value: float | None, *, key: str = "", name: str = "", **extra) -> TrialRecord:
    state = "failed" if value is None else "complete"
    return TrialRecord(
        part, number, {"n": number}, key=key or f"{part} {number}", state=state, value=value,
        name=name or f"trial {number}", extra=extra, reason="" if value is not None else "not finite",
    )  # fmt: skip


def baseline_records() -> list[TrialRecord]:
    values = [("sft", 0.3), ("sft", 0.4), ("dft", None), ("dft", None), ("bft", 0.5), ("bft", 0.45)]
    return [record(BASELINES, n, value, key=f"b{n}", baseline=name) for n, (name, value) in enumerate(values)]


def test_arms_are_the_best_trials_and_the_tuned_baselines(tmp_path):
    space = make_study(tmp_path).space
    search = [
        record(SEARCH, 0, 0.6, name="w64"),
        record(SEARCH, 1, None),
        record(SEARCH, 2, 0.7, name="w64"),
        record(SEARCH, 3, 0.9, key="b4"),  # the run of the tuned default
        replace(record(SEARCH, 4, 0.1), state="pruned", value=None),
        record(SEARCH, 5, 0.65, key="search 2"),  # an equal of trial 2
    ]
    arms = arms_of(space, baseline_records(), search)
    # dft has failed and is left out; of the equals one stands; names differ
    assert [(arm.name, arm.trial.id) for arm in arms] == [
        ("sft", "baselines/1"),
        ("bft", "baselines/4"),
        ("w64", "search/2"),
        ("w64 (0)", "search/0"),
    ]
    without = [one for one in baseline_records() if one.extra["baseline"] != "bft"]
    broken = [record(BASELINES, 4, None, baseline="bft")]
    with pytest.raises(BftError, match=r"the baseline bft has no complete trial \(not finite\)"):
        arms_of(space, without + broken, search)


@pytest.mark.parametrize(
    ("assignment", "first", "name"),
    [
        (
            {"optimizer.learning_rate": 1e-3, "loss.window": 128, "loss.epsilon": 0.05, "loss.weight_cap": 8.0},
            "",
            "w128 e0.05 c8 lr0.001",
        ),
        ({"loss.method": "bft_inverse", "loss.window": 64}, "", "bft_inverse w64"),
        ({"optimizer.learning_rate": 3e-4}, "sft", "sft lr0.0003"),
        ({"lora.rank": 8, "loss.weight_cap": None}, "", "cnone rank=8"),
        ({}, "", "as configured"),
    ],
)
def test_trials_are_named_by_their_settings(assignment, first, name):
    assert trial_name(assignment, first) == name


def test_the_test_split_is_looked_at_once(make_tree, tiny_data, tmp_path):
    """A real evaluation of the champion's and the default's weights; a second answer is read from the records."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    study, executor = _finished(make_tree, tiny_data, tmp_path)
    for weights in (tmp_path / "study").glob("confirmation/*/weights-101"):  # the executor leaves empty folders
        source = make_tree()["model"]["path"]
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(weights)
        AutoTokenizer.from_pretrained(source).save_pretrained(weights)
    conductor = executor.conductor
    lines: list[str] = []
    found = answer(study, conductor.parts, lines.append)
    assert found.choice is not None and found.champion is not None and found.test is not None
    assert found.test.metric == METRIC and found.test.num_items == 6
    assert (found.test.gain, found.test.low, found.test.high) == (0.0, 0.0, 0.0)  # the same weights
    assert sorted(lines) == sorted({"test: bft", f"test: {found.champion.name}"})
    kept = list((tmp_path / "study").glob("confirmation/*/weights-*"))
    assert len(kept) == 2 and Path(found.weights or "") in kept
    for one in kept:  # what was measured stands, even when the weights are gone
        (one / "model.safetensors").unlink()
    again = answer(study, conductor.parts, lines.append)
    assert json.dumps(as_json(again)) == json.dumps(as_json(found)) and len(lines) == 2


def _finished(make_tree, tiny_data, tmp_path) -> tuple[Study, Executor]:
    """A study of the tiny model whose trials were only pretended."""
    choices = [{"kind": "choice", "path": "starter:gene_interaction/choices_validation", "limit": 6}]
    base = make_tree(evaluation={"tasks": choices, "batch_tokens": 512})
    base["data"]["validation"], base["checkpoint"] = [], {"export": "last", "keep": 2}
    del base["name"]
    more = {
        "confirmation": {
            "top_k": 1,
            "overrides": {"evaluation.tasks.0.path": "starter:gene_interaction/choices_confirmation"},
            "test": {"evaluation.tasks.0.path": "starter:gene_interaction/choices_test"},
        }
    }
    study = replace(make_study(tmp_path, **more), base=make_config(base))
    executor = Executor(study, f"sqlite:///{tmp_path}/study.db")
    assert executor.run()
    return study, executor
