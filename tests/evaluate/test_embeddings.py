"""Embeddings of texts, classifiers on pairs of them, and their figures, against values worked by hand, a plain
one-at-a-time loop, and scikit-learn used directly.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.metrics import describe
from bft_ray.config.tasks import Decoding, EmbeddingPairsTask
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.classify import (
    areas,
    bootstrap_error,
    fit_classifiers,
    keyed_order,
    pair_features,
    ranking_metrics,
    unit,
    with_error,
)
from bft_ray.evaluate.engine.embed import cut_texts, run_embed
from bft_ray.evaluate.engine.request import Context, Embed, Generate
from bft_ray.evaluate.tasks.embedding_pairs import prepare
from bft_ray.model.causal_lm import load_model, load_tokenizer
from tests.support.paths import SHARED


@pytest.fixture(scope="module")
def tiny(tiny_model):
    config = ModelConfig(path=str(tiny_model), dtype="fp32")
    return load_model(config).eval(), load_tokenizer(config)


def context_of(tokenizer, max_length=64) -> Context:
    data = DataConfig(train=[SourceConfig(path="none.jsonl")], max_length=max_length)
    return Context(tokenizer, data, batch_tokens=256, seed=0)


# --- the verb -----------------------------------------------------------------------------------------------


def sequences(n=23, seed=0) -> Embed:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(5, 96, draw.integers(1, 40)).astype(np.int32) for _ in range(n)]
    return Embed([f"s{i}" for i in range(n)], rows)


@pytest.mark.parametrize("batch_tokens", [1, 50, 100_000])
def test_embeddings_are_means_of_hidden_states_however_they_are_batched(tiny, batch_tokens):
    model, _ = tiny
    request = sequences()
    made = run_embed(model, request, batch_tokens, "cpu", pad_id=0)
    assert made.dtype == np.float32
    with torch.no_grad():
        for row, tokens in zip(made, request.sequences, strict=True):
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            last = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]  # after the final norm
            assert row == pytest.approx(last.mean(0).numpy(), rel=1e-5, abs=1e-5)


def test_embedding_leaves_the_mode_of_the_model_alone(tiny):
    model, _ = tiny
    model.train()
    run_embed(model, sequences(2), 64, "cpu", 0)
    assert model.training
    model.eval()
    assert run_embed(model, Embed([], []), 64, "cpu", 0).shape[0] == 0


def test_an_embedding_that_is_no_number_names_its_sequence(tiny_model):
    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32")).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = math.nan
    request = Embed(["fine", "broken"], [np.array([5, 6]), np.array([7])])
    with pytest.raises(BftError, match=r"not finite for broken; try"):
        run_embed(model, request, 64, "cpu", 0)


def test_texts_are_cut_and_their_pieces_averaged_by_length(tiny):
    _, tokenizer = tiny
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (3, 7, 8)]
    pieces = cut_texts(["a", "b", "c"], ["f:1", "f:2", "f:3"], texts, context_of(tokenizer, max_length=8))
    bos = tokenizer.bos_token_id
    assert pieces.request.ids == ["a", "b", "c/0", "c/1"]
    assert [len(s) for s in pieces.request.sequences] == [4, 8, 5, 5]
    assert all(s[0] == bos for s in pieces.request.sequences)
    body = [token for s in pieces.request.sequences[2:] for token in s[1:]]
    assert body == tokenizer(texts[2], add_special_tokens=False)["input_ids"]
    answers = np.array([[1.0], [2.0], [3.0], [5.0]], dtype=np.float32)
    assert pieces.join(answers).tolist() == [[1.0], [2.0], [4.0]]
    uneven = replace(
        pieces, request=Embed(["c/0", "c/1"], [np.zeros(1), np.zeros(3)]), owner=np.zeros(2, int), num_texts=1
    )
    assert uneven.join(answers[2:]).tolist() == [[(3 + 3 * 5) / 4]]


def test_a_text_without_a_token_is_refused(tiny):
    _, tokenizer = tiny
    with pytest.raises(BadInput, match=r"genes.jsonl:4.*a text without tokens"):
        cut_texts(["a"], ["genes.jsonl:4"], [" "], context_of(tokenizer))


# --- figures ------------------------------------------------------------------------------------------------


def test_areas_by_hand():
    """Ones at 4 and 2, zeros at 3 and 1: of four comparisons the ones win three; precision is 1 at the first one and
    2/3 at the second.
    """
    labels = np.array([1, 0, 1, 0])
    auroc, auprc = areas(labels, np.array([4.0, 3.0, 2.0, 1.0]))
    assert auroc == pytest.approx([0.75]) and auprc == pytest.approx([(1 + 2 / 3) / 2])
    tied = areas(labels, np.array([1.0, 1.0, 1.0, 1.0]))
    assert [float(value[0]) for value in tied] == pytest.approx([0.5, 0.5])
    twice = areas(labels, np.array([4.0, 3.0, 2.0, 1.0]), np.array([[1, 0, 2, 1], [1, 0, 1, 0]]))
    assert twice[0][0] == 1.0 and math.isnan(twice[0][1]) and math.isnan(twice[1][1])


@pytest.mark.parametrize("seed", range(5))
def test_areas_agree_with_scikit_learn(seed):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, 80)
    scores = np.round(draw.normal(size=80) + labels, 1)  # with ties
    counts = draw.multinomial(80, np.full(80, 1 / 80), size=3)
    for made, direct in zip(areas(labels, scores, counts), (roc_auc_score, average_precision_score), strict=True):
        assert made == pytest.approx([direct(labels, scores, sample_weight=own) for own in counts], abs=1e-12)
    metrics = ranking_metrics(labels, scores, seed)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics["auprc"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics == ranking_metrics(labels, scores, seed)


def test_the_error_of_an_auroc_is_near_its_formula():
    """Hanley and McNeil 1982, for normal scores one deviation apart, 100 against 100."""
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    metrics = ranking_metrics(labels, draw.normal(size=200) + labels, 0)
    a = metrics["auroc"]
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + 99 * (q1 - a * a) + 99 * (q2 - a * a)) / 100**2)
    assert metrics["auroc_se"] == pytest.approx(error, rel=0.1)
    assert metrics["auroc_detectable"] == pytest.approx(2.8016 * math.sqrt(2) * metrics["auroc_se"], rel=0.01)


def test_errors_by_hand():
    assert with_error("x/ari", 1.0, 0.0) == {"x/ari": 1.0}
    assert with_error("x/ari", 0.5, 0.1) == pytest.approx({"x/ari": 0.5, "x/ari_se": 0.1, "x/ari_detectable": 0.396204})
    values = np.random.default_rng(0).normal(size=400)
    made = bootstrap_error(lambda rows: float(values[rows].mean()), 400, seed=0, draws=500)
    assert made == pytest.approx(values.std() / 20, rel=0.1)
    assert unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]
    order = keyed_order(["a", "b", "c", "d"], 0)
    other = keyed_order(["d", "b", "a", "c"], 0)
    assert [["a", "b", "c", "d"][i] for i in order] == [["d", "b", "a", "c"][i] for i in other]
    assert any(keyed_order(["a", "b", "c", "d"], seed) != order for seed in range(1, 5))


def test_features_of_a_pair_do_not_know_its_order():
    a, b = np.array([[1.0, -2.0]]), np.array([[3.0, 0.5]])
    assert pair_features(a, b).tolist() == [[2.0, 2.5, 3.0, -1.0]]
    assert pair_features(a, b).tolist() == pair_features(b, a).tolist()


def test_classifiers_agree_with_scikit_learn_and_learn_what_is_there():
    draw = np.random.default_rng(0)
    train, test = draw.normal(size=(300, 6)) * [1, 10, 1, 1, 1, 0] + 5, draw.normal(size=(100, 6)) + 5
    labels, truth = (train[:, 0] > 5).astype(int), (test[:, 0] > 5).astype(int)
    made = fit_classifiers(train, labels, test, seed=0)
    direct = make_pipeline(StandardScaler(), LogisticRegression(C=1 / 6, max_iter=2000, tol=1e-6)).fit(train, labels)
    assert made["logistic"] == pytest.approx(direct.predict_proba(test)[:, 1], abs=1e-8)
    assert roc_auc_score(truth, made["logistic"]) > 0.97 and roc_auc_score(truth, made["mlp"]) > 0.95
    again = fit_classifiers(train, labels, test, seed=0)
    assert all((made[name] == again[name]).all() for name in made)
    noisy = fit_classifiers(train + draw.normal(size=train.shape) * 1e-6, labels, test, seed=0)
    assert made["logistic"] == pytest.approx(noisy["logistic"], abs=1e-4)


# --- the task -----------------------------------------------------------------------------------------------

KINDS = ["kinase", "channel", "histone"]


@pytest.fixture
def genes(tmp_path):
    """60 invented genes of three kinds whose words tell them; two interact when they are of one kind. The last
    ten of each kind's 20 are tested on; one training pair in five touches one of those.
    """
    draw = random.Random(0)
    words = {kind: [f"w{i + 30 * k}" for i in range(4)] for k, kind in enumerate(KINDS)}
    names = [(f"{kind[:3].upper()}{i}", kind) for kind in KINDS for i in range(20)]
    rows = [{"gene": n, "description": " ".join(draw.choices(words[kind], k=12))} for n, kind in names]
    fitted = [one for one in names if int(one[0][3:]) < 10]
    tested = [one for one in names if int(one[0][3:]) >= 10]

    def pairs(first, second, n):
        drawn = []
        while len(drawn) < n:
            (a, of_a), (b, of_b) = draw.choice(first), draw.choice(second)
            label = len(drawn) % 2
            if a != b and (of_a == of_b) == bool(label):
                drawn.append({"gene_a": a, "gene_b": b, "label": label})
        return drawn

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    train = pairs(fitted, fitted, 160) + pairs(fitted, tested, 40)
    draw.shuffle(train)
    files = {
        "descriptions": write("genes.jsonl", rows),
        "train": write("train.jsonl", train),
        "path": write("test.jsonl", pairs(tested, tested, 60)),
    }
    return SimpleNamespace(files=files, write=write, rows=rows, train=train, test=pairs(tested, tested, 60))


def read(path):
    return [json.loads(line) for line in open(path)]


def answer(prepared, model, batch_tokens=512):
    return prepared.finish([run_embed(model, request, batch_tokens, "cpu", 0) for request in prepared.requests])


def test_pairs_are_split_by_genes_and_measured(tiny, genes):
    model, tokenizer = tiny
    prepared = prepare(EmbeddingPairsTask(**genes.files), context_of(tokenizer))
    [request] = prepared.requests
    tested = {row[key] for row in read(genes.files["path"]) for key in ("gene_a", "gene_b")}
    kept = [row for row in genes.train if not {row["gene_a"], row["gene_b"]} & tested]
    assert len(kept) == 200 - sum(bool({row["gene_a"], row["gene_b"]} & tested) for row in genes.train) < 200
    measured = answer(prepared, model)
    metrics, records = measured.metrics, measured.records
    assert metrics["described_pairs/num_train_pairs"] == len(kept)
    assert metrics["described_pairs/num_dropped"] == 200 - len(kept) > 20
    assert metrics["described_pairs/num_undescribed"] == 0 and metrics["described_pairs/num_items"] == 60 == len(
        records
    )
    labels = [row["label"] for row in read(genes.files["path"])]
    assert [record["label"] for record in records] == labels
    assert records[3]["id"] == "test.jsonl:4" and "gene_a" not in records[3]
    # the same by scikit-learn, from the embeddings alone
    rows = dict(zip(request.ids, run_embed(model, request, 64, "cpu", 0).astype(float), strict=True))

    def features(pairs):
        return pair_features(*(np.stack([rows[row[key]] for row in pairs]) for key in ("gene_a", "gene_b")))

    x = features(kept)
    direct = make_pipeline(StandardScaler(), LogisticRegression(C=1 / x.shape[1], max_iter=2000, tol=1e-6))
    scores = direct.fit(x, [row["label"] for row in kept]).predict_proba(features(read(genes.files["path"])))[:, 1]
    assert [record["score"] for record in records] == pytest.approx(scores, abs=1e-4)
    assert metrics["described_pairs/embedding_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    assert metrics["described_pairs/embedding_auroc"] > 0.8  # three kinds of words are easy to tell
    mlp = [record["score_mlp"] for record in records]
    assert metrics["described_pairs/embedding_auroc_mlp"] == pytest.approx(roc_auc_score(labels, mlp), abs=1e-12)
    assert metrics["described_pairs/embedding_auprc_mlp"] == pytest.approx(
        average_precision_score(labels, mlp), abs=1e-12
    )
    assert metrics["described_pairs/embedding_auroc_detectable"] > metrics["described_pairs/embedding_auroc_se"] > 0
    assert all(describe(name) for name in metrics)


def test_neither_batches_nor_the_order_of_the_training_file_matter(tiny, genes):
    model, tokenizer = tiny
    task = EmbeddingPairsTask(**genes.files)
    one = answer(prepare(task, context_of(tokenizer)), model, batch_tokens=1)
    turned = genes.write("turned.jsonl", genes.train[::-1])
    all_at_once = answer(prepare(task.model_copy(update={"train": turned}), context_of(tokenizer)), model, 10**6)
    for name, value in one.metrics.items():
        assert all_at_once.metrics[name] == pytest.approx(value, abs=1e-5), name


def test_pairs_of_genes_without_a_description_are_counted(tiny, genes):
    model, tokenizer = tiny
    gone = {"KIN0", "KIN19"}
    few = genes.write("few.jsonl", [row for row in genes.rows if row["gene"] not in gone])
    task = EmbeddingPairsTask(**genes.files | {"descriptions": few})
    metrics = answer(prepare(task, context_of(tokenizer)), model).metrics
    every = genes.train + read(genes.files["path"])
    assert metrics["described_pairs/num_undescribed"] == sum(bool({r["gene_a"], r["gene_b"]} & gone) for r in every) > 0


def test_pairs_of_a_gene_with_itself_are_counted(tiny, genes):
    model, tokenizer = tiny
    own = [{"gene_a": f"KIN{i}", "gene_b": f"KIN{i}", "label": 1} for i in range(20)]
    more = {
        "train": genes.write("more.jsonl", genes.train + own[:5]),
        "path": genes.write("own.jsonl", own[10:] + genes.test),
    }
    [one, other] = (
        answer(prepare(EmbeddingPairsTask(**files), context_of(tokenizer)), model).metrics
        for files in (genes.files | {"path": genes.write("test.jsonl", genes.test)}, genes.files | more)
    )
    assert other == one | {"described_pairs/num_self_pairs": 15}


def test_generated_descriptions_go_through_the_encoder(tiny, genes, tmp_path):
    """Answers are made up here: what the model would say of a gene is its description."""
    _, tokenizer = tiny
    encoder = make_encoder(tmp_path / "encoder")
    decoding = Decoding(num_samples=2, temperature=1.0, max_new_tokens=16)
    task = EmbeddingPairsTask(
        **genes.files, source="generated", encoder=str(encoder), template="w1 {gene}", decoding=decoding
    )
    prepared = prepare(task, context_of(tokenizer))
    [request] = prepared.requests
    assert isinstance(request, Generate) and request.decoding == decoding
    described = {row["gene"]: row["description"] for row in genes.rows}
    said = [np.array(tokenizer(described[gene], add_special_tokens=False)["input_ids"]) for gene in request.ids]
    answers = [[own, own] for own in said]
    metrics = prepared.finish([answers]).metrics
    assert metrics["described_pairs/embedding_auroc"] > 0.8 and metrics["described_pairs/num_empty"] == 0
    # one sample of a gene may be empty; a gene of which nothing was said leaves its pairs out
    nothing = np.zeros(0, np.int32)
    quiet = [[own, nothing] if i else [nothing, nothing] for i, own in enumerate(said)]
    few = prepared.finish([quiet]).metrics
    touched = sum(request.ids[0] in (row["gene_a"], row["gene_b"]) for row in read(genes.files["path"]))
    assert few["described_pairs/num_empty"] == len(said) + 1
    assert few["described_pairs/num_items"] == 60 - touched and few["described_pairs/num_undescribed"] >= touched
    with pytest.raises(BadInput, match=r"template.*0 pairs of label 0"):
        prepared.finish([[[nothing, nothing] for _ in said]])


def make_encoder(folder):
    """A tiny BERT with random weights over the words of the tiny tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *[f"w{i}" for i in range(91)]]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_bad_input_is_named_before_any_model_is_asked(tiny, genes, tmp_path):
    _, tokenizer = tiny
    context = context_of(tokenizer)

    def refused(match, **changed):
        with pytest.raises(BadInput, match=match):
            prepare(EmbeddingPairsTask(**genes.files | changed), context)

    write = genes.write
    refused(r"evaluation.tasks.described_pairs.train` is '.*nothing.jsonl'", train=str(tmp_path / "nothing.jsonl"))
    refused(
        r"evaluation.tasks.described_pairs.descriptions` is '.*nothing.jsonl'",
        descriptions=str(tmp_path / "nothing.jsonl"),
    )
    refused(r"bad.jsonl:1 description` is 'empty'", descriptions=write("bad.jsonl", [{"gene": "A", "description": ""}]))
    twice = [genes.rows[0], genes.rows[0]]
    refused(r"bad.jsonl:2 gene` is 'KIN0', but is at", descriptions=write("bad.jsonl", twice))
    refused(
        r"descriptions` is .*a description of at least half of the genes.*lacks CHA0, CHA1, CHA10, CHA11, CHA12 \.\.\.",
        descriptions=write("few.jsonl", genes.rows[:5]),
    )
    refused(
        r"train` is '\d+ pairs of label 0 and \d+ of label 1', but must be at least 50",
        train=write("few.jsonl", genes.train[:40]),
    )
    ones = [row for row in genes.train if row["label"]] + [row for row in genes.train if not row["label"]][:4]
    refused(r"of label 1', but must be at least 50 pairs to fit on, 5 of each", train=write("ones.jsonl", ones))
    refused(r"touch a gene that is tested on", path=genes.files["train"])
    refused(r"template` is 'w1', but must be a template with {gene}", source="generated", encoder="x", template="w1")
    refused(
        r"evaluation.tasks.described_pairs.encoder` is '.*no_encoder'",
        source="generated",
        encoder=str(tmp_path / "no_encoder"),
    )
    with pytest.raises(ValidationError, match="text encoder when source is generated"):
        EmbeddingPairsTask(**genes.files, source="generated")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
@pytest.mark.slow
def test_real_genes_with_the_starter_model():
    """1,912 training pairs, 78 and 165 to test on: enough to tell 0.7 from chance, not to see a change of 0.1."""
    config = ModelConfig(path="starter", dtype="fp32")
    model, tokenizer = load_model(config).eval(), load_tokenizer(config)
    folder = SHARED / "data" / "gene_interaction"
    task = EmbeddingPairsTask(
        descriptions=str(folder / "gene_descriptions.jsonl"),
        train=str(folder / "described_pairs_train.jsonl"),
        path=str(folder / "described_pairs_test.jsonl"),
    )
    metrics = answer(prepare(task, context_of(tokenizer, max_length=192)), model, 8192).metrics
    assert metrics["described_pairs/num_items"] == 165 and metrics["described_pairs/num_dropped"] == 0
    assert metrics["described_pairs/embedding_auroc"] - 2 * metrics["described_pairs/embedding_auroc_se"] > 0.5
    assert 0.11 < metrics["described_pairs/embedding_auroc_detectable"] < 0.23
