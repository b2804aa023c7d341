"""What is looked at before a study starts: splits with rows of their own, and the weights that it begins with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bft_ray.config import ModelConfig, make_config
from bft_ray.errors import BadConfig, BadInput
from bft_ray.model import base_weights
from bft_ray.model.base_weights import weights_fingerprint
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.space.assign import baseline_config, config_of
from bft_ray.space.load import load_space, load_study, spaces
from bft_ray.study.checks.ready import Facts, inspect_study
from bft_ray.study.definition import Study
from bft_ray.study.records.same_study import refuse_others, study_settings


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sample(number: int) -> dict:
    return {"id": f"own-{number}", "prompt": f"w{number % 91} w{number // 91}", "completion": "w1 w2"}


def choice(number: int) -> dict:
    return {"id": f"q{number}", "question": f"w{number}", "choices": ["w1", "w2", "w3"], "answer": number % 3}


@pytest.fixture
def look(make_tree, tmp_path):
    """A function: looks at a study whose splits have these rows; returns facts and what was told."""

    def make(rows: dict[str, list[dict]], kind: str = "validation") -> tuple[Facts, list[str]]:
        paths = {split: write_rows(tmp_path / f"{split}.jsonl", own) for split, own in rows.items()}
        tree, field = make_tree(), "data.validation.0.path"
        if kind == "validation":
            tree["data"]["validation"] = [{"path": paths["search"]}]
        else:
            tree["evaluation"]["tasks"] = [{"kind": kind, "path": paths["search"]}]
            field = "evaluation.tasks.0.path"
        if "train" in paths:
            tree["data"]["train"] = [{"path": paths["train"]}]
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
        space = {
            "name": "small",
            "config": "config.yaml",
            "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
            "objective": {"metric": {"validation": "validation/nll", "choice": "choices/probability"}[kind]},
            "budget": {"trials": 2, "steps": 4},
            "sampler": {"kind": "random"},
            "scheduler": {"kind": "none"},
            "confirmation": {
                "seeds": [101, 102, 103],
                "min_seeds_waived": True,
                "overrides": {field: paths["confirmation"]},
                "test": {field: paths["test"]} if "test" in paths else {},
            },
        }
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
        told: list[str] = []
        return inspect_study(*load_study(tmp_path / "space.yaml"), told.append), told

    return make


def test_rows_in_another_order_are_the_same_rows(look):
    rows = [sample(number) for number in range(20)]
    rule = r"`confirmation\.overrides` is 'the data of the confirmation', but validation/nll must be measured on rows "
    rule += r"of its own \(20 of the 20 rows of the confirmation data are rows of the search data too: own-19, own-18, "
    with pytest.raises(BadInput, match=rule + r"own-17, \.\.\.\)\. Take them out of one of the two\."):
        look({"search": rows, "confirmation": rows[::-1]})


def test_rows_in_part_are_refused_and_named_without_their_text(look):
    rows = [sample(number) for number in range(60)]
    renamed = [row | {"id": f"copy-{row['id']}"} for row in rows[18:40]]
    with pytest.raises(BadInput, match=r"2 of the 22 rows .* copy-own-18, copy-own-19\)") as caught:
        look({"search": rows[:20], "confirmation": renamed})
    assert "w18" not in str(caught.value)
    with pytest.raises(
        BadInput, match=r"`confirmation\.test` .*\(5 of the 20 rows of the test data are rows of the confirm"
    ):
        look({"search": rows[:10], "confirmation": rows[10:30], "test": rows[25:45]})
    told = look({"search": rows[:20], "confirmation": rows[20:40], "test": rows[40:]})[1]
    assert not [text for text in told if "note" in text and "an anchor" not in text]


def test_one_row_in_a_hundred_is_told(look):
    """Published splits have such: MMLU's test set holds three rows of its validation set."""
    rows = [sample(number) for number in range(300)]
    told = look({"search": rows[:101], "confirmation": rows[100:250]})[1]
    assert "note: 1 of the 150 rows of the confirmation data are rows of the search data too (own-100)" in told


def test_training_rows(look):
    rows = [sample(number) for number in range(40)]
    with pytest.raises(BadInput, match=r"20 of the 20 rows of the confirmation data are rows of the training data too"):
        look({"train": rows[20:], "search": rows[:20], "confirmation": rows[:19:-1]})
    for part in ("confirmation", "test"):
        with pytest.raises(BadInput, match=rf"5 of the 15 rows of the {part} data are rows of the training data too"):
            look({"train": rows[10:30], "search": rows[:10], "confirmation": rows[30:], part: rows[25:]})
    near = [
        row | {"prompt": f"  {row['prompt'].upper()} "} for row in rows[:20]
    ]  # the same but for case and white space
    with pytest.raises(BadInput, match=r"20 of the 20 rows of the confirmation data are rows of the training data too"):
        look({"train": rows[:20], "search": rows[20:], "confirmation": near})
    rows = [sample(number) for number in range(150)]
    told = look({"train": rows[149:] + rows[:1], "search": [sample(200), sample(201)], "confirmation": rows[:149]})[1]
    assert "note: 1 of the 149 rows of the confirmation data are rows of the training data too (own-0)" in told


def test_items_of_a_task(look):
    items = [choice(number) for number in range(40)]
    turned = [item | {"id": f"b{n}", "choices": item["choices"][::-1]} for n, item in enumerate(items[:20])]
    with pytest.raises(
        BadInput, match="20 of the 20 rows of the confirmation data are rows of the search data too: b0"
    ):
        look({"search": items[:20], "confirmation": turned}, "choice")
    other = [item | {"choices": ["w1", "w2", "w9"]} for item in items[:20]]  # the same words ask something else
    look({"search": items[:20], "confirmation": other, "test": items[20:]}, "choice")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(spaces()))
def test_shipped_spaces_on_the_bundled_data(name, tmp_path, monkeypatch):
    """Each with the files that its head asks for."""
    monkeypatch.chdir(tmp_path)
    bundled = Path(str(base_weights.__file__)).parents[1] / "data" / "starter"
    shutil.copytree(bundled / "gene_interaction", tmp_path / "data")
    for split in ("validation", "confirmation", "test"):
        shutil.copy(tmp_path / f"data/choices_{split}.jsonl", tmp_path / f"data/cell_types_{split}.jsonl")
        pairs = [{"gene_a": f"A{split}{n}", "gene_b": f"B{n}", "label": n % 2} for n in range(8)]
        write_rows(tmp_path / f"data/pairs_{split}.jsonl", pairs)
        if name == "biological_process":
            rows = [json.loads(row) for row in (tmp_path / f"data/{split}.jsonl").read_text().splitlines()]
            write_rows(tmp_path / f"data/{split}.jsonl", [row | {"gold_name": row["id"]} for row in rows])
    told: list[str] = []
    own = [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", f"data.cache_dir={tmp_path}/cache"]
    facts = inspect_study(*load_study(name, overrides=own), told.append)
    assert facts.samples_per_source and not [text for text in told if "note" in text and "an anchor" not in text]
    assert load_space(name).confirmation is not None


# ---- the weights -----------------------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_an_anchor_is_checked_and_its_cost_told_though_the_first_trial_has_none(make_tree, tmp_path):
    def lines_of(**sections: Any) -> list[str]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(make_tree(**sections)))
        space = {
            "name": "small",
            "config": "config.yaml",
            "parameters": {"loss.anchor": {"kind": "categorical", "values": [0.0, 0.1]}},
            "objective": {"metric": "validation/nll"},
            "budget": {"trials": 2, "steps": 4},
            "sampler": {"kind": "random"},
        }
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
        lines: list[str] = []
        inspect_study(*load_study(tmp_path / "space.yaml"), lines.append)
        return [line for line in lines if "anchor" in line]

    assert lines_of()[0].endswith("through a frozen copy of the weights, which takes memory")
    assert lines_of(lora={"rank": 2})[0].endswith("with the adapters off")
    tree = make_tree(lora={"rank": 2})
    config = make_config(tree)
    load_model(config.model, config.lora).save_pretrained(tmp_path / "adapter")
    load_tokenizer(config.model).save_pretrained(tmp_path / "adapter")
    with pytest.raises(BadInput, match=r"loss\.anchor.*an adapter is trained on"):
        lines_of(model={"path": str(tmp_path / "adapter")})


def test_weights_that_were_trained_again_make_another_study(make_tree, tiny_model, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tree = make_tree(model={"path": str(folder)})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    space: dict[str, Any] = {
        "name": "small",
        "config": "config.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
        "objective": {"metric": "validation/nll"},
        "budget": {},
        "sampler": {"kind": "grid"},
        "scheduler": {"kind": "none"},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))

    def settings() -> dict[str, Any]:
        given = load_study(tmp_path / "space.yaml")
        return study_settings(*given, inspect_study(*given).fingerprints)

    old = settings()
    os.utime(folder / "model.safetensors", (1, 1))
    (folder / "README.md").write_text("not part of it")
    refuse_others("small/test", old, settings())
    flip(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)
    with pytest.raises(BadConfig, match=r"`data\.model` was"):
        refuse_others("small/test", old, settings())


def test_large_files_are_read_in_part(tmp_path, monkeypatch):
    for name, value in (("_WHOLE_BYTES", 1000), ("_STRIDE_BYTES", 1000), ("_BLOCK_BYTES", 10)):
        monkeypatch.setattr(base_weights, name, value)
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(5555))

    def fingerprint() -> str:
        return weights_fingerprint(ModelConfig(path=str(tmp_path)))

    before = fingerprint()
    flip(file, 3500)  # between two blocks
    assert fingerprint() == before
    for place in (0, 3005, 5554):
        flip(file, place)
        assert fingerprint() != before
        flip(file, place)
    assert fingerprint() == before
    file.write_bytes(file.read_bytes()[:-1])
    assert fingerprint() != before
    assert weights_fingerprint(ModelConfig(path="somebody/model")) == ""


def test_a_deterministic_study_has_one_number_of_workers(tmp_path):
    space, base = load_study("starter", overrides=["cluster.num_workers=[1,2]", f"cluster.storage_path={tmp_path}"])
    with pytest.raises(
        BadInput, match=r"`cluster.num_workers` is \[1, 2\], but must be one number in a deterministic study"
    ):
        inspect_study(space.model_copy(update={"deterministic": True}), base)


def study_of_other_rows(make_tree, tmp_path, **more: Any) -> list:
    """A space and its config: `half` is a baseline that trains on half of the rows, in epochs."""
    tree = make_tree(schedule={"steps": None, "epochs": 1.0})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    space = {
        "name": "small",
        "config": "config.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
        "objective": {"metric": "validation/nll"},
        "budget": {"trials": 2},
        "sampler": {"kind": "random"},
        "scheduler": {"kind": "none"},
        "baselines": [
            {"name": "whole", "overrides": {"loss.method": "sft"}},
            {"name": "half", "overrides": {"loss.method": "sft", "data.train.0.limit": 24}},
        ],
        "confirmation": None,
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space | more))
    return list(load_study(tmp_path / "space.yaml"))


def test_a_baseline_on_other_rows_has_steps_and_windows_of_its_own(make_tree, tmp_path):
    space, base = study_of_other_rows(make_tree, tmp_path)
    told: list[str] = []
    facts = inspect_study(space, base, told.append)
    assert any("train data of baseline half: " in line and "24 rows read" in line for line in told)
    assert "train.1" in facts.fingerprints and not any("baseline whole" in line for line in told)
    study = Study("id", space, base, facts.longest, facts.samples_per_source, str(tmp_path))
    whole, half = (baseline_config(base, space, one, {}) for one in space.baselines)
    assert study.steps(whole) == 6 and study.longest_of(whole) == facts.longest
    assert study.steps(half) is None and study.longest_of(half) is None  # known when it runs


def test_rows_that_are_fixed_for_all_are_those_of_the_first_trial(make_tree, tmp_path):
    space, base = study_of_other_rows(make_tree, tmp_path, baselines=[], fixed={"data.train.0.limit": 24})
    facts = inspect_study(space, base)
    study = Study("id", space, base, facts.longest, facts.samples_per_source, str(tmp_path))
    assert study.steps(config_of(base, space, {"loss.window": 2})) == 3


@pytest.mark.parametrize("part", ["baselines", "parameters"])
def test_rows_that_cannot_be_read_are_refused_before_any_trial(make_tree, tmp_path, part):
    none = str(tmp_path / "none.jsonl")
    more = {
        "baselines": {"baselines": [{"name": "half", "overrides": {"data.train.0.path": none}}]},
        "parameters": {
            "parameters": {
                "data.train.0.path": {
                    "kind": "categorical",
                    "values": [str(make_tree()["data"]["train"][0]["path"]), none],
                }
            },
            "baselines": [],
        },
    }[part]
    with pytest.raises(BadInput, match=r"none\.jsonl"):
        inspect_study(*study_of_other_rows(make_tree, tmp_path, **more))


@pytest.mark.parametrize(
    ("name", "values", "are_known"),
    [
        ("data.train.0.limit", [24, 48], False),
        ("data.max_length", [64, 128], False),
        ("data.train.0.ratio", [0.5, 1.0], True),
        ("model.gradient_checkpointing", [False, True], True),
    ],
)
def test_what_the_rows_give_is_unknown_where_trials_have_others(make_tree, tmp_path, name, values, are_known):
    parameters = {
        "loss.window": {"kind": "categorical", "values": [2, 8]},
        name: {"kind": "categorical", "values": values},
    }
    space, base = study_of_other_rows(make_tree, tmp_path, parameters=parameters, baselines=[])
    facts = inspect_study(space, base)
    assert (facts.longest is not None, facts.samples_per_source is not None) == (are_known, are_known)
    assert ("train.1" in facts.fingerprints) is not are_known
