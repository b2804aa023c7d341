"""Likelihood sums and multiple choice, against values worked by hand and a plain one-at-a-time loop."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.tasks import ChoiceTask
from bft_ray.data.dataset import prepare
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.likelihood import LikelihoodSums, cut_batches
from bft_ray.evaluate.engine.request import Context, Scores
from bft_ray.evaluate.engine.score import run_score
from bft_ray.evaluate.tasks.choice import (
    ChoiceRow,
    calibration_error,
    choice_metrics,
    encode_items,
    make_records,
    read_items,
)
from bft_ray.evaluate.tasks.choice import (
    prepare as prepare_choices,
)
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.stats.power import detectable

# p(next | current) of a model that looks at one token only
NEXT = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])


class Rows:
    """Sequences (scorable) from lists of (tokens, labels)."""

    def __init__(self, *rows):
        self.rows = [(np.array(tokens), np.array(labels)) for tokens, labels in rows]
        self.ids = [f"s{index}" for index in range(len(rows))]
        self.lengths = np.array([len(tokens) for tokens, _ in self.rows])
        self.num_bytes = np.array([5 * int((labels != -100).sum()) for _, labels in self.rows])

    def __len__(self):
        return len(self.rows)

    def tokens(self, index):
        return self.rows[index][0]

    def labels(self, index):
        return self.rows[index][1]


BY_HAND: Any = Rows(
    ([0, 1, 3], [-100, 1, 3]),  # p(1|0) = 1/4, p(3|1) = 0.4, argmax of 1 is 3
    ([2, 0], [-100, 0]),  # p(0|2) = 0.7, argmax
    ([1, 1, 0, 0], [-100, -100, -100, 0]),  # p(0|0) = 1/2, argmax
)


def test_metrics_by_hand():
    nll = -math.log(0.25 * 0.4 * 0.7 * 0.5)
    metrics = LikelihoodSums(nll, 4, 3, 20).metrics("validation")
    assert metrics["validation/nll"] == pytest.approx(nll / 4, rel=1e-6)
    assert metrics["validation/perplexity"] == pytest.approx((0.25 * 0.4 * 0.7 * 0.5) ** -0.25, rel=1e-6)
    assert metrics["validation/token_accuracy"] == 0.75
    assert metrics["validation/bits_per_byte"] == pytest.approx(nll / math.log(2) / 20, rel=1e-6)


def test_metrics_at_the_edges():
    assert LikelihoodSums(1e6, 1, 0).metrics("x")["x/perplexity"] == math.inf
    assert "x/bits_per_byte" not in LikelihoodSums(1.0, 1, 0).metrics("x")
    with pytest.raises(ValueError, match=r"no supervised token"):
        LikelihoodSums(0.0, 0, 0).metrics("x")


def test_batches_hold_every_sequence_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    batches = cut_batches(lengths, 128)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 128
    assert lengths[batches[0][0]] == lengths.max()
    assert [batch.tolist() for batch in cut_batches(np.array([9, 2, 2]), 4)] == [[0], [1, 2]]


# --- a transformers model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tiny_model):
    config = ModelConfig(path=str(tiny_model), dtype="fp32")
    return load_model(config), load_tokenizer(config)


@pytest.fixture
def tiny_set(tiny, tiny_data, tmp_path):
    config = DataConfig(
        train=[SourceConfig(path=str(tiny_data), limit=16)], max_length=128, cache_dir=str(tmp_path / "cache")
    )
    return prepare(config.train, tiny[1], config)


def one_at_a_time(model, tokens, labels) -> tuple[float, int, int]:
    """The plain definition: one sequence, all logits, a loop over its tokens."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens.tolist()])).logits[0].double()
    nll, num_tokens, num_correct = 0.0, 0, 0
    for t in range(1, len(tokens)):
        if labels[t] != -100:
            nll -= float(torch.log_softmax(logits[t - 1], -1)[labels[t]])
            num_correct += int(logits[t - 1].argmax() == labels[t])
            num_tokens += 1
    return nll, num_tokens, num_correct


# --- multiple choice ------------------------------------------------------------------------------


def item(number, choices, answer, question="w1 w2", context="", subject=None):
    return ChoiceRow(f"i{number}", f"items.jsonl:{number + 1}", question, tuple(choices), answer, context, subject)


def test_choice_by_hand():
    items = [item(0, ["a", "b"], 1), item(1, ["a", "b", "c"], 0)]
    scores = Scores(
        nll=np.array([2.0, 3.0, 1.0, 1.0 + 1e-7, 4.0]),
        num_tokens=np.array([1, 3, 1, 1, 2]),
        num_correct=np.zeros(5, dtype=int),
    )
    first, second = make_records(items, scores)
    assert first["scores"] == [-2.0, -1.0] and first["predicted"] == 1  # by sums, option 0 would win
    assert first["probability"] == pytest.approx(math.exp(-1) / (math.exp(-1) + math.exp(-2)))
    assert first["confidence"] == first["probability"] and first["correct"] == 1
    assert second["predicted"] == 0  # a tie within rounding goes to the first
    assert second["probability"] == pytest.approx(math.exp(-1) / (2 * math.exp(-1) + math.exp(-2)), rel=1e-6)


def test_choice_metrics_by_hand():
    def record(number, predicted, probability, subject=None):
        own = {"id": f"i{number}", "correct": int(predicted == 0), "probability": probability, "confidence": 0.9}
        return own | ({"subject": subject} if subject else {})

    metrics = choice_metrics([record(0, 0, 0.8), record(1, 1, 0.4), record(2, 0, 0.6), record(3, 0, 0.6)], "mmlu", 1)
    assert metrics["mmlu/accuracy"] == 0.75 and metrics["mmlu/probability"] == pytest.approx(0.6)
    assert metrics["mmlu/accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert metrics["mmlu/probability_se"] == pytest.approx(math.sqrt(0.08 / 3 / 4))
    assert metrics["mmlu/accuracy_detectable"] == pytest.approx(detectable(math.sqrt(2) * 0.25, 6))
    assert (metrics["mmlu/num_items"], metrics["mmlu/num_truncated"]) == (4.0, 1.0)
    assert metrics["mmlu/calibration_error"] == pytest.approx(0.15)  # sure to 0.9, right in 0.75
    assert (
        "mmlu/accuracy_se" not in choice_metrics([record(0, 0, 0.8)], "mmlu") and "mmlu/macro_accuracy" not in metrics
    )
    subjects = [record(0, 0, 0.8, "law"), record(1, 1, 0.4, "art"), record(2, 0, 0.6, "law"), record(3, 0, 0.6, "law")]
    assert choice_metrics(subjects, "mmlu")["mmlu/macro_accuracy"] == 0.5
    scores = Scores(nll=np.ones(4), num_tokens=np.ones(4, dtype=int), num_correct=np.zeros(4, dtype=int))
    law, other = make_records([item(0, ["a", "b"], 0, subject="law"), item(1, ["a", "b"], 0)], scores)
    assert law["subject"] == "law" and "subject" not in other


def test_calibration_error_by_hand():
    confidence = np.array([0.31, 0.39, 0.4, 0.95, 1.0])
    right = np.array([1.0, 0.0, 0.0, 1.0, 1.0])
    bins = [abs(1 - 0.70), abs(0 - 0.4), abs(2 - 1.95)]  # 0.3 to 0.4, 0.4 to 0.5, the last
    assert calibration_error(confidence, right) == pytest.approx(sum(bins) / 5)
    assert calibration_error(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0


def data_config(**settings) -> DataConfig:
    return DataConfig(train=[SourceConfig(path="none.jsonl")], **settings)


def test_options_stand_where_completions_do(tiny):
    _, tokenizer = tiny
    request = encode_items([item(0, ["w3 w4", "w5"], 0)], tokenizer, data_config())[0]
    w = tokenizer.convert_tokens_to_ids
    assert request.ids == ["i0"] and request.prompts[0].tolist() == [tokenizer.bos_token_id, w("w1"), w("w2"), w("\n")]
    assert [own.tolist() for own in request.continuations[0]] == [[w("w3"), w("w4")], [w("w5")]]  # no eos


def test_a_long_prompt_loses_its_beginning_and_an_option_nothing(tiny):
    _, tokenizer = tiny
    long = item(0, ["w1 w2 w3", "w4"], 0, question=" ".join(f"w{i}" for i in range(20, 60)))
    request, num_truncated = encode_items([long, item(1, ["w1", "w2"], 0)], tokenizer, data_config(max_length=12))
    prompts, options = request.prompts, request.continuations
    assert [len(prompt) for prompt in prompts] == [9, 4] and num_truncated == 1
    assert prompts[0][0] == tokenizer.bos_token_id and prompts[0][-2] == tokenizer.convert_tokens_to_ids("w59")
    assert options[0][0].tolist() == tokenizer.convert_tokens_to_ids(["w1", "w2", "w3"])


def test_prompts_that_differ_by_option_are_apart(tiny):
    """As a chat template may have it that looks at the answer."""
    _, tokenizer = tiny
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ messages[-1]['content'] }} {{ m['content'] }}\n"
    template += "{% else %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endif %}{% endfor %}"
    odd = copy.deepcopy(tokenizer)
    odd.chat_template = template
    request = encode_items([item(0, ["w3", "w3", "w5"], 0)], odd, data_config())[0]
    assert request.ids == ["i0", "i0"] and [len(own) for own in request.continuations] == [2, 1]


def test_an_option_longer_than_the_context_is_named(tiny):
    with pytest.raises(BadInput) as caught:
        encode_items([item(6, ["w1 " * 20, "w2"], 0)], tiny[1], data_config(max_length=12))
    assert str(caught.value).startswith(
        "`items.jsonl:7 choices` is 'an option of 2"
    ) and "shorter than data.max_length (12)" in str(caught.value)


def test_choices_do_not_depend_on_the_batch_and_agree_with_one_at_a_time(tiny, tmp_path):
    model, tokenizer = tiny
    draw = np.random.default_rng(1)

    def text(n):
        return " ".join(f"w{draw.integers(91)}" for _ in range(n))

    rows = [
        {
            "id": f"q{n}",
            "question": text(draw.integers(1, 40)),
            "choices": [text(draw.integers(1, 9)) for _ in range(draw.integers(2, 6))],
            "answer": 0,
            "context": "w7 w8",
        }
        for n in range(8)
    ]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_choices(ChoiceTask(path=str(path)), Context(tokenizer, data_config(), 128, 0))
    plain = []
    for row in rows:
        prompt = tokenizer(f"w7 w8 \n\n {row['question']} \n")["input_ids"]
        for choice in row["choices"]:
            tokens = np.array(prompt + tokenizer(choice, add_special_tokens=False)["input_ids"])
            labels = np.where(np.arange(len(tokens)) < len(prompt), -100, tokens)
            nll, num_tokens, _ = one_at_a_time(model, tokens, labels)
            plain.append(-nll / num_tokens)
    for batch_tokens, share in [(1, True), (200, True), (5000, True), (200, False)]:
        [request] = prepared.requests
        measured = prepared.finish([run_score(model, request, batch_tokens, "cpu", 0, share=share)])
        np.testing.assert_allclose([s for record in measured.records for s in record["scores"]], plain, rtol=1e-5)
        start = 0
        for record, row in zip(measured.records, rows, strict=True):
            own = plain[start : start + len(row["choices"])]
            start += len(row["choices"])
            assert record["predicted"] == int(np.argmax(own)) and record["correct"] == (record["predicted"] == 0)
            assert record["probability"] == pytest.approx(math.exp(own[0]) / sum(map(math.exp, own)), rel=1e-5)


def test_items_are_read_from_jsonl_and_csv(tmp_path):
    rows = [
        {"id": "a", "question": "q", "choices": ["x", "y"], "answer": 1, "context": "c", "subject": "s"},
        {"question": "r", "choices": ["x", "y", "z"], "answer": 0},
    ]
    jsonl, table = tmp_path / "set.jsonl", tmp_path / "set.csv"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table.write_text(
        'id,question,choices,answer,context,subject\na,q,"[""x"", ""y""]",1,c,s\n,r,"[""x"", ""y"", ""z""]",0,,\n'
    )
    for path in (jsonl, table):
        first, second = read_items(ChoiceTask(path=str(path)))
        assert first == ChoiceRow("a", f"{path}:2" if path is table else f"{path}:1", "q", ("x", "y"), 1, "c", "s")
        assert (second.choices, second.answer, second.context) == (("x", "y", "z"), 0, "")
        assert second.id == f"{path.name}:{3 if path is table else 2}"
    assert len(read_items(ChoiceTask(path=str(jsonl), limit=1))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "choices` is 'missing', but must be given in every row"),
        ({"choices": "x"}, "choices` is 'text', but must be a list"),
        ({"choices": ["secret"]}, "choices` is 'a list of 1', but must be a list of at least 2 options"),
        ({"choices": ["x", " "]}, "choices.1` is 'empty', but must be text that is not empty"),
        ({"choices": ["x", 2]}, "choices.1` is 'a number'"),
        ({"answer": 2}, "answer` is 2, but must be the index of the right option, 0 to 1"),
        ({"answer": -1}, "answer` is -1"),
        ({"answer": "secret"}, "answer` is 'a text that is none of the 2 options'"),
        ({"answer": True}, "answer` is True"),
        ({"answer": None}, "answer` is 'missing'"),
        ({"question": ""}, "question` is 'empty'"),
        (
            {"context": {"a": "secret"}},
            "context` is 'an object', but must be text, a list of text, or an object with a list",
        ),
        ({"subject": 3}, "subject` is 'a number', but must be text, or left out"),
        ({"id": "first"}, "id` is 'first', but is at"),
    ],
)
def test_a_malformed_item_is_named_by_file_and_line(tmp_path, change, message):
    good = {"id": "first", "question": "q", "choices": ["x", "y"], "answer": 1}
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"id": "second"} | change) + "\n")
    with pytest.raises(BadInput) as caught:
        read_items(ChoiceTask(path=str(path)))
    assert f"{path}:2 {message}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_set_without_items_is_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text("\n")
    with pytest.raises(BadInput, match=r"evaluation.tasks.exam.path.*this one is empty"):
        read_items(ChoiceTask(name="exam", path=str(path)))
