"""The verb `score`: by hand, against one forward pass a continuation, shared and apart, in any batches."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from bft_ray.config import ModelConfig
from bft_ray.errors import BftError
from bft_ray.evaluate.engine import score
from bft_ray.evaluate.engine.request import Score
from bft_ray.evaluate.engine.score import _longest_shared, run_score
from bft_ray.model.causal_lm import load_model
from bft_ray.model.halves import halves
from bft_ray.model.rotary import Rotary

# p(next | current) of a model that looks at one token only
NEXT = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
VOCABULARY = 64
SIZES: dict[str, Any] = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.2,
)


class OneHot(torch.nn.Module):
    """ids -> one-hot rows; NaN for token `broken`."""

    def __init__(self, broken=None):
        super().__init__()
        self.rows = torch.nn.Parameter(torch.eye(4))
        self.broken = broken

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        hidden = self.rows[input_ids]
        if self.broken is not None:
            hidden = hidden.masked_fill((input_ids == self.broken)[..., None], math.nan)
        return SimpleNamespace(last_hidden_state=hidden)


class Bigram(torch.nn.Module):
    """Logits are log NEXT[token], plus a constant that log-softmax must take out."""

    def __init__(self, broken=None):
        super().__init__()
        self.decoder, self.head = OneHot(broken), torch.nn.Linear(4, 4, bias=False)
        self.head.weight.data = NEXT.log().T + 3.0
        self.config = SimpleNamespace(vocab_size=4, _attn_implementation="sdpa")
        self.config.get_text_config = lambda: self.config

    def get_decoder(self):
        return self.decoder

    def get_output_embeddings(self):
        return self.head


def request(*items, counted=None) -> Score:
    arrays = [(np.array(prompt), [np.array(own) for own in continuations]) for prompt, continuations in items]
    ids = [f"s{index}" for index in range(len(items))]
    return Score(ids, [prompt for prompt, _ in arrays], [own for _, own in arrays], counted)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 4, 100])
def test_scores_by_hand(share, batch_tokens):
    asked = request(([0], [[1, 3]]), ([3, 2], [[0], [1, 1], [0, 0, 2]]))
    scores = run_score(Bigram(), asked, batch_tokens, "cpu", 0, share=share)
    expected = [0.25 * 0.4, 0.7, 0.1 * 0.2, 0.7 * 0.5 * 0.125]
    assert scores.nll == pytest.approx([-math.log(p) for p in expected], rel=1e-6)
    assert scores.num_tokens.tolist() == [2, 1, 2, 3]
    assert scores.num_correct.tolist() == [1, 1, 0, 2]  # the argmax of 0 is 0, of 1 is 3, of 2 is 0


@pytest.mark.parametrize("share", [False, True])
def test_what_is_not_counted_is_read_but_not_scored(share):
    asked = request(([0], [[1, 3, 2, 0], [0]]), counted=[[np.array([True, False, False, True]), None]])
    scores = run_score(Bigram(), asked, 8, "cpu", 0, share=share)
    assert scores.nll == pytest.approx([-math.log(0.25 * 0.7), -math.log(0.5)], rel=1e-6)
    assert scores.num_tokens.tolist() == [2, 1]


def test_nan_is_no_score():
    asked = request(([1], [[2], [3, 0]]), ([1], [[1, 1]]), ([3], [[1]]))
    with pytest.raises(BftError, match=r"not finite for s0, s2; try model.dtype=fp32"):
        run_score(Bigram(broken=3), asked, 8, "cpu", 0)


def test_nothing_to_score():
    assert run_score(Bigram(), Score([], [], []), 8, "cpu", 0).nll.shape == (0,)


# --- models of transformers ---------------------------------------------------------------------------------


def drawn(num_items=10, seed=0) -> Score:
    draw = np.random.default_rng(seed)

    def tokens(n):
        return draw.integers(3, VOCABULARY, n)

    return request(
        *((tokens(draw.integers(1, 20)), [tokens(draw.integers(1, 9)) for _ in range(draw.integers(1, 5))])
          for _ in range(num_items))
    )  # fmt: skip


def plain(model, asked: Score) -> list[float]:
    """One forward pass a continuation by a copy of the model that has seen nothing else, all logits, a loop over its tokens."""
    found = []
    for prompt, continuations in zip(asked.prompts, asked.continuations, strict=True):
        for own in continuations:
            ids = torch.tensor([*prompt.tolist(), *own.tolist()])
            with torch.no_grad():  # the last token predicts nothing; fed, it would be one more for rotary positions
                logits = copy.deepcopy(model)(input_ids=ids[None, :-1], use_cache=False).logits[0]
            logp = logits.double().log_softmax(-1)
            found.append(-sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids))))
    return found


def make(kind, **settings):
    torch.manual_seed(0)
    if kind == "bloom":
        sizes = dict(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
        return BloomForCausalLM(BloomConfig(**sizes)).eval()
    if kind == "gpt_neo":
        sizes = dict(vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, initializer_range=0.2)
        settings = {"attention_types": [[["global", "local"], 1]], **settings}
        return GPTNeoForCausalLM(GPTNeoConfig(**sizes, **settings)).eval()
    if kind in ("longrope", "dynamic"):
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if kind == "longrope" else {"factor": 4.0}
        rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 16, **factors}
        sizes = SIZES if kind == "longrope" else SIZES | {"max_position_embeddings": 16}
        return LlamaForCausalLM(LlamaConfig(**sizes, rope_parameters=rope)).eval()
    of = {"mistral": (MistralConfig, MistralForCausalLM), "gemma2": (Gemma2Config, Gemma2ForCausalLM)}
    config, model = of[kind]
    extra = {"head_dim": 8, "query_pre_attn_scalar": 8} if kind == "gemma2" else {}
    return model._from_config(config(**SIZES, **extra, **settings), attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def llama(tiny_model):
    return load_model(ModelConfig(path=str(tiny_model), dtype="fp32"))


def longest_shared(model) -> int:
    return _longest_shared(model, halves(model), Rotary(model), "cpu")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_batching_and_sharing_agree_with_one_at_a_time(llama, attention):
    llama.set_attn_implementation(attention)
    asked = drawn()
    expected = plain(llama.eval(), asked)
    llama.train()
    assert longest_shared(llama) > 10**9
    for batch_tokens, share in [(1, True), (64, True), (64, False), (4096, True), (4096, False)]:
        scores = run_score(llama, asked, batch_tokens, "cpu", 0, share=share)
        np.testing.assert_allclose(scores.nll, expected, rtol=1e-5)
    assert llama.training  # left as it was


@pytest.mark.parametrize("window", [8, 14, 500])
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
def test_a_sliding_window_shares_what_fits_into_it(kind, window):
    """Gemma 2 has both kinds of layers, and caps its logits."""
    model = make(kind, sliding_window=window)
    assert longest_shared(model) == window
    asked = drawn(seed=1)
    np.testing.assert_allclose(run_score(model, asked, 256, "cpu", 0).nll, plain(model, asked), rtol=1e-5)


def long_and_short(num_items=6) -> tuple[Score, Score]:
    """Items of a long option and a short one, and the same items with the short one first."""
    draw = np.random.default_rng(3)
    items = [
        (draw.integers(3, VOCABULARY, 6), *(draw.integers(3, VOCABULARY, n) for n in (12, 2))) for _ in range(num_items)
    ]
    return (
        request(*((prompt, [long, short]) for prompt, long, short in items)),
        request(*((prompt, [short, long]) for prompt, long, short in items)),
    )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mistral", {"sliding_window": 10}),
        ("gemma2", {"sliding_window": 10}),
        ("gpt_neo", {"window_size": 12}),
        ("longrope", {}),
        ("dynamic", {}),
    ],
)
def test_neither_the_order_of_options_nor_batches_change_a_score(kind, settings):
    """A long option first, then a short one that would fit alone; and rows of several lengths in a batch."""
    model = make(kind, **settings)
    for asked in [*long_and_short(), drawn(seed=4)]:
        expected = plain(model, asked)
        for batch_tokens, share in [(1, True), (64, True), (64, False), (4096, True), (4096, False)]:
            scores = run_score(model, asked, batch_tokens, "cpu", 0, share=share)
            np.testing.assert_allclose(scores.nll, expected, rtol=2e-5)


def test_a_window_of_a_name_that_nobody_knows_is_found_by_the_longest_row(monkeypatch):
    model = make("gpt_neo", window_size=12)
    monkeypatch.setattr(score, "_WINDOWS", ())
    assert longest_shared(model) > 10**9
    asked, _ = long_and_short()
    np.testing.assert_allclose(run_score(model, asked, 4096, "cpu", 0).nll, plain(model, asked), rtol=2e-5)


def test_a_model_without_positions_does_not_share():
    """Bloom reads distances from the mask: a continuation that stands behind another would seem further away."""
    model = make("bloom")
    assert longest_shared(model) == 0
    asked = drawn(seed=2)
    np.testing.assert_allclose(run_score(model, asked, 256, "cpu", 0).nll, plain(model, asked), rtol=1e-5)


def test_flash_attention_does_not_share(llama):
    llama.config._attn_implementation, was = "flash_attention_2", llama.config._attn_implementation
    try:
        assert longest_shared(llama) == 0
    finally:
        llama.config._attn_implementation = was


def test_an_adapter_on_the_head_counts(llama, tiny_model):
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM", init_lora_weights=False)
    model: Any = get_peft_model(load_model(ModelConfig(path=str(tiny_model), dtype="fp32")), settings).eval()
    asked = drawn(4)
    scores = run_score(model, asked, 256, "cpu", 0)
    np.testing.assert_allclose(scores.nll, plain(model, asked), rtol=1e-5)
    assert np.abs(scores.nll - run_score(llama, asked, 256, "cpu", 0).nll).max() > 0.01
