"""Dropout and the like of a model's own config are off while it trains, and stand in the export as they came."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    BioGptConfig,
    BioGptForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    MixtralConfig,
    MixtralForCausalLM,
    MptConfig,
    MptForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from bft_ray.config import ModelConfig, make_config
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.export import export_model
from bft_ray.model.noise import noise_of, noise_text
from bft_ray.operate import configured

HEADS = dict(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "biogpt": lambda: BioGptForCausalLM(BioGptConfig(**HEADS, intermediate_size=64, layerdrop=0.3)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**HEADS, ffn_dim=64, word_embed_proj_dim=32, layerdrop=0.3)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**HEADS, intermediate_size=64, attention_dropout=0.2)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(
            **HEADS, intermediate_size=64, num_key_value_heads=2, num_local_experts=4, router_jitter_noise=0.3, attention_dropout=0.2
        )
    ),
    "mpt": lambda: MptForCausalLM(
        MptConfig(vocab_size=96, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, resid_pdrop=0.2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_draws_nothing_at_random_and_the_export_keeps_the_shares(name, checkpointing, tiny_model, tmp_path):
    before = MODELS[name]()
    before.set_attn_implementation("eager")
    before.save_pretrained(tmp_path / "base")
    shares = noise_of(before.config)
    assert shares
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    tokenizer.save_pretrained(tmp_path / "base")
    config = ModelConfig(
        path=str(tmp_path / "base"), dtype="fp32", attention="eager", gradient_checkpointing=checkpointing
    )
    model = load_model(config).train()
    ids = torch.arange(3, 23)[None]
    first, second = (model(input_ids=ids, labels=ids).loss for _ in range(2))
    assert first.item() == second.item()
    if not checkpointing:
        assert first.item() == pytest.approx(before.eval()(input_ids=ids, labels=ids).loss.item(), rel=1e-5)
    export_model(model, dict(model.state_dict()), tokenizer, config, tmp_path / "export")
    assert noise_of(AutoConfig.from_pretrained(tmp_path / "export")) == shares
    assert noise_of(model.config) == {}  # off again


def test_what_is_off_is_told(make_tree, tiny_model, tmp_path):
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    load_tokenizer(ModelConfig(path=str(tiny_model))).save_pretrained(tmp_path / "base")
    config = make_config(make_tree() | {"model": {"path": str(tmp_path / "base"), "dtype": "fp32"}})
    told = noise_text(AutoConfig.from_pretrained(tmp_path / "base"))
    assert told == (
        "0 while it trains, or the loss would depend on the layout of rows: its own resid_pdrop 0.1, embd_pdrop 0.1, attn_pdrop 0.1"
    )
    [found] = configured.check_model(config)  # nothing that one could mend: no warning
    assert (found.status, found.detail.partition("; ")[2]) == ("ok", told)
    assert noise_of(LlamaConfig()) == {} and noise_text(LlamaConfig()) == ""
