"""lm-evaluation-harness on local task files: the same answers as ours, item by item; nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bft_ray.config import DataConfig, ModelConfig, SourceConfig, make_config
from bft_ray.config.metrics import describe
from bft_ray.config.tasks import ChoiceTask, HarnessTask
from bft_ray.errors import BadInput
from bft_ray.evaluate.compare import compare
from bft_ray.evaluate.engine.request import Context
from bft_ray.evaluate.engine.score import run_score
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.evaluate.run import evaluate_model
from bft_ray.evaluate.tasks import choice
from bft_ray.evaluate.tasks.harness import check, run
from bft_ray.model.causal_lm import load_model, load_tokenizer

WORDS = ["cell", "gene", "liver", "bone", "heart", "protein", "binds", "red", "blue", "small", "human", "mouse"]
MULTIPLE_CHOICE = """
task: {name}
{tag}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
GENERATION = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 4
  do_sample: false
metric_list:
  - metric: exact_match
filter_list:
  - name: first-word
    filter:
      - function: regex
        regex_pattern: "(\\\\w+)"
      - function: take_first
"""
GROUP = """
group: both
task: [invented, more]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


@pytest.fixture(scope="module")
def starter():
    config = ModelConfig(path="starter", dtype="fp32")
    return load_model(config).eval(), load_tokenizer(config)


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Task files over 20 invented items, and their folder; what `datasets` writes goes to a temporary one."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw = random.Random(0)

    def text(n):
        return " ".join(draw.choice(WORDS) for _ in range(n))

    items = [
        {
            "id": f"item-{i}",
            "question": f"Which of them is a {text(3)}?",
            "choices": [text(n) for n in draw.sample([1, 2, 3, 4, 5], 4)],
            "answer": draw.randrange(4),
        }
        for i in range(20)
    ]
    file = tmp_path / "items.json"
    file.write_text(json.dumps(items))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "invented.yaml").write_text(MULTIPLE_CHOICE.format(name="invented", file=file, tag="tag: some"))
    (folder / "more.yaml").write_text(MULTIPLE_CHOICE.format(name="more", file=file, tag=""))
    (folder / "said.yaml").write_text(GENERATION.format(name="said", file=file))
    (folder / "both.yaml").write_text(GROUP)
    (folder / "lost.yaml").write_text(MULTIPLE_CHOICE.format(name="lost", file=tmp_path / "gone.json", tag=""))
    return SimpleNamespace(folder=str(folder), file=str(file), items=items, root=tmp_path)


def context_of(tokenizer, max_length=256, batch_tokens=1024, template="auto") -> Context:
    data = DataConfig(train=[SourceConfig(path="none.jsonl")], max_length=max_length, template=template)
    return Context(tokenizer, data, batch_tokens, seed=0)


@pytest.mark.parametrize("batch_tokens", [256, 4096])
def test_the_same_answers_as_our_own_choices(starter, tasks, batch_tokens):
    """Same tokens, so the same log-likelihoods; from either's the answers of both follow."""
    model, tokenizer = starter
    context = context_of(tokenizer, batch_tokens=batch_tokens)
    prepared = choice.prepare(ChoiceTask(path=tasks.file), context)
    [request] = prepared.requests
    scores = run_score(model, request, batch_tokens, "cpu", tokenizer.pad_token_id)
    ours = prepared.finish([scores])
    theirs = run(HarnessTask(tasks=["invented"], include_path=tasks.folder), model, tokenizer, context)
    assert [record["id"] for record in theirs.records] == [f"invented/{i}" for i in range(20)]
    num_tokens = scores.num_tokens.reshape(20, 4)
    sums = -scores.nll.reshape(20, 4)
    assert np.array([record["scores"] for record in theirs.records]) == pytest.approx(sums, abs=1e-4)
    differ = 0
    for item, own, their, tokens in zip(tasks.items, ours.records, theirs.records, num_tokens, strict=True):
        total = np.array(their["scores"])
        assert own["predicted"] == np.argmax(total / tokens)  # ours from theirs: a mean over tokens
        by_sum, by_length = (
            np.argmax(np.array(own["scores"]) * tokens),
            np.argmax(total / [len(c) for c in item["choices"]]),
        )
        assert their["acc"] == float(by_sum == item["answer"])  # theirs from ours: the sum,
        assert their["acc_norm"] == float(by_length == item["answer"])  # and a mean over characters
        differ += own["predicted"] != by_sum
    assert differ > 3  # options of unequal length: the rules do not agree by themselves
    accuracy = np.mean([record["acc"] for record in theirs.records])
    assert theirs.metrics["harness/invented/acc"] == pytest.approx(accuracy)
    assert theirs.metrics["harness/invented/acc_se"] == pytest.approx(np.sqrt(accuracy * (1 - accuracy) / 19))
    assert theirs.metrics["harness/num_items"] == 20 and theirs.metrics["harness/num_truncated"] == 0


def test_metrics_are_in_the_table_and_records_hold_no_text(starter, tasks, monkeypatch):
    model, tokenizer = starter
    (tasks.root / "here").mkdir()
    monkeypatch.chdir(tasks.root / "here")
    task = HarnessTask(name="general", tasks=["invented", "said"], include_path=tasks.folder, limit=6)
    measured = run(task, model, tokenizer, context_of(tokenizer, template="plain"))
    assert {name for name in measured.metrics if not name.endswith(("_se", "_detectable"))} == {
        "general/invented/acc",
        "general/invented/acc_norm",
        "general/said/exact_match_first_word",
        "general/num_items",
        "general/num_truncated",
    }
    assert all(describe(name) for name in measured.metrics)
    metric = describe("general/invented/acc")
    assert metric is not None and (metric.unit, metric.direction) == ("share", "higher")
    assert [record["id"] for record in measured.records] == [f"{t}/{i}" for t in ("invented", "said") for i in range(6)]
    for record in measured.records:
        assert record["set"] == f"general/{record['id'].partition('/')[0]}"
        for key, value in record.items():
            numbers = value if key == "scores" else [value]
            assert key in ("set", "id") or all(isinstance(number, float) for number in numbers)
    assert "exact_match_first_word" in measured.records[-1]
    assert not list((tasks.root / "here").iterdir())  # nothing is written where it runs


def test_before_and_after_are_paired_by_item(starter, tasks):
    """The starter model and itself with noise on its weights."""
    model, tokenizer = starter
    task = HarnessTask(tasks=["invented"], include_path=tasks.folder)
    noisy = load_model(ModelConfig(path="starter", dtype="fp32")).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in noisy.parameters():
            weight += 0.05 * torch.randn_like(weight)
    both = [run(task, each, tokenizer, context_of(tokenizer)) for each in (model, noisy)]
    changes, _ = compare(*(EvaluationResult(each.metrics, each.records) for each in both))
    [change] = [change for change in changes if change.name == "harness/invented/acc"]
    right = [np.array([record["acc"] for record in each.records]) for each in both]
    assert change.paired is not None and change.paired.num_items == 20
    assert change.paired.drop == pytest.approx((right[0] - right[1]).mean())
    assert change.paired.num_lost == ((right[0] == 1) & (right[1] == 0)).sum()


def test_prompts_that_lose_their_beginning_are_counted(starter, tasks):
    model, tokenizer = starter
    whole = [len(tokenizer(item["question"] + max(item["choices"], key=len))["input_ids"]) for item in tasks.items]
    limit = sorted(whole)[10] - 1
    task = HarnessTask(tasks=["invented"], include_path=tasks.folder)
    metrics = run(task, model, tokenizer, context_of(tokenizer, limit, 256, "plain")).metrics
    longest = [
        max(len(tokenizer(item["question"] + option)["input_ids"]) for option in item["choices"])
        for item in tasks.items
    ]
    assert metrics["harness/num_truncated"] == sum(length > limit + 1 for length in longest) > 0


def test_what_cannot_be_measured_is_told(starter, tasks, monkeypatch):
    model, tokenizer = starter
    with pytest.raises(BadInput, match=r"evaluation.tasks.harness.include_path` is 'nowhere', but must be a folder"):
        check(HarnessTask(tasks=["invented"], include_path="nowhere"))
    with pytest.raises(BadInput, match=r"tasks` is \['lost'\], but must be tasks whose data can be read.*cache"):
        run(HarnessTask(tasks=["lost"], include_path=tasks.folder), model, tokenizer, context_of(tokenizer))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name, *rest)
    )
    with pytest.raises(BadInput, match=r"not installed. Install it on all nodes: pip install 'bft-ray\[harness\]'"):
        run(HarnessTask(tasks=["invented"]), model, tokenizer, context_of(tokenizer))


@pytest.mark.slow  # listing the library's own tasks takes 10 s
def test_groups_are_told_as_one_and_unknown_tasks_get_a_hint(starter, tasks):
    model, tokenizer = starter
    measured = run(HarnessTask(tasks=["both"], include_path=tasks.folder), model, tokenizer, context_of(tokenizer))
    acc = np.mean([record["acc"] for record in measured.records])
    assert measured.metrics["harness/both/acc"] == pytest.approx(acc)
    assert not [name for name in measured.metrics if "invented" in name or "more" in name]
    assert len(measured.records) == 40 and {record["set"] for record in measured.records} == {"harness/both"}
    with pytest.raises(BadInput, match=r"tasks` is 'inventd', but must be a task of lm.*Did you mean invented"):
        check(HarnessTask(tasks=["mmlu", "inventd"], include_path=tasks.folder))


def test_embeddings_and_harness_are_tasks_of_an_evaluation(make_tree, tasks, tmp_path):
    """All three through the one entry, from a config."""
    draw = random.Random(0)
    genes = [{"gene": f"G{i}", "description": f"w{i % 2} w{i % 2} w{i}"} for i in range(40)]
    pairs = [draw.sample(range(start, start + 20), 2) for start in (0, 20) for _ in range(100)]
    rows = [{"gene_a": f"G{a}", "gene_b": f"G{b}", "label": int(a % 2 == b % 2)} for a, b in pairs]
    cells = [{"cell": f"c{i}", "label": "AB"[i % 2], "genes": [f"w{i % 2}", f"w{i}"]} for i in range(30)]
    for name, own in (("genes", genes), ("train", rows[:100]), ("test", rows[100:]), ("cells", cells)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    tree = make_tree(
        evaluation={
            "tasks": [
                {
                    "kind": "embedding_pairs",
                    "descriptions": f"{tmp_path}/genes.jsonl",
                    "train": f"{tmp_path}/train.jsonl",
                    "path": f"{tmp_path}/test.jsonl",
                },
                {"kind": "cells", "path": f"{tmp_path}/cells.jsonl", "genes": "genes"},
                {"kind": "harness", "tasks": ["invented"], "include_path": tasks.folder},
            ]
        }
    )
    names = ["described_pairs", "cells", "harness"]
    metrics = evaluate_model(make_config(tree), names=names).metrics
    assert {name.partition("/")[0] for name in metrics} == set(names)
    assert metrics["described_pairs/num_train_pairs"] == 100 and metrics["cells/num_items"] == 30
    assert metrics["harness/num_items"] == 20
