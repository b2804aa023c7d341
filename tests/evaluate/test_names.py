"""Naming gene sets: drawn names, the name choice, ROUGE and the text encoder, by hand and on a tiny model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.metrics import describe
from bft_ray.config.tasks import Decoding, NamesTask
from bft_ray.errors import BadInput
from bft_ray.evaluate.clients.encoder import encode_texts
from bft_ray.evaluate.engine.generate import run_generate
from bft_ray.evaluate.engine.request import Context, Scores
from bft_ray.evaluate.tasks.names import draw_names, first_line, prepare
from bft_ray.model.causal_lm import load_model, load_tokenizer
from tests.support.paths import SHARED
from tests.support.tiny_tokenizer import tiny_tokenizer

NAMES = ["w1 w2", "w3", "w4 w5 w6", "w7", "w8 w9"]


@pytest.fixture
def context(tiny_model, tiny_data):
    data = DataConfig(train=[SourceConfig(path=str(tiny_data))], max_length=64, micro_batch_tokens=64)
    return Context(load_tokenizer(ModelConfig(path=str(tiny_model))), data, 256, 0)


def write_task(folder, names=NAMES, rows=None, **settings) -> NamesTask:
    path = folder / "sets.jsonl"
    rows = rows or [{"id": f"GO:{i}", "prompt": f"w{i} w20", "gold_name": name} for i, name in enumerate(names)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    settings = {"num_choices": 3, "prefix": "w50 ", **settings}
    return NamesTask(path=str(path), **settings)


def scores(*means: list[float]) -> Scores:
    """Two tokens a name."""
    nll = -2 * np.array([mean for own in means for mean in own])
    return Scores(nll, np.full(len(nll), 2), np.zeros(len(nll), np.int64))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A BERT with random weights, and its tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


# --- drawn names --------------------------------------------------------------------------------------------


def test_names_are_drawn_by_seed_and_item_alone(tmp_path):
    pool = [f"name {i}" for i in range(30)]
    task = write_task(tmp_path, num_choices=10)
    drawn = draw_names(task, "GO:1", "name 3", pool)
    assert drawn[0] == "name 3" and len(set(drawn)) == 10
    assert draw_names(task, "GO:1", "name 3", pool) == drawn
    assert draw_names(task, "GO:2", "name 3", pool) != drawn
    assert draw_names(task.model_copy(update={"seed": 1}), "GO:1", "name 3", pool) != drawn
    every = draw_names(task, "x", "NAME 29", pool[:9] + pool[29:])
    assert sorted(every) == sorted(["NAME 29", *pool[:9]])  # never the gold name in other letters


def test_the_draw_does_not_depend_on_the_order_of_rows(context, tmp_path):
    rows = [{"id": f"GO:{i}", "prompt": f"w{i}", "gold_name": name} for i, name in enumerate(NAMES)]
    ways = [prepare(write_task(tmp_path, rows=own), context).requests[0] for own in (rows, rows[::-1])]
    options = [
        {name: [tokens.tolist() for tokens in own] for name, own in zip(way.ids, way.continuations, strict=True)}
        for way in ways
    ]
    assert options[0] == options[1]


def test_candidates_from_a_file(context, tmp_path):
    path = tmp_path / "candidates.jsonl"
    path.write_text('{"name": "w30"}\n{"name": " W30"}\n{"name": "w31"}\n{"name": "w1 W2"}\n')
    [asked, _] = prepare(write_task(tmp_path, candidates=str(path)), context).requests
    words = context.tokenizer.convert_ids_to_tokens
    drawn = {" ".join(words(tokens)) for tokens in asked.continuations[0][1:]}
    assert drawn <= {"w30", "w31", "<unk>"} and len(asked.continuations[0]) == 3
    path.write_text('{"name": "w30"}\n{"name": null}\n')
    with pytest.raises(BadInput, match=r"candidates.jsonl:2 name"):
        prepare(write_task(tmp_path, candidates=str(path)), context)
    with pytest.raises(BadInput, match=r"^`evaluation.tasks.\w+.candidates` is .*none.jsonl"):
        prepare(write_task(tmp_path, candidates=str(tmp_path / "none.jsonl")), context)


# --- requests -----------------------------------------------------------------------------------------------


def test_the_prefix_belongs_to_the_prompt(context, tmp_path):
    [asked, continued] = prepare(write_task(tmp_path), context).requests
    words = context.tokenizer.convert_tokens_to_ids
    for i, (prompt, options) in enumerate(zip(asked.prompts, asked.continuations, strict=True)):
        assert prompt.tolist() == [2, *words([f"w{i}", "w20", "\n", "w50"])]
        assert options[0].tolist() == words(NAMES[i].split())
        assert len(options) == 3
    assert [p.tolist() for p in continued.prompts] == [p.tolist() for p in asked.prompts]
    assert continued.decoding.max_new_tokens == 32
    assert len(prepare(write_task(tmp_path, generate=False), context).requests) == 1


def test_names_are_tokenised_as_in_training(context, tmp_path):
    """A space before the name is part of its first token, and is not lost."""
    from bft_ray.data.rows import Row
    from bft_ray.data.tokenise import encode

    tokenizer = tiny_tokenizer()
    context = Context(tokenizer, context.data, 64, 0)
    rows = [{"prompt": "genes?", "gold_name": name} for name in ("membrane receptor", "mitosis", "a cell")]
    [asked, _] = prepare(write_task(tmp_path, rows=rows, prefix="Process: "), context).requests
    for row, prompt, options in zip(rows, asked.prompts, asked.continuations, strict=True):
        sample = encode(
            Row("", "", prompt="genes?", completion=f"Process: {row['gold_name']}"), tokenizer, context.data
        )
        assert [*prompt.tolist(), *options[0].tolist()] == sample.input_ids[:-1]
        assert tokenizer.decode(prompt).endswith("Process:") and tokenizer.decode(options[0]) == f" {row['gold_name']}"


def test_a_real_model_runs_it(context, tiny_model, tmp_path):
    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32"))
    prepared = prepare(write_task(tmp_path, decoding=Decoding(max_new_tokens=4)), context)
    asked, continued = prepared.requests
    nll, num_tokens = [], []
    with torch.no_grad():
        for prompt, options in zip(asked.prompts, asked.continuations, strict=True):
            for option in options:
                ids = torch.tensor([[*prompt, *option]]).long()
                logp = model(input_ids=ids).logits[0].log_softmax(-1)
                nll.append(-sum(float(logp[t - 1, ids[0, t]]) for t in range(len(prompt), ids.shape[1])))
                num_tokens.append(len(option))
    answers = run_generate(model, continued, 128, "cpu", 0, [1])
    measured = prepared.finish([Scores(np.array(nll), np.array(num_tokens), np.zeros(len(nll))), answers])
    assert 0 < measured.metrics["names/probability"] < 1 and measured.metrics["names/num_items"] == 5
    assert all(describe(name) for name in measured.metrics)
    assert [record["id"] for record in measured.records] == [f"GO:{i}" for i in range(5)]


# --- metrics ------------------------------------------------------------------------------------------------


def test_name_choice_by_hand(context, tmp_path):
    prepared = prepare(write_task(tmp_path, NAMES[:3], generate=False), context)
    log = math.log
    measured = prepared.finish([scores([log(0.5), log(0.3), log(0.2)], [-1, -2, -0.5], [-3, -3, -3])])
    metrics = measured.metrics
    second = math.exp(-1) / (math.exp(-1) + math.exp(-2) + math.exp(-0.5))
    assert [record["probability"] for record in measured.records] == pytest.approx([0.5, second, 1 / 3])
    assert [record["accuracy"] for record in measured.records] == [1, 0, 0]  # a tie is no hit
    assert metrics["names/probability"] == pytest.approx((0.5 + second + 1 / 3) / 3)
    assert metrics["names/accuracy"] == pytest.approx(1 / 3)
    assert {"names/probability_se", "names/probability_detectable", "names/accuracy_detectable"} <= set(metrics)
    assert "names/rouge_l" not in metrics


def test_generated_names_by_hand(context, tmp_path, encoder):
    context = Context(tiny_tokenizer(), context.data, 64, 0)
    golds = ["membrane receptor", "cells", "gene signalling", "the protein"]
    rows = [{"prompt": "?", "gold_name": gold} for gold in golds]
    task = write_task(tmp_path, rows=rows, prefix="Process: ", encoder=encoder)
    prepared = prepare(task, context)
    said = [" membrane receptor\n\n1. It", "", "\nprocess: gene\n", " transcription"]
    answers = [[np.array(context.tokenizer.encode(text, add_special_tokens=False), np.int32)] for text in said]
    measured = prepared.finish([scores(*[[-1, -2, -3]] * 4), answers])
    columns = {name: [record[name] for record in measured.records] for name in measured.records[0]}
    assert columns["rouge_l"] == columns["rouge_1"] == pytest.approx([1, 0, 2 / 3, 0])
    assert measured.metrics["names/num_empty"] == 1

    vectors = encode_texts(encoder, [*golds, "gene", "transcription"])
    cosine = vectors @ vectors.T
    expected = [1.0, 0.0, cosine[4, 2], cosine[5, 3]]
    assert columns["name_similarity"] == pytest.approx(expected, abs=1e-5)
    assert columns["name_percentile"] == pytest.approx(
        [1, 0, np.mean(cosine[4, [0, 1, 3]] < cosine[4, 2]), np.mean(cosine[5, [0, 1, 2]] < cosine[5, 3])]
    )
    assert measured.metrics["names/name_similarity"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert all(describe(name) for name in measured.metrics)


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" DNA repair\nmore", "DNA repair"), ("\n\n Process: DNA repair", "DNA repair"), ("", ""), ("\n", ""),
     ("process:DNA", "DNA")],
)  # fmt: skip
def test_the_first_line_is_the_name(text, expected):
    assert first_line(text, "Process: ") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_choices": 6}, r"evaluation.tasks.names.num_choices` is 6, but must be at most 5: there are 4 other"),
        ({"names": ["w1", "W1", "w2"]}, r"is 3, but must be at most 2"),
        ({"rows": [{"prompt": "w1", "name": "w2"}]}, r"gold_name"),
        ({"rows": [{"prompt": "w1 " * 60, "gold_name": f"w{i} w9"} for i in range(3)]}, r"sets.jsonl:1 prompt"),
        ({"encoder": "/no/such/folder"}, r"evaluation.tasks.names.encoder"),
        ({"decoding": Decoding(engine="vllm")}, r"vLLM is not installed"),
    ],
)
def test_bad_input(context, tmp_path, settings, message):
    with pytest.raises(BadInput, match=message):
        prepare(write_task(tmp_path, **settings), context)


# --- the encoder --------------------------------------------------------------------------------------------


def test_mean_pooling_by_a_plain_loop(encoder):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    texts = ["the gene", "a membrane receptor activates transcription", "x", "the protein binds " * 9, "cells", "", "x"]
    expected = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=24)["input_ids"]
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0) if ids else torch.zeros(16)
        expected.append((mean / max(float(mean.norm()), 1e-12)).numpy())
    for batch_size in (1, 2, 32):
        vectors = encode_texts(encoder, texts, batch_size)
        np.testing.assert_allclose(vectors, np.stack(expected), atol=1e-5)
    assert vectors.dtype == np.float32


def test_a_decoder_serves_as_encoder(tiny_model):
    vectors = encode_texts(str(tiny_model), ["w1 w2", "w3"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no shared data")
def test_every_real_gene_set_fits(context):
    tokenizer = load_tokenizer(ModelConfig())
    context = Context(tokenizer, context.data.model_copy(update={"max_length": 2048}), 4096, 0)
    task = NamesTask(path=str(SHARED / "data/biological_process/test.jsonl"))
    asked, _ = prepare(task, context).requests
    assert len(asked.ids) == 151 and {len(own) for own in asked.continuations} == {10}
    assert all(tokenizer.decode(prompt).endswith("Process:") for prompt in asked.prompts)


def test_a_sequence_to_sequence_model_is_no_encoder(tmp_path):
    from transformers import T5Config

    tiny_tokenizer().save_pretrained(tmp_path)
    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"`field` is .*not a sequence-to-sequence model"):
        encode_texts(str(tmp_path), ["x"], field="field")
