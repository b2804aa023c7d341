"""Yes or no about pairs: against scikit-learn and a plain loop, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.tasks import PairsTask
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Context, Scores
from bft_ray.evaluate.engine.score import run_score
from bft_ray.evaluate.tasks.pairs import fill, prepare, read_pairs
from bft_ray.model.causal_lm import load_model, load_tokenizer

QUESTION = "w1 {gene_a} w2 {gene_b}"


@pytest.fixture(scope="module")
def tiny(tiny_model):
    config = ModelConfig(path=str(tiny_model), dtype="fp32")
    return load_model(config).eval(), load_tokenizer(config)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    draw = np.random.default_rng(0)
    rows = [{"gene_a": f"w{draw.integers(40)}", "gene_b": f"w{draw.integers(40)}", "label": n % 2} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def context(tokenizer) -> Context:
    return Context(tokenizer, DataConfig(train=[SourceConfig(path="none.jsonl")], max_length=64), 256, 0)


def test_pairs_agree_with_a_plain_loop_and_scikit_learn(tiny, pairs_file):
    model, tokenizer = tiny
    task = PairsTask(path=str(pairs_file), question=QUESTION, yes="w3 w4", no="w5")
    prepared = prepare(task, context(tokenizer))
    rows = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    scores, labels = [], [row["label"] for row in rows]
    for row in rows:
        logp = []
        for answer in ("w3 w4", "w5"):
            prompt = tokenizer(f"w1 {row['gene_a']} w2 {row['gene_b']} \n")["input_ids"]  # bos first
            ids = torch.tensor(prompt + tokenizer(answer, add_special_tokens=False)["input_ids"])
            with torch.no_grad():
                table = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
            logp.append(sum(float(table[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
        scores.append(logp[0] - logp[1])
    for batch_tokens, share in [(1, True), (64, True), (1000, False)]:
        [request] = prepared.requests
        measured = prepared.finish([run_score(model, request, batch_tokens, "cpu", 0, share=share)])
        np.testing.assert_allclose([r["score"] for r in measured.records], scores, rtol=1e-5, atol=6e-5)
        assert measured.metrics["pairs/auroc"] == pytest.approx(roc_auc_score(labels, scores))
        assert measured.metrics["pairs/auprc"] == pytest.approx(average_precision_score(labels, scores))
    assert 0.02 < measured.metrics["pairs/auroc_se"] < 0.2
    assert measured.metrics["pairs/num_items"] == 40 and measured.records[0]["id"] == "pairs.jsonl:1"


def test_a_ranking_by_hand(tiny, pairs_file):
    """Scores 3 1 | 2 0 for the labels 1 1 | 0 0: three of four comparisons are right."""
    task = PairsTask(path=str(pairs_file), question=QUESTION, limit=4)
    prepared = prepare(task, context(tiny[1]))
    labels = np.array([row["label"] for row in map(json.loads, pairs_file.read_text().splitlines()[:4])])
    nll = np.zeros((4, 2))
    nll[labels == 1, 1], nll[labels == 0, 1] = [3, 1], [2, 0]
    measured = prepared.finish([Scores(nll.ravel(), np.ones(8, dtype=int), np.ones(8, dtype=int))])
    assert measured.metrics["pairs/auroc"] == 0.75
    assert measured.metrics["pairs/auprc"] == pytest.approx((1 + 2 / 3) / 2)


def test_a_template_keeps_other_braces():
    assert fill("{a} {gene_a}", gene_a="X") == "{a} X"


def test_labels_as_cells_of_a_table(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("gene_a,gene_b,label\na,b,1.0\nc,d,0.0\ne,f,1\n")
    assert [pair.label for pair in read_pairs(str(path), None, "evaluation.tasks.pairs")] == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gene_a": None}, "gene_a` is 'missing', but must be the name of a gene"),
        ({"gene_b": " "}, "gene_b` is 'empty'"),
        ({"label": 2}, "label` is 2, but must be 0 or 1"),
        ({"label": "secret"}, "label` is 'text', but must be 0 or 1"),
        ({"label": True}, "label` is True"),
        ({"id": "first"}, "id` is 'first', but is at"),
    ],
)
def test_a_malformed_pair_is_named_by_file_and_line(tmp_path, change, message):
    good = {"id": "first", "gene_a": "a", "gene_b": "b", "label": 1}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | {"id": "second", "label": 0} | change) + "\n")
    with pytest.raises(BadInput) as caught:
        read_pairs(str(path), None, "evaluation.tasks.pairs")
    assert f"{path}:2 {message}" in str(caught.value) and "secret" not in str(caught.value)


def test_one_label_alone_is_refused(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("gene_a,gene_b,label\na,b,1\nc,d,1\n")
    with pytest.raises(BadInput, match=r"evaluation.tasks.p.path.*pairs of both labels"):
        read_pairs(str(path), None, "evaluation.tasks.p")
