"""Likelihood of text: bits per byte against a plain loop, windows worked by hand, independence of the batch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.tasks import TextTask
from bft_ray.data.dataset import prepare as prepare_data
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Context
from bft_ray.evaluate.engine.score import run_score
from bft_ray.evaluate.tasks.text import Text, prepare, prepare_dataset, windows
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.study.confirm.items import item_scores


@pytest.fixture(scope="module")
def tiny(tiny_model):
    config = ModelConfig(path=str(tiny_model), dtype="fp32")
    return load_model(config).eval(), load_tokenizer(config)


def context(tokenizer, max_length=64) -> Context:
    return Context(tokenizer, DataConfig(train=[SourceConfig(path="none.jsonl")], max_length=max_length), 256, 0)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def words(draw, n):
    return " ".join(f"w{draw.integers(91)}" for _ in range(n))


def measure(model, prepared, batch_tokens=256):
    return prepared.finish([run_score(model, request, batch_tokens, "cpu", 0) for request in prepared.requests])


def test_windows_by_hand():
    text = Text("a", "0000", np.arange(10, 20), np.array([False] + [True] * 9), 0)
    cut = [(prompt.tolist(), own.tolist(), counted) for prompt, own, counted in windows(text, 4, bos=None)]
    assert cut == [
        ([10], [11, 12, 13], None),
        ([12, 13], [14, 15], None),
        ([14, 15], [16, 17], None),
        ([16, 17], [18, 19], None),
    ]
    with_bos = [(prompt.tolist(), own.tolist()) for prompt, own, _ in windows(text, 4, bos=10)]
    assert with_bos == [([10], [11, 12, 13]), ([10, 13], [14, 15]), ([10, 15], [16, 17]), ([10, 17], [18, 19])]
    assert [(p.tolist(), o.tolist()) for p, o, _ in windows(text, 2, bos=10)][:2] == [([10], [11]), ([10], [12])]


def test_windows_pass_over_what_is_not_scored():
    scored = np.array([0, 0, 0, 0, 0, 1, 1, 0, 1, 0], dtype=bool)
    cut = list(windows(Text("a", "0000", np.arange(10), scored, 0), 4, bos=None))
    assert [(prompt.tolist(), own.tolist()) for prompt, own, _ in cut] == [
        ([2, 3, 4], [5]),
        ([4, 5], [6]),
        ([6, 7], [8]),
    ]
    ((prompt, own, counted),) = windows(Text("a", "0000", np.arange(10), scored, 0), 20, bos=None)
    assert (prompt.tolist(), own.tolist()) == ([0, 1, 2, 3, 4], [5, 6, 7, 8])
    assert counted is not None and counted.tolist() == [True, True, False, True]


@pytest.mark.parametrize("max_length", [2, 3, 5, 16, 100])
@pytest.mark.parametrize("bos", [0, None])
def test_every_token_is_scored_once(max_length, bos):
    draw = np.random.default_rng(max_length)
    tokens = np.arange(57)
    scored = draw.random(57) < 0.7
    scored[0] = False
    seen = []
    for prompt, own, counted in windows(Text("a", "0000", tokens, scored, 0), max_length, bos):
        assert len(prompt) >= 1 and len(prompt) + len(own) <= max_length
        seen += own[counted if counted is not None else slice(None)].tolist()
    assert seen == np.flatnonzero(scored).tolist()


def test_plain_text_agrees_with_a_plain_loop(tiny, tmp_path):
    model, tokenizer = tiny
    draw = np.random.default_rng(0)
    texts = [words(draw, n) for n in (3, 40, 1, 17)]
    path = write(tmp_path / "texts.jsonl", [{"text": text} for text in texts] + [{"text": " "}])
    measured = measure(model, prepare(TextTask(name="general", path=path), context(tokenizer)))
    nll = num_tokens = num_bytes = num_correct = 0
    for text in texts:
        ids = torch.tensor([tokenizer(f"{text} <eos>")["input_ids"]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        for t in range(1, ids.shape[1]):
            nll -= float(logp[t - 1, ids[0, t]])
            num_correct += int(logp[t - 1].argmax() == ids[0, t])
        num_tokens += ids.shape[1] - 1
        num_bytes += len(text.encode())
    metrics = measured.metrics
    assert metrics["general/nll"] == pytest.approx(nll / num_tokens, rel=1e-6)
    assert metrics["general/perplexity"] == pytest.approx(math.exp(nll / num_tokens), rel=1e-5)
    assert metrics["general/bits_per_byte"] == pytest.approx(nll / math.log(2) / num_bytes, rel=1e-6)
    assert metrics["general/token_accuracy"] == num_correct / num_tokens
    assert (metrics["general/num_items"], metrics["general/num_left_out"]) == (4, 1)
    assert [record["id"] for record in measured.records] == [f"texts.jsonl:{n}" for n in (1, 2, 3, 4)]
    assert sum(record["nll"] for record in measured.records) == pytest.approx(nll, rel=1e-6)
    assert not any(
        isinstance(v, str) for record in measured.records for k, v in record.items() if k not in ("id", "content")
    )


def test_the_error_by_hand(tiny, tmp_path):
    path = write(tmp_path / "t.jsonl", [{"text": "w1 w2"}, {"text": "w3"}, {"text": "w4 w5 w6"}])
    measured = measure(tiny[0], prepare(TextTask(name="t", path=path), context(tiny[1])))
    rows = [(r["nll"] / math.log(2), r["num_bytes"]) for r in measured.records]
    ratio = sum(a for a, _ in rows) / sum(b for _, b in rows)
    spread = sum((a - ratio * b) ** 2 for a, b in rows)
    assert measured.metrics["t/bits_per_byte_se"] == pytest.approx(math.sqrt(3 / 2 * spread) / sum(b for _, b in rows))


def test_completions_and_batches(tiny, tiny_data):
    """A set of prompts and completions is what validation measures; windows leave no token out."""
    model, tokenizer = tiny
    sources = [SourceConfig(path=str(tiny_data), limit=12)]
    task = TextTask(name="answers", path=str(tiny_data), limit=12)
    wide, narrow = context(tokenizer, 128), context(tokenizer, 16)
    dataset = prepare_data(sources, tokenizer, wide.data, "data.validation")
    expected = measure(model, prepare_dataset(dataset, "answers", wide))
    for batch_tokens in (1, 300, 4000):
        found = measure(model, prepare(task, wide), batch_tokens)
        assert found.metrics == pytest.approx(expected.metrics | {"answers/num_left_out": 0}, rel=1e-5)
    cut = measure(model, prepare(task, narrow))
    assert [r["num_tokens"] for r in cut.records] == [r["num_tokens"] for r in expected.records]
    assert sum(len(ids) for ids in [r.ids for r in prepare(task, narrow).requests]) > 12


def test_wrong_answers_are_found_by_their_likelihood(tiny, tmp_path):
    """The area is the share of pairs of a wrong and a right answer in which the wrong one is less likely."""
    draw = np.random.default_rng(4)
    path = write(
        tmp_path / "t.jsonl",
        [{"id": f"r{i}", "prompt": words(draw, 5), "completion": words(draw, 4)} for i in range(30)],
    )
    task = TextTask(name="t", path=path, wrong={"share": 0.4})
    measured = measure(tiny[0], prepare(task, context(tiny[1])))
    mean = {flag: [r["nll"] / r["num_tokens"] for r in measured.records if r["is_wrong"] == flag] for flag in (0, 1)}
    pairs = [(wrong > right) + 0.5 * (wrong == right) for wrong in mean[1] for right in mean[0]]
    assert measured.metrics["t/wrong_auroc"] == pytest.approx(np.mean(pairs)) and 0.2 < np.mean(pairs) < 0.8
    assert np.mean(list(item_scores("t/wrong_auroc", measured.records).values())) == pytest.approx(np.mean(pairs))
    assert "t/wrong_auroc" in task.judged() and "t/wrong_auroc" not in TextTask(name="t", path=path).judged()
    plain = measure(tiny[0], prepare(TextTask(name="t", path=path), context(tiny[1])))
    assert "t/wrong_auroc" not in plain.metrics and "is_wrong" not in plain.records[0]


def test_an_empty_set_is_refused(tiny, tmp_path):
    with pytest.raises(BadInput, match=r"evaluation.tasks.t.path.*rows that have text"):
        prepare(TextTask(name="t", path=write(tmp_path / "t.jsonl", [{"text": ""}])), context(tiny[1]))
    with pytest.raises(BadInput, match=r"t.jsonl:1"):
        prepare(TextTask(name="t", path=write(tmp_path / "t.jsonl", [{"length": "secret"}])), context(tiny[1]))
