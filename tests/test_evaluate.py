"""Likelihood and multiple choice, against values worked by hand and against a plain one-at-a-time loop."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bft_ray.config import ChoiceTask, DataConfig, ModelConfig, SourceConfig
from bft_ray.data.dataset import prepare
from bft_ray.data.pack import collate
from bft_ray.data.plan import layout
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.choice import (
    ChoiceItem,
    ChoiceRecord,
    choice_metrics,
    encode_items,
    make_records,
    read_items,
    score_choices,
)
from bft_ray.evaluate.likelihood import (
    LikelihoodSums,
    SequenceScores,
    cut_batches,
    score,
    score_micro_batches,
    score_sequences,
)
from bft_ray.model.causal_lm import load_model, load_tokenizer

# p(next | current) of a model that looks at one token only
NEXT = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])


class Bigram(torch.nn.Module):
    """Logits are log NEXT[token], plus a constant that log-softmax must take out."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        return SimpleNamespace(logits=NEXT[input_ids].log() + 3.0)


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


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 4, 100])
def test_likelihood_by_hand(packing, batch_tokens):
    scores = score_sequences(Bigram(), BY_HAND, batch_tokens, "cpu", packing=packing)
    expected = [-math.log(0.25) - math.log(0.4), -math.log(0.7), -math.log(0.5)]
    assert scores.nll == pytest.approx(expected, rel=1e-6)
    assert scores.num_tokens.tolist() == [2, 1, 1]
    assert scores.num_correct.tolist() == [1, 1, 1]


def test_metrics_by_hand():
    sums = score(Bigram(), BY_HAND, 8, "cpu")
    nll = -math.log(0.25 * 0.4 * 0.7 * 0.5)
    metrics = sums.metrics("validation")
    assert metrics["validation/nll"] == pytest.approx(nll / 4, rel=1e-6)
    assert metrics["validation/perplexity"] == pytest.approx((0.25 * 0.4 * 0.7 * 0.5) ** -0.25, rel=1e-6)
    assert metrics["validation/token_accuracy"] == 0.75
    assert metrics["validation/bits_per_byte"] == pytest.approx(nll / math.log(2) / 20, rel=1e-6)
    some = score(Bigram(), BY_HAND, 8, "cpu", indices=[1])
    assert (some.num_tokens, some.num_bytes) == (1, 5) and some.nll_sum == pytest.approx(-math.log(0.7), rel=1e-6)


def test_metrics_at_the_edges():
    assert LikelihoodSums(1e6, 1, 0).metrics("x")["x/perplexity"] == math.inf
    assert "x/bits_per_byte" not in LikelihoodSums(1.0, 1, 0).metrics("x")
    with pytest.raises(ValueError, match=r"no supervised token"):
        LikelihoodSums(0.0, 0, 0).metrics("x")


def test_within_training_an_empty_micro_batch_costs_a_forward_pass_and_adds_nothing():
    calls = []

    def logits(micro):
        calls.append(micro.input_ids.shape)
        return NEXT[micro.input_ids].log()

    micro_batches = [collate(BY_HAND, places, True, 0) for places in ([0, 2], [1], [])]
    sums = score_micro_batches(logits, micro_batches, "cpu")
    assert sums.dtype == torch.float64
    assert sums.tolist() == pytest.approx([-math.log(0.25 * 0.4 * 0.7 * 0.5), 4, 3], rel=1e-6)
    assert calls == [(1, 7), (1, 2), (1, 2)]


def test_nan_is_no_score():
    class Broken(torch.nn.Module):
        def forward(self, input_ids, **_):
            return SimpleNamespace(logits=torch.where(input_ids == 3, math.nan, 0.0)[..., None].expand(-1, -1, 4))

    rows = Rows(([1, 3, 0], [-100, 3, 0]), ([1, 1], [-100, 1]))
    with pytest.raises(BftError, match=r"not finite for s0; try model.dtype=fp32"):
        score_sequences(Broken(), rows, 8, "cpu")


@pytest.mark.parametrize("packing", [False, True])
def test_batches_hold_every_sequence_once_within_the_budget(packing):
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    batches = cut_batches(lengths, 128, packing)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    for batch in batches:
        cost = lengths[batch].sum() if packing else len(batch) * lengths[batch].max()
        assert cost <= 128
    assert lengths[batches[0][0]] == lengths.max()
    assert [batch.tolist() for batch in cut_batches(np.array([9, 2, 2]), 4)] == [[0], [1, 2]]


# --- a transformers model -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_model(tiny_model, tmp_path_factory):
    """The tiny model with a tokenizer that keeps a line end apart from a word, as real ones do."""
    from tokenizers import pre_tokenizers

    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_model, folder)
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    tokenizer.save_pretrained(folder)
    return folder


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


def test_any_batching_agrees_with_one_at_a_time(tiny, tiny_set):
    model, _ = tiny
    model.train()
    plain = [one_at_a_time(model, tiny_set.tokens(i), tiny_set.labels(i)) for i in range(len(tiny_set))]
    for batch_tokens, packing in [(128, False), (700, False), (4096, False), (128, True), (700, True)]:
        scores = score_sequences(model, tiny_set, batch_tokens, "cpu", packing=packing)
        np.testing.assert_allclose(scores.nll, [nll for nll, _, _ in plain], rtol=1e-5)
        assert scores.num_tokens.tolist() == [n for _, n, _ in plain] == tiny_set.num_supervised.tolist()
        assert scores.num_correct.tolist() == [n for _, _, n in plain]
    assert model.training  # left as it was


def test_within_training_shares_of_ranks_add_up_to_the_whole(tiny, tiny_set):
    model, _ = tiny
    model.eval()

    def logits(micro):
        return model(micro.input_ids, attention_mask=micro.attention_mask, position_ids=micro.position_ids).logits

    whole = score(model, tiny_set, 512, "cpu")
    shares = layout(tiny_set.lengths.tolist(), 3, 256, None, True)
    assert len({len(share) for share in shares}) == 1
    ranks = [score_micro_batches(logits, (collate(tiny_set, m, True, 0) for m in share), "cpu") for share in shares]
    total = torch.stack(ranks).sum(0)
    parts = LikelihoodSums.from_tensor(total, int(tiny_set.num_bytes.sum()))
    assert parts.nll_sum == pytest.approx(whole.nll_sum, rel=1e-6)
    assert (parts.num_tokens, parts.num_correct, parts.num_bytes) == (
        whole.num_tokens,
        whole.num_correct,
        whole.num_bytes,
    )


# --- multiple choice ------------------------------------------------------------------------------


def item(number, choices, answer, question="w1 w2", context=""):
    return ChoiceItem(f"i{number}", f"items.jsonl:{number + 1}", question, tuple(choices), answer, context)


def test_choice_by_hand():
    items = [item(0, ["a", "b"], 1), item(1, ["a", "b", "c"], 0)]
    scores = SequenceScores(
        nll=np.array([2.0, 3.0, 1.0, 1.0 + 1e-7, 4.0]),
        num_tokens=np.array([1, 3, 1, 1, 2]),
        num_correct=np.zeros(5, dtype=int),
    )
    first, second = make_records(items, scores)
    assert first.scores == (-2.0, -1.0) and first.predicted == 1  # by sums, option 0 would win
    assert first.probability == pytest.approx(math.exp(-1) / (math.exp(-1) + math.exp(-2)))
    assert second.predicted == 0  # a tie within rounding goes to the first
    assert second.probability == pytest.approx(math.exp(-1) / (2 * math.exp(-1) + math.exp(-2)), rel=1e-6)


def test_choice_metrics_by_hand():
    def record(number, predicted, probability):
        return ChoiceRecord(f"i{number}", 0, predicted, probability, (0.0, 0.0))

    metrics = choice_metrics([record(0, 0, 0.8), record(1, 1, 0.4), record(2, 0, 0.6), record(3, 0, 0.6)], "mmlu", 1)
    assert metrics["mmlu/accuracy"] == 0.75 and metrics["mmlu/probability"] == pytest.approx(0.6)
    assert metrics["mmlu/accuracy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert metrics["mmlu/probability_se"] == pytest.approx(math.sqrt(0.08 / 3 / 4))
    assert metrics["mmlu/accuracy_detectable"] == pytest.approx(1.96 * math.sqrt(2) * 0.25)
    assert (metrics["mmlu/num_items"], metrics["mmlu/num_truncated"]) == (4.0, 1.0)
    assert "mmlu/accuracy_se" not in choice_metrics([record(0, 0, 0.8)], "mmlu")


def data_config(**settings) -> DataConfig:
    return DataConfig(train=[SourceConfig(path="none.jsonl")], **settings)


def test_options_stand_where_completions_do(tiny):
    _, tokenizer = tiny
    options = encode_items([item(0, ["w3 w4", "w5"], 0)], tokenizer, data_config())
    bos, w = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids
    assert options.tokens(0)[0] == bos
    assert options.tokens(0)[-2:].tolist() == [w("w3"), w("w4")] and options.tokens(1)[-1] == w("w5")  # no eos
    assert options.tokens(0)[:-2].tolist() == options.tokens(1)[:-1].tolist()
    assert options.labels(0)[:-2].tolist() == [-100] * (len(options.tokens(0)) - 2)
    assert options.labels(0)[-2:].tolist() == options.tokens(0)[-2:].tolist()


def test_a_long_prompt_loses_its_beginning_and_an_option_nothing(tiny):
    _, tokenizer = tiny
    items = [
        item(0, ["w1 w2 w3", "w4"], 0, question=" ".join(f"w{i}" for i in range(20, 60))),
        item(1, ["w1", "w2"], 0),
    ]
    options = encode_items(items, tokenizer, data_config(max_length=12))
    assert [len(options.tokens(i)) for i in (0, 1)] == [12, 10]
    assert options.tokens(0)[0] == tokenizer.bos_token_id
    assert options.tokens(0)[:-3].tolist() == options.tokens(1)[:-1].tolist()
    assert options.tokens(0)[-3:].tolist() == tokenizer.convert_tokens_to_ids(["w1", "w2", "w3"])
    assert options.num_truncated == 1


def test_an_option_longer_than_the_context_is_named(tiny):
    with pytest.raises(BadInput) as caught:
        encode_items([item(6, ["w1 " * 20, "w2"], 0)], tiny[1], data_config(max_length=12))
    assert str(caught.value).startswith(
        "`items.jsonl:7 choices` is 'an option of 2"
    ) and "shorter than data.max_length (12)" in str(caught.value)


def test_choices_do_not_depend_on_the_batch_and_agree_with_one_at_a_time(tiny):
    model, tokenizer = tiny
    draw = np.random.default_rng(1)

    def text(n):
        return " ".join(f"w{draw.integers(91)}" for _ in range(n))

    items = [
        item(
            n,
            [text(draw.integers(1, 9)) for _ in range(draw.integers(2, 6))],
            0,
            text(draw.integers(1, 40)),
            "w7 w8",
        )
        for n in range(8)
    ]
    options = encode_items(items, tokenizer, data_config())
    plain = []
    for i in range(len(options.ids)):
        nll, num_tokens, _ = one_at_a_time(model, options.tokens(i), options.labels(i))
        plain.append(-nll / num_tokens)
    for batch_tokens, packing in [(1, False), (200, False), (5000, False), (200, True)]:
        records = score_choices(model, tokenizer, items, data_config(), batch_tokens, "cpu", packing=packing)
        np.testing.assert_allclose([s for record in records for s in record.scores], plain, rtol=1e-5)
        start = 0
        for record, source in zip(records, items, strict=True):
            own = plain[start : start + len(source.choices)]
            start += len(source.choices)
            assert record.predicted == int(np.argmax(own))
            assert record.probability == pytest.approx(math.exp(own[0]) / sum(map(math.exp, own)), rel=1e-5)


def test_items_are_read_from_jsonl_and_csv(tmp_path):
    rows = [
        {"id": "a", "question": "q", "choices": ["x", "y"], "answer": 1, "context": "c", "subject": "s"},
        {"question": "r", "choices": ["x", "y", "z"], "answer": 0},
    ]
    jsonl, table = tmp_path / "set.jsonl", tmp_path / "set.csv"
    jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table.write_text('id,question,choices,answer,context\na,q,"[""x"", ""y""]",1,c\n,r,"[""x"", ""y"", ""z""]",0,\n')
    for path in (jsonl, table):
        first, second = read_items(ChoiceTask(path=str(path)))
        assert first == ChoiceItem("a", f"{path}:2" if path is table else f"{path}:1", "q", ("x", "y"), 1, "c")
        assert (second.choices, second.answer, second.context) == (("x", "y", "z"), 0, "")
        assert second.id == f"{path.name}:{3 if path is table else 2}"
    assert len(read_items(ChoiceTask(path=str(jsonl), limit=1))) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "choices` is 'missing', but must be a list of at least 2 options"),
        ({"choices": "x"}, "choices` is 'str', but must be a list"),
        ({"choices": ["secret"]}, "choices` is 'a list of 1', but must be a list of at least 2 options"),
        ({"choices": ["x", " "]}, "choices.1` is 'empty', but must be text that is not empty"),
        ({"choices": ["x", 2]}, "choices.1` is 'int'"),
        ({"answer": 2}, "answer` is 2, but must be the index of the right option, 0 to 1"),
        ({"answer": -1}, "answer` is -1"),
        ({"answer": "secret"}, "answer` is 'str', but must be the index"),
        ({"answer": True}, "answer` is True"),
        ({"answer": None}, "answer` is 'missing'"),
        ({"question": ""}, "question` is 'empty'"),
        ({"context": ["secret"]}, "context` is 'list', but must be text, or left out"),
        ({"id": "first"}, "id` is 'first', but must be unique, but stands at"),
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
    with pytest.raises(BadInput, match=r"evaluation.choices.exam.path.*this one is empty"):
        read_items(ChoiceTask(name="exam", path=str(path)))
