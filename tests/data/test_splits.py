"""Rows of a split are told by what they say: Unicode form, case and white space make no other row. Groups stay with items."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import yaml

from bft_ray.config import DataConfig, ModelConfig, SourceConfig, load_config
from bft_ray.config.tasks import ChoiceTask, GenerationTask, PairsTask, TextTask
from bft_ray.data.dataset import TokenDataset, prepare
from bft_ray.errors import BadConfig, BadInput
from bft_ray.evaluate.engine.request import Context, Scores
from bft_ray.evaluate.run import evaluate_model, prepare_all, prepare_context
from bft_ray.evaluate.tasks.text import prepare_dataset
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.study.checks.splits import check_splits, items_of, rows_of
from bft_ray.train.record import read_record, record_text, with_first_choices


def write(path: Path, *rows: dict) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def other(text: str) -> str:
    """The same to a reader."""
    return f" {unicodedata.normalize('NFD', text).upper()}\n"


QUESTION = "Is the caf\u00e9 of w1 good?"


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(ModelConfig(path=str(tiny_model)))


def test_one_row_in_two_unicode_forms_is_one(tokenizer, tmp_path):
    files = [
        write(tmp_path / "a.jsonl", {"id": "a", "prompt": QUESTION, "completion": "w2", "group": "p1"}),
        write(tmp_path / "b.jsonl", {"id": "b", "prompt": other(QUESTION), "completion": "w2 "}),
    ]
    config = DataConfig(train=[SourceConfig(path=files[0])], cache_dir=str(tmp_path / "cache"))
    first, second = (prepare([SourceConfig(path=path)], tokenizer, config) for path in files)
    assert list(rows_of(first)) == list(rows_of(second)) and rows_of(second) == {first.keys[0]: "b"}
    assert (first.groups, second.groups) == (["p1"], [None])
    assert TokenDataset(first.folder).groups == ["p1"]  # from the cache
    with pytest.raises(BadInput, match=r"1 of the 1 rows of the confirmation data are rows of the search data too: b"):
        check_splits("validation/nll", {"search": rows_of(first), "confirmation": rows_of(second)}, {}, print)


def test_items_of_tasks_by_the_same_key(tmp_path):
    row = {"question": QUESTION, "options": {"A": "x", "B": "y"}, "answer_idx": "B"}
    swapped = {"question": other(QUESTION), "choices": ["y", "x"], "answer": 0}
    for make, one, two in (
        (ChoiceTask, row, swapped),
        (GenerationTask, {"question": QUESTION, "answer": "a"}, {"prompt": other(QUESTION), "completion": "b"}),
        (TextTask, {"text": QUESTION}, {"text": other(QUESTION)}),
        (PairsTask, {"gene_a": "A1", "gene_b": "B1"}, {"gene_a": "B1", "gene_b": "a1 "}),
    ):
        found = [
            items_of(make(name="t", path=write(tmp_path / f"{i}.jsonl", each))) for i, each in enumerate((one, two))
        ]
        assert len(found[0]) == 1 and list(found[0]) == list(found[1]), make


def test_the_group_of_a_row_stands_in_its_record(tokenizer, tmp_path):
    import numpy as np

    path = write(
        tmp_path / "a.jsonl",
        {"id": "a", "prompt": "w1", "completion": "w2 w3", "patient": 7},
        {"id": "b", "prompt": "w4", "completion": "w5", "patient": 7},
    )
    source = SourceConfig(path=path, columns={"group": "patient"})
    data = DataConfig(train=[source], cache_dir=str(tmp_path / "cache"))
    context = Context(tokenizer, data, 64, 0)
    prepared = prepare_dataset(prepare([source], tokenizer, data), "validation", context)
    scores = Scores(np.ones(2), np.array([3, 2]), np.array([1, 1]))
    assert [record["group"] for record in prepared.finish([scores]).records] == ["7", "7"]


# --- what an evaluation needs of a config -----------------------------------------------------------------


def test_an_evaluation_needs_no_training_data(tiny_model, tmp_path):
    exam = write(
        tmp_path / "exam.jsonl",
        {"question": "w1 w2", "options": {"A": "w3", "B": "w4"}, "answer_idx": "B", "group": "g"},
    )
    tree = {
        "domain": "test",
        "model": {"path": str(tiny_model), "dtype": "fp32"},
        "evaluation": {"tasks": [{"kind": "choice", "path": exam}]},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    config = load_config(path, for_training=False)
    assert config.data.train == [] and config.checkpoint.export == "best"
    [prepared] = prepare_all(config, prepare_context(config)).values()
    assert [len(own) for own in prepared.requests[0].continuations] == [2]  # type: ignore[union-attr]
    with pytest.raises(BadConfig, match=r"`data` is missing"):
        load_config(path)
    with pytest.raises(BadInput) as caught:
        evaluate_model(load_config(path, ["evaluation.tasks=[]"], for_training=False))
    assert str(caught.value) == (
        "`data.validation` is [], but must be given, or else evaluation.tasks. "
        "There is nothing to measure. For example evaluation.tasks: [{kind: choice, path: exam.jsonl}]."
    )


def test_a_run_that_goes_on_has_the_date_of_its_first_start(make_tree, tmp_path):
    from bft_ray.config import make_config

    config = make_config(make_tree())
    assert with_first_choices(config, read_record(str(tmp_path))) is config  # nothing lies there
    dated = config.model_copy(update={"data": config.data.model_copy(update={"date": "2025-01-02"})})
    (tmp_path / "run.json").write_text(record_text(dated, "r", {}))
    assert with_first_choices(config, read_record(str(tmp_path))).data.date == "2025-01-02"
