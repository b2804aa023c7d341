"""Adapters of peft that add something else than LoRA's product: what bft-ray cannot compute, export or merge is refused at the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bft_ray.config import ModelConfig, make_config
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.model.export import merge_in_place
from bft_ray.model.halves import check_halves, halves


def adapted(tiny_model: Path, targets: list[str], *, tied: bool = False, **settings: Any):
    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32"))
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    torch.manual_seed(0)
    made = get_peft_model(model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **settings))
    return made.eval()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"lora_dropout": 0.1}])
def test_the_operands_of_the_head_are_the_models_logits(tiny_model, settings):
    model = adapted(tiny_model, ["q_proj", "lm_head"], **settings)
    check_halves(model, "cpu")
    parts, ids = halves(model), torch.arange(3, 11)[None]
    with torch.no_grad():
        x, weight, bias = parts.operands(parts.hidden(ids, None, None))
        logits = torch.nn.functional.linear(x, weight, bias)
        torch.testing.assert_close(logits, model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("settings", "kind"), [({"use_dora": True}, "DoRA"), ({"lora_bias": True}, "lora_bias")])
def test_more_than_a_product_on_the_head_is_refused(tiny_model, settings, kind):
    """The loss would be that of another model; elsewhere in the model both are as good as any layer."""
    with pytest.raises(BadInput, match=rf"`model\.adapter` is '{kind} on the head', but must be .*plain LoRA"):
        check_halves(adapted(tiny_model, ["q_proj", "lm_head"], **settings), "cpu")
    check_halves(adapted(tiny_model, ["q_proj"], **settings), "cpu")


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_what_is_refused_on_the_head_is_refused_before_weights_are_read(tiny_model, tmp_path, make_tree, settings):
    for targets in (["q_proj"], ["q_proj", "lm_head"]):
        folder = tmp_path / "-".join(targets)
        adapted(tiny_model, targets, **settings).save_pretrained(folder)
        config = make_config(make_tree() | {"model": {"path": str(tiny_model), "adapter": str(folder)}})
        if "lm_head" not in targets:
            check_model(config, load_tokenizer(config.model))
            continue
        with pytest.raises(BadInput, match=r"on the head'"):
            check_model(config, load_tokenizer(config.model))


def test_tokens_that_an_adapter_trains_in_a_shared_head_are_refused(tiny_model):
    with pytest.raises(BadInput, match=r"`model\.adapter` is 'trainable_token_indices', but must be a head without"):
        check_halves(adapted(tiny_model, ["q_proj"], tied=True, trainable_token_indices=[3, 4]), "cpu")
    check_halves(adapted(tiny_model, ["q_proj"], trainable_token_indices=[3, 4]), "cpu")


def test_a_bias_without_a_place_is_not_merged(tiny_model, tmp_path, make_tree):
    folder = tmp_path / "adapter"
    adapted(tiny_model, ["q_proj"], lora_bias=True).save_pretrained(folder)
    config = ModelConfig(path=str(tiny_model), adapter=str(folder), dtype="fp32")
    with pytest.raises(BadInput, match=r"q_proj has no bias to add its lora_bias to"):
        merge_in_place(folder, config, None)
    tree = make_tree() | {"model": {"path": str(tiny_model), "adapter": str(folder)}}
    checked = make_config(tree)
    check_model(checked, load_tokenizer(checked.model))  # exported as an adapter it is fine
    merged = make_config(tree | {"checkpoint": tree.get("checkpoint", {}) | {"merge_lora": True}})
    with pytest.raises(
        BadInput, match=r"`checkpoint\.merge_lora` is True, but must be false with an adapter of lora_bias"
    ):
        check_model(merged, load_tokenizer(merged.model))


def test_a_weight_of_two_names_is_refused_before_it_is_trained(tiny_model, tmp_path, make_tree):
    """Its second name is not among the parameters that are gathered: the export broke off after the training."""
    folder = tmp_path / "adapter"
    adapted(tiny_model, ["q_proj"]).save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"ensure_weight_tying": True, "modules_to_save": ["lm_head"]})
    )
    config = make_config(make_tree() | {"model": {"path": str(tiny_model), "adapter": str(folder)}})
    with pytest.raises(BadInput, match=r"without ensure_weight_tying beside modules_to_save"):
        check_model(config, load_tokenizer(config.model))
