"""The whole evaluation from a config: base, adapter and merged model, one and two workers, real data."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bft_ray.config import LoraConfig as BftLora
from bft_ray.config import ModelConfig, make_config
from bft_ray.config.metrics import describe
from bft_ray.errors import BadInput
from bft_ray.evaluate.compare import compare
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.evaluate.run import evaluate_model
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.export import export_model
from tests.support.paths import ROOT, SHARED

STARTER = ROOT / "bft_ray" / "model" / "starter"


@pytest.fixture(scope="module")
def exam(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exam") / "exam.jsonl"
    rows = [
        {
            "id": f"q{n}",
            "question": f"w{n} w{n + 1}",
            "choices": [f"w{n + 7}", f"w{n} w{2 * n}", "w3 w4 w5"],
            "answer": n % 3,
        }
        for n in range(24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(make_tree, exam):
    def make(**sections):
        evaluation = {"tasks": [{"kind": "choice", "name": "exam", "path": str(exam)}], "batch_tokens": 256}
        return make_config(make_tree(evaluation=evaluation, **sections))

    return make


@pytest.mark.slow
def test_one_and_two_workers_and_any_batch_agree(config, tmp_path):
    alone = evaluate_model(config(), out=tmp_path / "alone")
    two = evaluate_model(config(cluster={"num_workers": 2, "cpus_per_worker": 1.0, "gpus_per_worker": 0.0}))
    assert two.metrics == pytest.approx(alone.metrics, rel=1e-5)
    assert [r["id"] for r in two.records] == [r["id"] for r in alone.records]
    for one, other in zip(alone.records, two.records, strict=True):
        assert one == {
            **other,
            **{k: pytest.approx(v, rel=1e-5) for k, v in other.items() if isinstance(v, (float, list))},
        }

    metrics = json.loads((tmp_path / "alone" / "metrics.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "alone" / "records.jsonl").read_text().splitlines()]
    assert metrics == alone.metrics and records == alone.records
    assert all(describe(name) for name in metrics)
    exam = [record for record in records if record["set"] == "exam"]
    assert len(exam) == 24 == metrics["exam/num_items"]
    assert metrics["exam/accuracy"] == sum(r["predicted"] == r["answer"] for r in exam) / 24
    validation = [record for record in records if record["set"] == "validation"]
    assert len(validation) == 12
    total = sum(r["nll"] for r in validation)
    assert metrics["validation/nll"] == pytest.approx(total / sum(r["num_tokens"] for r in validation))
    assert metrics["validation/bits_per_byte"] == pytest.approx(
        total / math.log(2) / sum(r["num_bytes"] for r in validation)
    )


def test_rows_that_were_edited_under_their_ids_are_not_compared(make_tree, tmp_path):
    """The right answers and the numbers of tokens are those of before, so the question alone tells."""
    files = [tmp_path / name for name in ("choices.jsonl", "answers.jsonl", "texts.jsonl", "pairs.jsonl")]
    kinds = ("choice", "generation", "text", "pairs")
    tasks = [{"kind": kind, "name": kind, "path": str(file)} for kind, file in zip(kinds, files, strict=True)]

    def measure(word):
        rows: list[list[dict[str, Any]]] = [
            [{"question": f"w1 {w}", "choices": ["w2", "w3"], "answer": "A"} for w in ("w4", word)],
            [{"prompt": f"w1 {w}", "completion": "w2"} for w in ("w4", word)],
            [{"text": f"w1 {w} w3"} for w in ("w4", word)],
            [{"gene_a": "w1", "gene_b": w, "label": int(w == "w4")} for w in ("w4", word)],
        ]
        for file, own in zip(files, rows, strict=True):
            file.write_text("".join(json.dumps(row) + "\n" for row in own))
        data = {"train": [{"path": str(files[2])}], "validation": [{"path": str(files[2])}], "max_length": 64}
        return evaluate_model(make_config(make_tree(data=data, evaluation={"tasks": tasks})))

    before = measure("w5")
    changes, why = compare(before, measure(" W5"))  # case and white space make no other row
    assert {change.name.split("/")[0] for change in changes} == {*kinds, "validation"} and why == []
    changes, why = compare(before, measure("w6"))
    assert changes == []
    assert [reason.split(" is not")[0] for reason in why] == ["validation", *kinds]
    assert all("1 of 2 items have another text or right answer under the same id" in reason for reason in why)


def test_an_adapter_measures_as_its_merged_model_does(config, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    model: Any = get_peft_model(
        load_model(ModelConfig(path=str(tiny_model), dtype="fp32")),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in tiny_model.glob("tokenizer*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())

    def measure(path):
        return evaluate_model(config(model={"path": str(path), "dtype": "fp32"})).metrics

    base, adapter, merged = measure(tiny_model), measure(tmp_path / "adapter"), measure(tmp_path / "merged")
    assert adapter == pytest.approx(merged, rel=1e-5)
    assert abs(adapter["validation/nll"] - base["validation/nll"]) > 0.01


def test_an_adapter_on_another_base_than_its_own_is_refused(config, tiny_model, tmp_path):
    """It would be measured without a word: names and shapes are the same."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    own = ModelConfig(path=str(base), dtype="fp32")
    model: Any = load_model(own, BftLora(rank=2))
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    export_model(model, weights, load_tokenizer(own), own, tmp_path / "adapter")

    def measure():
        return evaluate_model(config(model={"path": str(tmp_path / "adapter"), "dtype": "fp32"})).metrics

    before = measure()
    base.rename(tmp_path / "moved")
    with pytest.raises(BadInput, match=f"but must be an adapter whose base model {base} can be read"):
        measure()
    shutil.copytree(tmp_path / "moved", base)
    assert measure() == before  # a copy, with other times
    other = load_file(base / "model.safetensors")
    other["model.norm.weight"] += 0.1
    save_file(other, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"must be an adapter of the base model .* it was trained on other weights"):
        measure()


def test_nothing_to_measure_is_refused(make_tree):
    tree = make_tree(evaluation={"tasks": []}, checkpoint={"export": "last"})
    tree["data"]["validation"] = []
    with pytest.raises(BadInput, match="There is nothing to measure"):
        evaluate_model(make_config(tree))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real data is not here")
@pytest.mark.skipif(not (STARTER / "model.safetensors").is_file(), reason="the starter model is not here")
def test_the_starter_model_on_real_data(make_tree, tmp_path):
    questions = str(SHARED / "data/medical_qa/choices_validation.jsonl")

    def measure(batch_tokens: int):
        validation = [{"path": str(SHARED / "data/gene_interaction/validation.jsonl"), "limit": 40}]
        tree = make_tree(
            model={"path": "starter", "dtype": "fp32"},
            data={"validation": validation, "max_length": 512, "micro_batch_tokens": 512},
            evaluation={"tasks": [{"kind": "choice", "path": questions, "limit": 40}], "batch_tokens": batch_tokens},
        )
        return evaluate_model(make_config(tree), out=tmp_path / str(batch_tokens))

    result, again = measure(2048), measure(512)
    metrics = result.metrics
    assert metrics["choices/num_items"] == 40
    assert 0.1 < metrics["choices/probability"] < 0.5  # four options: a quarter is chance
    assert 0.3 < metrics["validation/bits_per_byte"] < 1.5  # untrained: 2.9
    assert 0.2 < metrics["validation/token_accuracy"] < 0.9  # untrained: 0.0003
    assert again.metrics == pytest.approx(metrics, rel=1e-5)
    assert [r.get("predicted") for r in again.records] == [r.get("predicted") for r in result.records]


@pytest.fixture
def pairs(tmp_path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"gene_a": f"w{n}", "gene_b": f"w{n * 7 % 90}", "label": n % 2} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_tasks_are_chosen_by_name(make_tree, exam, pairs):
    tasks = [{"kind": "choice", "name": "exam", "path": str(exam)}, {"kind": "pairs", "path": str(pairs)}]
    config = make_config(make_tree(evaluation={"tasks": tasks}))
    everything = evaluate_model(config)
    assert {record["set"] for record in everything.records} == {"validation", "exam", "pairs"}
    for names in (["validation"], ["pairs"], ["pairs", "validation"]):
        some = evaluate_model(config, names=names)
        assert {record["set"] for record in some.records} == set(names)
        assert some.metrics == pytest.approx(
            {k: v for k, v in everything.metrics.items() if k.partition("/")[0] in names}, rel=1e-5
        )
    with pytest.raises(BadInput, match=r"`task` is 'paris', but must be one of validation, exam, pairs\."):
        evaluate_model(config, names=["paris"])


def test_bad_tasks_are_told(make_tree, tmp_path):
    (tmp_path / "exam.jsonl").write_text('{"question": "q", "choices": ["a"], "answer": 0}\n')
    tree = make_tree(evaluation={"tasks": [{"kind": "choice", "path": str(tmp_path / "exam.jsonl")}]})
    with pytest.raises(BadInput, match=r"exam\.jsonl:1 choices` is 'a list of 1'"):
        evaluate_model(make_config(tree))


def test_an_evaluation_is_read_as_it_was_written(tmp_path):
    result = EvaluationResult({"a/nll": 1.5}, [{"set": "a", "id": "x", "nll": 1.5}], {"a": {"question": "?"}})
    result.write(tmp_path / "out")
    assert EvaluationResult.read(tmp_path / "out") == result
    with pytest.raises(BadInput, match=r"metrics\.json and records\.jsonl"):
        EvaluationResult.read(tmp_path)


def test_a_damaged_list_of_checksums_is_named_and_no_file_that_never_was(tmp_path):
    EvaluationResult({"a/nll": 1.5}, [{"set": "a", "id": "x", "nll": 1.5}]).write(tmp_path)
    sums = json.loads((tmp_path / "sha256.json").read_text())
    (tmp_path / "sha256.json").write_text(json.dumps({"metric{.json": sums["metrics.json"], **sums}))
    with pytest.raises(BadInput, match=r"`folder` is '.*/sha256\.json'"):
        EvaluationResult.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("metrics.json", "[]", "metrics.json"),
        ("metrics.json", '{"a/nll": "low"}', "metrics.json"),
        ("records.jsonl", "{}", "records.jsonl:1"),
        ("records.jsonl", '{"set": "a", "id": "x"}\n1', "records.jsonl:2"),
        ("records.jsonl", '{"set": "a", "nll": 1.5}', "records.jsonl:1"),
        ("records.jsonl", '{"set": "a", "id": "x", "nll": "low"}', "records.jsonl:1"),
        ("records.jsonl", "[" * 100_000, "records.jsonl:1"),
        ("settings.json", "3", "settings.json"),
    ],
)
def test_what_is_no_evaluation_is_refused_before_anything_is_measured(tmp_path, name, text, place):
    """Without checksums, as somebody's script may write it; it was read, and failed after hours of measuring."""
    EvaluationResult({"a/nll": 1.5}, [{"set": "a", "id": "x", "nll": 1.5}]).write(tmp_path)
    (tmp_path / "sha256.json").unlink()
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=rf"{place}` is .*no JSON of that form|{place}', but must be an evaluation"):
        EvaluationResult.read(tmp_path)
