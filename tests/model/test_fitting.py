"""Weights that the settings beside them have no place for are refused: libraries leave them out, and another model is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bft_ray.config import ModelConfig, make_config
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_base, load_model, load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.model.checksums import write_checksums


def edit(file: Path, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.fixture
def adapter(tiny_model, tmp_path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    folder = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), settings).save_pretrained(folder)
    write_checksums(folder)
    return folder


def check(make_tree, path: Path) -> list[str]:
    config = make_config(make_tree() | {"model": {"path": str(path)}})
    return [note for note in check_model(config, load_tokenizer(config.model)) if "model.dtype is bf16" not in note]


def test_layers_that_the_config_does_not_make(make_tree, tiny_model, tmp_path):
    """A lower num_hidden_layers loaded without an error: the last layers were left out."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    assert check(make_tree, copy) == []
    edit(copy / "config.json", num_hidden_layers=1)
    rule = r"config\.json makes 1 in model\.layers, and model\.layers\.\d\S* is stored\. Restore the number of layers"
    with pytest.raises(BadInput, match=rule):
        check(make_tree, copy)
    with pytest.raises(BadInput, match=rule):  # as a worker finds it, or anybody with a model of the hub
        load_base(ModelConfig(path=str(copy)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"r": 2}, r"is stored with shape \[4, \d+\], and they make \[2, \d+\]"),
        ({"target_modules": ["q_proj"]}, r"v_proj\.lora_[AB]\.weight is stored with shape .* and they make none"),
        (
            {"target_modules": ["q_proj", "v_proj", "k_proj"]},
            r"they make .*k_proj\.lora_A\.weight, which is not stored",
        ),
        ({"r": "two"}, "settings that peft can apply to the base model"),
        ({"target_modules": ["nothing"]}, "settings that peft can apply to the base model"),
    ],
)
def test_an_adapter_whose_settings_make_other_weights(make_tree, adapter, fields, told):
    assert check(make_tree, adapter) == []
    (adapter / "sha256.json").unlink()  # as an adapter of elsewhere
    assert check(make_tree, adapter) == []
    edit(adapter / "adapter_config.json", **fields)
    with pytest.raises(BadInput, match=rf"adapter_config\.json.*{told}.*Restore the adapter_config\.json"):
        check(make_tree, adapter)


@pytest.mark.parametrize("fields", [{"lora_alpha": 4000}, {"use_rslora": True}])
def test_settings_that_were_edited_after_the_export(make_tree, adapter, fields):
    """They fit the weights, and scale them by another factor."""
    edit(adapter / "adapter_config.json", **fields)
    with pytest.raises(
        BadInput, match=r"adapter_config\.json` .*unchanged since it was written|adapter_config\.json'.*unchanged"
    ):
        check(make_tree, adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "pissa"},
        {"use_dora": True},
        {"rank_pattern": {"v_proj": 2}},
        {"target_modules": r".*\.(q|v)_proj"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"layers_to_transform": [1]},
    ],
    ids=str,
)
def test_adapters_of_all_kinds_pass(make_tree, tiny_model, tmp_path, settings):
    """Also one that begins with a decomposition of the weights, which are not there yet; and one with a whole embedding beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    made = get_peft_model(base, LoraConfig(r=4, **{"target_modules": ["q_proj", "v_proj"]} | settings))
    made.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    assert check(make_tree, tmp_path / "adapter") == []


def test_a_base_that_has_moved_may_be_named(make_tree, adapter, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "moved")
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "moved"))
    assert check(make_tree, adapter) == []


def test_a_weight_of_another_shape_is_no_traceback(adapter):
    edit(adapter / "adapter_config.json", r=2)
    with pytest.raises(BadInput, match=r"model\.adapter"):
        load_model(ModelConfig(path=str(adapter)))
