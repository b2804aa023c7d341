"""Models whose rotary positions depend on other samples: embeddings and answers are those of a model that has seen nothing else."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bft_ray.config.tasks import Decoding
from bft_ray.evaluate.engine.embed import Embed, run_embed
from bft_ray.evaluate.engine.generate import run_generate
from bft_ray.evaluate.engine.request import Generate
from bft_ray.model.rotary import Rotary

TRAINED = 16  # tokens up to which the positions are those of pretraining
ROPE = {
    "longrope": {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
    "dynamic": {"factor": 4.0},
    "default": {},
}


def made(kind: str):
    torch.manual_seed(0)
    rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": TRAINED, **ROPE[kind]}
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    most = TRAINED if kind == "dynamic" else 128
    config = LlamaConfig(**sizes, max_position_embeddings=most, rope_parameters=rope, initializer_range=0.2)
    return LlamaForCausalLM(config).eval()


def drawn(lengths: list[int]) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(3, 64, length).astype(np.int32) for length in lengths]


def test_what_may_share_a_batch():
    lengths = [16, 17, 40, 3, 40]
    assert Rotary(made("default")).alike(lengths).tolist() == [0] * 5
    assert Rotary(made("longrope")).alike(lengths).tolist() == [0, 1, 1, 0, 1]
    assert Rotary(made("dynamic")).alike(lengths).tolist() == [0, 1, 2, 0, 2]
    assert Rotary(made("dynamic")).alike(lengths, grows=True).tolist() == [0, 2, 3, 0, 5]
    assert Rotary(made("longrope")).alike([]).tolist() == []
    assert Rotary(made("longrope")).longest == TRAINED < Rotary(made("default")).longest


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_embeddings_depend_on_no_other_sequence(kind):
    model, sequences = made(kind), drawn([30, 5, 16, 17, 22, 9, 30, 17])
    expected = []
    for sequence in sequences:
        ids = torch.tensor(sequence.astype(np.int64))[None]
        with torch.no_grad():
            expected.append(
                copy.deepcopy(model).model(input_ids=ids, use_cache=False).last_hidden_state[0].mean(0).numpy()
            )
    request = Embed([str(index) for index in range(len(sequences))], sequences)
    for batch_tokens in (4096, 1, 64):  # the largest first: what it leaves behind must not matter
        np.testing.assert_allclose(run_embed(model, request, batch_tokens, "cpu", 0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_answers_depend_on_no_other_prompt(kind, monkeypatch):
    prompts = drawn([30, 5, 12, 17, 22, 9])  # 5 stays below, 9 and 12 pass the length while they are answered
    decoding = Decoding(max_new_tokens=8)
    ids = [str(index) for index in range(len(prompts))]

    def answers(model, which: list[int], batch_tokens: int) -> list[list[int]]:
        monkeypatch.setattr(model.config, "max_position_embeddings", 128)
        asked = Generate([ids[i] for i in which], [prompts[i] for i in which], decoding, seed=0)
        return [own[0].tolist() for own in run_generate(model, asked, batch_tokens, "cpu", 0, [1])]

    expected = [answers(made(kind), [index], 1)[0] for index in range(len(prompts))]
    for batch_tokens in (4096, 1, 64):
        assert answers(made(kind), list(range(len(prompts))), batch_tokens) == expected
