"""GRPO after fine-tuning: what is said of made-up runs, the reward, resumption, and the smallest real study."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from bft_ray.cli import main
from bft_ray.data.rows import ChoiceRow
from bft_ray.errors import BadConfig, BadInput
from bft_ray.model.named import starter_folder
from bft_ray.operate.after_rl import run as run_module
from bft_ray.operate.after_rl.answer import sentences, told
from bft_ray.operate.after_rl.definition import WARM_UP, AfterRl, bundled, load_after_rl
from bft_ray.operate.after_rl.grpo import require_trl
from bft_ray.operate.after_rl.items import asked_of
from bft_ray.operate.after_rl.page import after_rl_page
from bft_ray.operate.after_rl.record import Run, read_run
from bft_ray.operate.after_rl.reward import reward_of
from bft_ray.operate.after_rl.run import EXPERIMENT, Ready, _refuse_other, prepare
from bft_ray.page.html import to_html
from bft_ray.tracking.server import connect

SEEDS = [101, 102, 103, 104, 105]


def study(**changes) -> AfterRl:
    tree = {
        "name": "s",
        "question": "Which improve?",
        "config": "starter",
        "arms": {"sft": {}, "bft": {}},
        "rows": {"held_out": [{"path": "x"}]},
        "claims": [{"better": "bft", "than": "sft"}],
    }
    return AfterRl.model_validate(tree | changes)


def runs(
    gains: dict[str, float], start: float = 0.5, num_items: int = 150, seeds=SEEDS, mixed: float = 0.5
) -> list[Run]:
    """Made-up runs: each item gains about so much, with noise of items and of seeds."""
    made = []
    for place, (arm, gain) in enumerate(gains.items()):
        for seed in seeds:
            random = np.random.default_rng([seed, place])
            before = random.binomial(4, 0.4, num_items) / 4
            after = np.clip(before + gain + random.normal(0, 0.05, num_items) + random.normal(0, 0.005), -9, 9)
            names = [f"i{k:03d}" for k in range(num_items)]
            own = [dict(zip(names, map(float, values), strict=True)) for values in (before, after)]
            made.append(Run(arm, seed, start, own[0], own[1], [0.4, 0.5], mixed))
    return made


def said(gains: dict[str, float], **changes) -> str:
    return " ".join(sentences(told(study(**changes), runs(gains))))


# ---- what is said --------------------------------------------------------------------------------------------------


def test_an_arm_that_improves_and_one_that_gets_worse():
    text = said({"sft": 0.1, "bft": -0.1})
    assert "**Of 2 arms, `sft` is shown to improve by GRPO.**" in text
    assert re.search(r"`bft` gets worse by GRPO: -0\.(09|10)\d\d \[", text)
    assert re.search(r"`sft` improves by GRPO: \+0\.(09|10)\d\d \[", text)
    assert re.search(r"`bft` improves less than `sft`: -0\.(19|20)\d\d \[", text)
    assert text.index("`bft` gets worse") < text.index("`sft` improves by")  # what is against the arms comes first


def test_both_improve_and_bft_more():
    text = said({"sft": 0.1, "bft": 0.2})
    assert "**Of 2 arms, `sft` and `bft` are shown to improve by GRPO.**" in text
    assert re.search(r"`bft` improves more than `sft`: \+0\.(09|10)\d\d \[", text)


def test_nothing_can_be_told_where_there_is_only_noise():
    text = said({"sft": 0.0, "bft": 0.0})
    assert "**Of 2 arms, none is shown to improve by GRPO.**" in text
    assert "Whether `bft` improves more than `sft` cannot be told: " in text and "would show in about 8 of 10" in text


def test_gain_and_interval_are_those_of_the_runs():
    made = runs({"sft": 0.1, "bft": 0.2})
    found = told(study(), made)
    gain = found.improved["sft"].gain
    own = [r for r in made if r.arm == "sft"]
    assert gain.gain == pytest.approx(np.mean([np.mean([r.after[i] - r.before[i] for i in r.before]) for r in own]))
    assert gain.alpha == pytest.approx(0.05 / 4) and gain.low < 0.1 < gain.high
    ends = {one.what: one.gain.gain for one in found.compared}
    more, higher = ends["`bft` improves more than `sft`"], ends["`bft` ends higher than `sft`"]
    assert more == pytest.approx(found.improved["bft"].gain.gain - gain.gain)
    starts = {arm: np.mean([list(r.before.values()) for r in made if r.arm == arm]) for arm in ("sft", "bft")}
    assert higher == pytest.approx(more + starts["bft"] - starts["sft"])


def test_an_arm_that_starts_out_of_range_is_named_and_not_judged():
    made = runs({"sft": 0.1, "bft": 0.1})
    made[-1] = Run("bft", 105, 0.02, made[-1].before)
    found = told(study(), made)
    text = " ".join(sentences(found))
    assert "Of 2 arms, `sft` is shown" in text
    assert "Whether `bft` improves by GRPO cannot be told (`bft` starts with a reward of 0.020 (seed 105)" in text
    assert found.improved["bft"].gain is None and all(one.gain is None for one in found.compared)


def test_runs_without_a_change_say_nothing():
    made = [Run(r.arm, r.seed, 0.5, r.before, r.before) for r in runs({"sft": 0.0, "bft": 0.0})]
    found = told(study(), made)
    assert found.improved["sft"].verdict == "cannot be told"
    assert "all items and seeds differ by +0" in " ".join(sentences(found))


def test_an_arm_whose_answers_are_all_alike_is_named():
    """A reward in range is not enough: a model that is sure, and right on half of the prompts, has no gradient."""
    made = [
        *runs({"sft": 0.1}),
        *(Run(r.arm, r.seed, 0.5, r.before, r.after, r.course, 0.05) for r in runs({"bft": 0.0})),
    ]
    text = " ".join(sentences(told(study(), made)))
    assert text.endswith("`bft` had little to learn from: only 5% of its prompts had answers that differ in reward.")
    assert "`sft` had little" not in text


def test_arms_that_start_no_better_than_a_constant_answer_are_named():
    """The made-up runs start with a reward of 0.4: above 0.3, not above 0.4; a constant answer that earns next to nothing is not told."""
    made = runs({"sft": 0.1, "bft": 0.1})
    guess = (
        "Always giving the most common answer would earn 0.400 on the held-out items, and `sft` and `bft` are not shown"
    )
    assert guess in " ".join(sentences(told(study(), made, constant=0.4)))
    for constant in (0.3, 0.05):
        assert "Always giving" not in " ".join(sentences(told(study(), made, constant=constant)))
    weak = [Run(r.arm, r.seed, 0.3, {i: v / 2 for i, v in r.before.items()}, r.after) for r in runs({"bft": 0.1})]
    text = " ".join(sentences(told(study(), [*runs({"sft": 0.1}), *weak], constant=0.3)))
    assert "on the held-out items, and `bft` is not shown to start above that" in text


def test_a_study_that_has_not_ended_says_so():
    found = told(study(), runs({"sft": 0.1, "bft": 0.1})[:7])
    text = " ".join(sentences(found))
    assert text.startswith("**Not finished**: 7 of 10 runs have ended.") and "`bft` has 3 of 5 runs to go" in text
    assert not found.is_whole
    assert "0 of 10 runs" in " ".join(sentences(told(study(), [])))


def test_the_page_has_the_numbers():
    found = told(study(), runs({"sft": 0.1, "bft": -0.1}))
    html = to_html(after_rl_page(found, "now"))
    assert "Which improve?" in html and f'value="{found.improved["bft"].gain.gain!r}"' in html
    assert len(after_rl_page(found, "now").figures) == 2


# ---- the definition ------------------------------------------------------------------------------------------------


def test_definitions_that_are_refused():
    for changes, rule in [
        ({"seeds": [1, 2, 3]}, "at least 5 different seeds"),
        ({"seeds": [1, 2, 3, 4, -5]}, "seeds, none below 0 or above 4294967295"),
        ({"claims": [{"better": "dft", "than": "sft"}]}, "one of sft, bft"),
        ({"claims": [{"better": "bft", "than": "sft", "metric": "a/b"}]}, "left out here: the reward is compared"),
        ({"arms": {"warm_up": {}}}, "not warm_up"),
        ({"arms": {"sft": {"exports": "models/sft"}}, "claims": []}, "with {seed} in it"),
        ({"grpo": {"accumulation": 7}}, "a divisor of prompts"),
        ({"rows": {"held_out": [{"path": "x"}], "from_choices": "yes_no"}}, "yes_no_maybe with from_choices"),
    ]:
        with pytest.raises(ValueError, match=rule):
            study(**changes)


def test_the_bundled_study_is_ready_and_takes_overrides(tmp_path):
    overrides = ["grpo.steps=3", f"cluster.storage_path={tmp_path}", "model.dtype=bf16"]
    ready = prepare(load_after_rl("starter", overrides))
    assert ready.study.grpo.steps == 3 and ready.base.model.dtype == "bf16"
    assert len(ready.train.ids) == 240 and len(ready.held_out.ids) == 120
    shares = [np.mean([gold == "yes" for gold in items.golds]) for items in (ready.train, ready.held_out)]
    assert all(0.4 < share < 0.6 for share in shares)
    assert ready.held_out.constant == max(shares[1], 1 - shares[1])
    assert ready.config_of("bft", 101).loss.method == "bft" and list(bundled()) == ["starter"]
    with pytest.raises(BadInput, match="one of starter"):
        load_after_rl("other")
    with pytest.raises(BadConfig, match=r"at least 2 different seeds\. Add seeds\.(\n|$)"):
        load_after_rl("starter", ["seeds=[1]", "min_seeds_waived=true"])
    with pytest.raises(BadConfig, match="stepz"):
        load_after_rl("starter", ["grpo.stepz=3"])


def test_arms_start_from_the_warm_up_of_their_seed():
    ready = prepare(load_after_rl("starter"))
    warm, arm = ready.config_of(WARM_UP, 101), ready.config_of("dft", 101, "/warm")
    assert (warm.loss.method, warm.schedule.steps, warm.model.path, warm.seed) == ("sft", 24, "starter", 101)
    assert (arm.loss.method, arm.schedule.steps, arm.model.path, arm.seed) == ("dft", 12, "/warm", 101)
    assert warm.optimizer.learning_rate == 1e-3 and arm.optimizer.learning_rate == 1e-4


def test_a_held_out_prompt_that_is_trained_on_is_refused():
    source = '[{"path": "starter:gene_interaction/choices_validation"}]'
    with pytest.raises(BadInput, match=r"without prompts of rows.train; 120 are there too"):
        prepare(load_after_rl("starter", [f"rows.held_out={source}"]))


def test_exports_are_looked_for_before_anything_runs(tmp_path):
    (tmp_path / "sft-101").mkdir()
    arms = json.dumps({"sft": {"exports": f"{tmp_path}/sft-{{seed}}"}})
    with pytest.raises(BadInput, match=r"`arms.sft.exports` is .*/sft-102"):
        prepare(load_after_rl("starter", [f"arms={arms}", "claims=[]"]))


def test_another_study_under_the_same_name_is_refused(tmp_path):
    where = f"cluster.storage_path={tmp_path}"
    ready = prepare(load_after_rl("starter", [where]))
    run_module.write_kept(run_module._identity_file(ready), run_module._identity(ready))
    prepare(load_after_rl("starter", [where, "seeds=[1, 2, 3, 4, 5, 6]"]))  # more seeds go on
    with pytest.raises(BadConfig, match=r"`grpo.learning_rate` was 5e-05, and is now 0.001"):
        prepare(load_after_rl("starter", [where, "grpo.learning_rate=1e-3"]))
    arms = json.dumps({"sft": {"overrides": {"loss.method": "sft"}}, "bft": {"overrides": {"loss.window": 64}}})
    with pytest.raises(BadConfig, match=r"`arms.bft` was .*, and is now .*64"):
        prepare(load_after_rl("starter", [where, f"arms={arms}", "claims=[]"]))
    assert isinstance(ready, Ready) and _refuse_other(ready) is None


def test_a_study_goes_on_with_other_places_and_another_layout(tmp_path):
    where = f"cluster.storage_path={tmp_path}"
    ready = prepare(load_after_rl("starter", [where]))
    run_module.write_kept(run_module._identity_file(ready), run_module._identity(ready))
    moved = [f"data.cache_dir={tmp_path / 'cache'}", "cluster.num_workers=2", "data.micro_batch_tokens=999"]
    prepare(load_after_rl("starter", [where, *moved, f"tracking.uri=sqlite:///{tmp_path}/other.db"]))
    with pytest.raises(BadConfig, match=r"`config.data.max_length` was 320, and is now 300"):
        prepare(load_after_rl("starter", [where, "data.max_length=300"]))


# ---- the reward ----------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of one token a letter."""

    def decode(self, tokens, **_):
        return "".join(map(chr, tokens))


@pytest.mark.parametrize(
    ("text", "gold", "answer", "reward"),
    [
        ("Yes, it is.", "yes", "yes_no_maybe", 1.0),
        ("No. Yes.", "yes", "yes_no_maybe", 0.0),
        ("The mitophagy!", "mitophagy", "text", 1.0),
        ("mitophagy of cells", "mitophagy", "text", 0.0),
        ("so #### 1,200.0", "1200", "final", 1.0),
        ("", "yes", "yes_no_maybe", 0.0),
        ("no|yes", "no", "text", 1.0),  # after the end token nothing counts
    ],
)
def test_the_reward_is_one_for_the_gold_answer_and_else_nothing(text, gold, answer, reward):
    assert reward_of([ord(letter) for letter in text], gold, answer, Letters(), [ord("|")]) == reward


def test_questions_of_choice_as_rows():
    rows = [ChoiceRow(f"q{k}", f"f:{k}", "Where?", ("a", "b", "c", "d"), 2) for k in range(400)]
    assert asked_of(rows[0], "options") == ("Where?\nChoose one: a; b; c; d.", "c")
    asked = [asked_of(row, "yes_no") for row in rows]
    assert all((prompt == "Where?\nIs it c?") == (answer == "yes") for prompt, answer in asked)
    assert 160 < sum(answer == "yes" for _, answer in asked) < 240
    assert {prompt[-2] for prompt, _ in asked} == {"a", "b", "c", "d"}


# ---- running -------------------------------------------------------------------------------------------------------


def test_without_trl_the_extra_is_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else find(name, *rest))
    with pytest.raises(BadInput, match="installed"):
        require_trl()
    assert main(["after-rl"]) == 2  # before anything is read or written
    assert "pip install 'bft-ray[rl]'" in capsys.readouterr().err


def test_a_record_is_whole_or_absent(tmp_path, caplog):
    run = runs({"sft": 0.1}, num_items=3, seeds=[101])[0]
    run.write(str(tmp_path))
    assert read_run(str(tmp_path), "sft", 101) == run and read_run(str(tmp_path), "sft", 102) is None
    path = tmp_path / "records" / "sft-101.json"
    path.write_text(path.read_text().replace("0.5", "0.6", 1))
    assert read_run(str(tmp_path), "sft", 101) is None and "damaged" in caplog.text


@pytest.mark.release
def test_the_smallest_study_and_its_resumption(tmp_path, monkeypatch, capsys):
    """Two arms, two seeds, two steps: fine-tuned or given, trained by GRPO, told, recorded; then only what is missing runs."""
    tree = yaml.safe_load(bundled()["starter"].read_text())
    tree |= {"seeds": [1, 2], "min_seeds_waived": True, "claims": [{"better": "given", "than": "sft"}], "name": "tiny"}
    for seed in (1, 2):
        shutil.copytree(starter_folder(), tmp_path / f"given-{seed}")
    tree["arms"] = {"sft": tree["arms"]["sft"], "given": {"exports": f"{tmp_path}/given-{{seed}}"}}
    del tree["warm_up"]
    tree["overrides"] |= {
        "cluster.storage_path": str(tmp_path / "results"),
        "tracking.uri": f"sqlite:///{tmp_path}/mlflow.db",
        "cluster.num_workers": 2,  # GRPO in actors of Ray, two side by side
        "schedule.steps": 1,
        "data.global_batch_size": 4,
    }
    tree["rows"]["held_out"][0]["limit"] = 12
    tree["grpo"] |= {
        "steps": 2,
        "prompts": 2,
        "generations": 4,
        "start_prompts": 16,
        "samples": 2,
        "low": 0.0,
        "high": 1.0,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["after-rl", str(path)]) == 0
    first = capsys.readouterr().out
    assert "Of 2 arms" in first and "page      " in first and "Not finished" not in first
    folder = tmp_path / "results" / "after_rl" / "tiny"
    kept = {file.name: file.read_bytes() for file in sorted((folder / "records").iterdir())}
    assert list(kept) == ["given-1.json", "given-2.json", "sft-1.json", "sft-2.json"]
    run = read_run(str(folder), "sft", 1)
    assert (
        run is not None
        and 0 <= run.mixed <= 1
        and len(run.course) == 2
        and len(run.after) == 12
        and all(0 <= r <= 1 for r in run.course)
    )

    (folder / "records" / "given-2.json").unlink()
    done = []
    real = run_module.spread
    monkeypatch.setattr(
        run_module,
        "spread",
        lambda fn, starts, **rest: done.extend((s.arm, s.seed) for s in starts) or real(fn, starts, **rest),
    )
    assert main(["after-rl", str(path)]) == 0
    assert done == [("given", 2)]
    again = json.loads((folder / "records" / "given-2.json").read_text())
    before = json.loads(kept["given-2.json"])
    assert again["after"] == before["after"] and again["course"] == before["course"]  # the same seed, the same run
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    [recorded] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert recorded.info.status == "FINISHED" and "Of 2 arms" in recorded.data.tags["mlflow.note.content"]
    rows = json.loads(Path(client.download_artifacts(recorded.info.run_id, "statements.json")).read_text())
    assert len(rows) == 4
