"""What can be wrong with a model, found on the driver: from its configuration, its tokenizer and the headers of its
weights. Of the weights only the first row of each tensor is read, and no worker starts.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from bft_ray.config import Config, ModelConfig
from bft_ray.config.tree import ANCHORED_ADAPTER
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import adapter_of
from bft_ray.model.checksums import require_unchanged
from bft_ray.model.cpu import SLOW, bf16_slowdown
from bft_ray.model.export import require_same_base
from bft_ray.model.fitting import check_adapter_weights, check_layers, stored_names
from bft_ray.model.lora import check_targets
from bft_ray.model.noise import noise_text
from bft_ray.model.quantized import require_bitsandbytes, require_plain
from bft_ray.model.safe import check_adapter, damaged, read_adapter_config, whole_files
from bft_ray.model.unreadable import reading, unbuildable, unreadable_model

#: ten times those of DeepNet (arXiv 2203.00555); more would be made, one by one, until memory ends
_MOST_LAYERS = 10_000
_POSITIONS = re.compile(r"pos(?!t)|wpe")  # names of tables of positions: wpe, embed_positions, position_embeddings ...


def check_model(config: Config, tokenizer: Any) -> list[str]:
    """Check `config.model` against its tokenizer, `data.max_length` and the LoRA targets.

    Returns:
        Sentences about what is allowed and may surprise.

    Raises:
        BadInput: a model that cannot be read, saved quantized, no bitsandbytes where it is needed; weights that are missing, cut off,
            not finite, or of layers that the model lacks; an adapter whose settings make other weights, an anchor where an
            adapter is trained on; more tokens than rows of the embedding, rows longer than the model's positions, a LoRA
            target that names no linear module.
    """
    base, adapter = adapter_of(config.model)
    described = describe(config)
    if os.path.isdir(base):
        check_headers(Path(base), "model.path")
    if adapter:
        field = "model.adapter" if config.model.adapter else "model.path"
        check_adapter(Path(adapter), field)
        check_headers(Path(adapter), field)
        if config.checkpoint.merge_lora and read_adapter_config(Path(adapter), field).get("lora_bias"):
            rule = "false with an adapter of lora_bias, which base layers without a bias cannot take"
            raise BadInput("checkpoint.merge_lora", True, rule, "Export the adapter as it is.")
        require_same_base(config.model, Path(adapter), field)
        check_anchor(config)
    require_plain(described, config.model)
    if _is_local(config):  # elsewhere it may be on the nodes alone: each looks when it loads the model
        require_bitsandbytes(config.model)
    model = skeleton(config, described)
    _check_tokens(config, tokenizer, model)
    if os.path.isdir(base):
        check_layers(stored_names(Path(base)), model, "model.path", config.model.path)
    if config.lora:
        check_targets(model, config.lora)
    surprises = [*_unused_revision(config.model, base), *check_length(config, described, model), *_slow_dtype(config)]
    if adapter:
        check_adapter_weights(model, Path(adapter), field)
    return surprises


def check_for_training(config: Config, tokenizer: Any) -> list[str]:
    """`check_model`, and a sentence on what of the model's own config is off while it trains."""
    notes, silenced = check_model(config, tokenizer), noise_text(describe(config))
    return [*notes, silenced] if silenced else notes


def _unused_revision(model: ModelConfig, base: str) -> list[str]:
    if model.revision is None or not os.path.isdir(base):
        return []
    return [f"model.revision is {model.revision}, which has no effect: {base} is a folder, which has no revisions"]


def check_anchor(config: Config) -> None:
    """Raise BadInput for an anchor where an adapter is trained on, whose start is neither kept nor the base model."""
    if config.loss.anchor and adapter_of(config.model)[1]:
        raise BadInput("loss.anchor", config.loss.anchor, *ANCHORED_ADAPTER)


def describe(config: Config) -> Any:
    """The model's configuration; BadInput where transformers cannot read it."""
    from transformers import AutoConfig

    base, _ = adapter_of(config.model)
    with reading(partial(unreadable_model, config.model, base)):
        described = AutoConfig.from_pretrained(
            base, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code
        )
    _check_numbers(described, config.model.path)
    return described


def _check_numbers(described: Any, path: str) -> None:
    """What transformers takes, and what ends in a failed product of tensors, in no layer at all, or in no end of layers."""
    text = described.get_text_config()
    layers, heads, groups = (
        getattr(text, name, None) for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    rule = remedy = ""
    if isinstance(layers, int) and not 1 <= layers <= _MOST_LAYERS:
        rule = f"a model with 1 to {_MOST_LAYERS:,} layers: its config.json has num_hidden_layers {layers}"
        remedy = "Restore that number."
    elif isinstance(heads, int) and isinstance(groups, int) and (groups < 1 or heads % groups):
        rule = f"a model whose num_attention_heads ({heads}) is a multiple of its num_key_value_heads ({groups})"
        remedy = "Restore these numbers in its config.json."
    if rule:
        raise BadInput("model.path", path, rule, remedy)


def skeleton(config: Config, described: Any) -> Any:
    """The modules of the model without their weights.

    Raises:
        BadInput: it is no causal language model, or cannot have `model.attention` on this machine.
    """
    import torch
    from transformers import AutoModelForCausalLM

    # flash attention may be there on the nodes of a cluster alone; all else is the same everywhere
    attention = config.model.attention if _is_local(config) or not config.model.attention.startswith("flash") else None

    def tell(error: Exception) -> BadInput:
        if "Unrecognized configuration class" in str(error):
            rule = f"a causal language model: {described.model_type} is none"
            return BadInput("model.path", config.model.path, rule, "Give a decoder (Llama, Qwen, Gemma ...).")
        return unbuildable(config.model, adapter_of(config.model)[0], error)

    with reading(tell), torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            described, trust_remote_code=config.model.trust_remote_code, attn_implementation=attention
        )


def _is_local(config: Config) -> bool:
    return (config.cluster.address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def position_limit(described: Any, model: Any) -> tuple[int | None, bool]:
    """(positions that the model was made for, whether more of them fail).

    They fail where the model holds a table with a row a position: learned or fixed positions, as GPT-2, OPT and GPT-J
    have them (XGLM's table grows). Rotary positions are computed, and go on. MPT's mask is cut out of one of
    `max_seq_len`.
    """
    text = described.get_text_config()
    if isinstance(getattr(text, "max_seq_len", None), int):
        return text.max_seq_len, True
    made_for = getattr(text, "max_position_embeddings", None)
    if not isinstance(made_for, int):
        return None, False
    fails = any(
        _POSITIONS.search(f"{name}.{inner}") and tensor.dim() >= 2 and made_for <= tensor.shape[0] <= made_for + 2
        for name, module in model.named_modules()
        if not hasattr(module, "make_weights")
        for inner, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    )
    return made_for, fails


def _check_tokens(config: Config, tokenizer: Any, model: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    needed = max(vocabulary.values(), default=-1) + 1
    if needed <= rows:
        return
    rule = f"a model whose tokenizer fits it: the tokenizer has {needed:,} tokens, the embedding {rows:,} rows"
    remedy = (
        "Give the folder the tokenizer that the model was trained with, or enlarge the model and save it: "
        f"model.resize_token_embeddings({needed})."
    )
    raise BadInput("model.path", config.model.path, rule, remedy)


def check_length(config: Config, described: Any, model: Any) -> list[str]:
    """Sentences on `data.max_length` beyond the model's positions; BadInput where the model has no more of them."""
    made_for, fails = position_limit(described, model)
    if made_for is None or config.data.max_length <= made_for:
        return []
    if fails:
        rule = f"at most {made_for}: {config.model.path} ({described.model_type}) has no more positions"
        raise BadInput("data.max_length", config.data.max_length, rule, f"Set data.max_length={made_for}.")
    return [
        f"data.max_length is {config.data.max_length}, and the model was made for {made_for} positions: "
        f"it answers badly beyond them; data.max_length={made_for} keeps to them"
    ]


def _slow_dtype(config: Config) -> list[str]:
    """A sentence where this CPU computes, and is many times slower in the dtype of the config."""
    if config.model.dtype != "bf16" or config.cluster.gpus_per_worker or not _is_local(config):
        return []
    import torch

    if config.cluster.gpus_per_worker is None and torch.cuda.is_available():
        return []
    times = bf16_slowdown()
    if times < SLOW:
        return []
    return [
        f"model.dtype is bf16, whose matrix products take {times:.0f} times as long as those of fp32 on this CPU: "
        "model.dtype=fp32 takes twice the memory"
    ]


def check_headers(folder: Path, field: str) -> None:
    """Every file of the weights is there and whole, begins with numbers, and is as it was written."""
    from safetensors import SafetensorError, safe_open

    for file in whole_files(folder, field):
        try:
            with safe_open(file, "pt") as opened:
                bad = [name for name in opened.keys() if not _begins_finite(opened, name)]  # noqa: SIM118
        except (SafetensorError, OSError) as error:  # such as a type of numbers that torch has not
            raise damaged(file, field, error) from None
        if bad:
            rule = f"a file of finite numbers; {bad[0]} {f'and {len(bad) - 1} others begin' if bad[1:] else 'begins'} with NaN or infinity"
            remedy = "The training that made it has diverged, or the copy is damaged: take an earlier checkpoint."
            raise BadInput(field, str(file), rule, remedy)
    require_unchanged(folder, field)


def _begins_finite(opened: Any, name: str) -> bool:
    """Whether the first row of a tensor of a safetensors file is finite: a diverged training leaves none that is."""
    shape = opened.get_slice(name).get_shape()
    if 0 in shape:
        return True
    first = opened.get_slice(name)[:1] if shape else opened.get_tensor(name)
    return not first.is_floating_point() or bool(first.float().isfinite().all())
