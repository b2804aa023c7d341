"""A trained model or adapter as a folder that plain transformers and peft load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.config import ModelConfig
from bft_ray.errors import BadInput
from bft_ray.model.base_weights import base_fingerprint
from bft_ray.model.causal_lm import adapter_of
from bft_ray.model.checksums import recorded_base, write_checksums
from bft_ray.model.ends import generation_settings
from bft_ray.model.noise import as_it_came

if TYPE_CHECKING:
    import torch


def export_model(
    model: Any, weights: dict[str, torch.Tensor], tokenizer: Any, config: ModelConfig, folder: Path, merge: bool = False
) -> None:
    """Write weights (safetensors), configuration and tokenizer.

    Args:
        model: the module that was trained; its own parameters may be partitioned and are not read.
        weights: the trained parameters by name, on CPU: all of them, or the adapters alone.
        tokenizer: written beside the weights.
        config: where the base model came from.
        folder: made; holds a LoRA adapter, or with `merge` (or full fine-tuning) a whole model.
        merge: add the adapter into the base weights.
    """
    from peft import PeftModel

    folder.mkdir(parents=True, exist_ok=True)
    settings = generation_settings(model, tokenizer)
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder), state_dict=weights)
        if merge:
            merge_in_place(folder, config, settings)
    else:
        model.config.use_cache = True  # off while training only
        model.generation_config = settings
        with as_it_came(model):
            model.save_pretrained(str(folder), state_dict=weights)
        model.config.use_cache = False
    settings.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)  # peft writes a template; the run's own card comes later
    write_checksums(folder, base_fingerprint(config) if exported_kind(folder) == "adapter" else "")


def require_same_base(config: ModelConfig, adapter: Path, field: str) -> None:
    """Check that the base model of an adapter is the one that it was trained on, where that is known.

    Raises:
        BadInput: its weights are others; what the adapter adds to them means nothing there.
    """
    expected = recorded_base(adapter)
    if expected and (now := base_fingerprint(config)) and now != expected:
        base = adapter_of(config)[0]
        rule = f"an adapter of the base model {base} as it is now: it was trained on other weights"
        remedy = "Restore these, or name where they are by model.path, and the adapter by model.adapter."
        raise BadInput(field, str(adapter), rule, remedy)


def merge_in_place(folder: Path, config: ModelConfig, settings: Any) -> None:
    """Turn an adapter folder into the folder of the merged model: W + alpha/rank * B A, in the base's dtype.

    W is the weight as it was saved, also where the adapter was trained on its 4-bit form: that is the better one, though
    not the one that training saw.
    """
    from bft_ray.model.causal_lm import load_model

    loaded: Any = load_model(config.model_copy(update={"path": str(folder), "adapter": None, "quantization": None}))
    _untie(loaded)
    require_mergeable(loaded)
    merged = loaded.merge_and_unload()
    merged.config.use_cache = True
    merged.generation_config = settings
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    with as_it_came(merged):
        merged.save_pretrained(str(folder))


def require_mergeable(model: Any) -> None:
    """Check that all of an adapter can be added into the base weights.

    Raises:
        BadInput: it has a bias where the base layer has none.
    """
    for name, module in model.named_modules():
        own = any(getattr(module, "lora_bias", {}).values())
        if own and getattr(module.get_base_layer(), "bias", None) is None:
            rule = f"an adapter that can be merged: {name.removeprefix('base_model.model.')} has no bias to add its lora_bias to"
            raise BadInput(
                "model.adapter", "lora_bias", rule, "Export it as an adapter (checkpoint.merge_lora: false)."
            )


def _untie(loaded: Any) -> None:
    """Give head and embedding a weight each, where they share one and an adapter changes one of them.

    An adapter on either is not seen by the other. Merged into the shared weight it would change both.
    """
    causal = loaded.get_base_model()
    parts = causal.get_input_embeddings(), causal.get_output_embeddings()
    inner = [part.get_base_layer() if hasattr(part, "get_base_layer") else part for part in parts]
    shared = inner[0].weight is inner[1].weight
    if not shared or (parts[0] is inner[0] and parts[1] is inner[1]):
        return
    inner[1].weight = type(inner[1].weight)(inner[1].weight.detach().clone(), requires_grad=False)
    for config in {id(each): each for each in (causal.config, causal.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    causal.tie_weights()  # with the config as it is now: nothing is tied, and nothing is left out when it is saved


def exported_kind(folder: Path) -> str:
    """`adapter` or `model`: what a folder holds."""
    return "adapter" if (folder / "adapter_config.json").is_file() else "model"
