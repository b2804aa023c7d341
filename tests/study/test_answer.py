"""From finished records to an answer: the arms, one look at the test split, and what is kept of the weights."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bft_ray.config import make_config
from bft_ray.errors import BftError
from bft_ray.evaluate.run import evaluate_model
from bft_ray.space.assign import with_overrides
from bft_ray.study.answer import _measure, answer, as_json
from bft_ray.study.confirm.candidates import arms_of
from bft_ray.study.confirm.tested import on_test_split
from bft_ray.study.definition import Study, trial_name
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report.explain import explain
from tests.support.executor import METRIC, Executor, make_study


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
        (
            {
                "loss.anchor": 0.3,
                "loss.window": 64,
                "loss.sample_weight": "complement",
                "loss.token_power": 0.5,
                "loss.token_weight": "power",
            },
            "",
            "power a0.5 sample_weight=complement w64 anchor0.3",
        ),
        ({"loss.token_weight": "threshold", "loss.token_threshold": 0.05}, "", "threshold t0.05"),
        ({}, "", "as configured"),
    ],
)
def test_trials_are_named_by_their_settings(assignment, first, name):
    assert trial_name(assignment, first) == name


@pytest.mark.slow
def test_the_test_split_is_looked_at_once(make_tree, tiny_data, tmp_path):
    """A real evaluation of the champion's and the default's weights; a second answer is read from the records."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    study, executor = _finished(make_tree, tiny_data, tmp_path)
    for weights in (tmp_path / "study").glob("confirmation/*/weights-101"):  # the executor leaves empty folders
        source = make_tree()["model"]["path"]
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(weights)
        AutoTokenizer.from_pretrained(source).save_pretrained(weights)
    controller = executor.controller
    lines: list[str] = []
    found = answer(study, controller.parts, lines.append)
    assert found.choice is not None and found.champion is not None and found.test is not None
    assert found.test.metric == METRIC and found.test.num_items == 6
    assert found.test.gain == 0.0 and math.isnan(found.test.low)  # the same weights: no spread, so no interval
    assert sorted(lines) == sorted({"test: bft", f"test: {found.champion.name}"})
    kept = list((tmp_path / "study").glob("confirmation/*/weights-*"))
    assert len(kept) == 2 and Path(found.weights or "") in kept
    for one in kept:  # what was measured stands, even when the weights are gone
        (one / "model.safetensors").unlink()
    again = answer(study, controller.parts, lines.append)
    assert json.dumps(as_json(again)) == json.dumps(as_json(found)) and len(lines) == 2


SECOND = "kept/probability"


class WithSecond(Executor):
    """Also measures what the model may have forgotten: the inverse form forgets nearly all."""

    def walk(self, segment):
        kept = 0.01 if segment.tree["loss"]["method"] == "bft_inverse" else 0.9
        for reached in super().walk(segment):
            yield replace(
                reached, metrics={reached.num_steps: reached.last | {SECOND: kept + 1e-3 * (segment.seed % 5)}}
            )


@pytest.mark.slow
def test_a_second_objective_through_a_whole_study(make_tree, tiny_data, tmp_path):
    """The base model is measured once, on the confirmation split; what loses more than it may is not chosen."""
    second = {"metric": SECOND, "largest_loss": 0.05}
    kept = {"kind": "choice", "name": "kept", "path": "starter:gene_interaction/choices_validation", "limit": 5}
    more = {
        "objective": {"metric": METRIC, "second": second},
        "confirmation": {
            "top_k": 3,
            "overrides": {
                "evaluation.tasks.0.path": "starter:gene_interaction/choices_confirmation",
                "evaluation.tasks.1.path": "starter:gene_interaction/choices_test",
            },
        },
    }
    study, executor = _finished(make_tree, tiny_data, tmp_path, WithSecond, [kept], **more)
    lines: list[str] = []
    found = answer(study, executor.controller.parts, lines.append)
    assert found.choice is not None and lines == [f"{SECOND} of the base model"]
    limit = found.choice.plan.second
    assert limit is not None and limit.metric == SECOND and limit.largest_loss == 0.05
    own = with_overrides(study.base, more["confirmation"]["overrides"], "confirmation")
    assert limit.before == pytest.approx(evaluate_model(own, names=["kept"]).metrics[SECOND], abs=1e-6)
    assert executor.controller.parts[SEARCH].notes()["before"] == limit.before

    runs = executor.records("confirmation")
    for arm in found.choice.arms:
        values = [record.metrics[SECOND] for record in runs if record.extra["arm"] == arm.name]
        assert arm.second == pytest.approx(sum(values) / 5)
        losses = np.array([limit.before - value for value in values])
        bound = 2.131847 * losses.std(ddof=1) / math.sqrt(5)  # t(0.95) with 4 degrees
        if arm.kind == "default":  # gives way only beyond noise; the others must be shown to keep the limit
            assert arm.excluded == ("breaks the limit beyond noise" if losses.mean() - bound > 0.05 else "")
        else:
            assert arm.excluded == ("is not shown to keep the limit" if losses.mean() + bound > 0.05 else "")
    broken = [arm for arm in found.choice.arms if arm.excluded]
    assert broken and all("bft_inverse" in arm.name for arm in broken)
    assert found.champion is not None and "bft_inverse" not in found.champion.name
    assert found.choice.arms[0].excluded  # the best in the first objective
    again = answer(study, executor.controller.parts, lines.append)
    assert json.dumps(as_json(again)) == json.dumps(as_json(found)) and len(lines) == 1
    text = explain(found.choice)
    assert f"Second objective: {SECOND}" in text and f"- `{broken[0].name}`: is not shown to keep the limit" in text


def test_the_test_split_tells_what_it_could_have_shown():
    """Differences 1, 2, 3, 6 of four items: mean 3, sd sqrt(14/3); skewed to the right, which takes nothing from a gain."""
    own = {"metrics": {METRIC: 0.5}, "items": dict(zip("abcd", (1.0, 2.0, 3.0, 6.0), strict=True))}
    default = {"metrics": {METRIC: 0.4}, "items": dict.fromkeys("abcd", 0.0)}
    found = on_test_split(METRIC, "w64", {"w64": own, "bft": default})
    se = math.sqrt(14 / 3) / 2
    assert (found.gain, found.low) == (3.0, pytest.approx(3 - 3.182446 * se))
    draw = np.random.default_rng(0)  # studies like this one, each with an error of its own: 8 of 10 show it
    off, other = np.sqrt(draw.chisquare(3, (2, 400_000)) / 3)
    shown = (draw.standard_normal(400_000) + found.detectable / se * off) / other > 3.182446  # t(0.975) with 3 degrees
    assert shown.mean() == pytest.approx(0.8, abs=0.003)
    one = {name: {**each, "items": {"a": 1.0}} for name, each in (("w64", own), ("bft", default))}
    assert math.isnan(on_test_split(METRIC, "w64", one).detectable)


def test_weights_that_are_gone_are_told(make_tree, tmp_path):
    config = make_config(make_tree())
    with pytest.raises(BftError, match=r"the weights .*nowhere are gone"):
        _measure(config, str(tmp_path / "nowhere"))


def _finished(
    make_tree, tiny_data, tmp_path, kind: type[Executor] = Executor, tasks: list[dict] | None = None, **more
) -> tuple[Study, Executor]:
    """A study of the tiny model whose trials were only pretended."""
    choices = [{"kind": "choice", "path": "starter:gene_interaction/choices_validation", "limit": 6}, *(tasks or [])]
    base = make_tree(evaluation={"tasks": choices, "batch_tokens": 512})
    base["data"]["validation"], base["checkpoint"] = [], {"export": "last", "keep": 2}
    del base["name"]
    more = {
        "confirmation": {
            "top_k": 1,
            "overrides": {"evaluation.tasks.0.path": "starter:gene_interaction/choices_confirmation"},
            "test": {"evaluation.tasks.0.path": "starter:gene_interaction/choices_test"},
        }
    } | more
    study = replace(make_study(tmp_path, **more), base=make_config(base))
    executor = kind(study, f"sqlite:///{tmp_path}/study.db")
    assert executor.run()
    return study, executor
