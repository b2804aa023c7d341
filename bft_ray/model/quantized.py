"""Frozen base weights in 4 bits while adapters train: QLoRA (Dettmers et al., arXiv 2305.14314), by bitsandbytes.

A weight is one of 16 values of the NormalFloat (section 3), times the largest magnitude of its block of 64, which is itself
kept in 8 bits ("double quantization"). The weights of linear modules are kept so, but of the head, of those that share theirs
with an embedding, and of those whose rows are no whole number of blocks: bitsandbytes 0.50.2 decodes these wrongly on CPUs.
All else stays in `model.dtype`, and so do adapters. A product takes W as it is decoded.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from bft_ray.config import ModelConfig
from bft_ray.errors import BadInput
from bft_ray.model.halves import causal_of

# it warns that a faster product, whose code it would fetch from a hub, is not here: `keep_layout` has no use for that one
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

LEAST = (0, 50)  # earlier versions have no backward pass on a CPU
BLOCK, BLOCK_OF_SCALES = 64, 256  # weights that share a scale, and scales that share one in fp32
#: per tensor: the 16 values and the 256 of the scales in fp32, and the mean of the scales
_TABLES_BYTES = 4 * (16 + 256 + 1)


def packed_bytes(num_elements: int) -> int:
    """Bytes of a weight of so many elements: 4 bits each, 8 a block, 32 for 256 blocks, and tables."""
    blocks = -(-num_elements // BLOCK)
    return -(-num_elements // 2) + blocks + 4 * -(-blocks // BLOCK_OF_SCALES) + _TABLES_BYTES


def packed_weights(model: Any) -> list[Any]:
    """The weights of a model with plain ones, adapted or not, that would be kept in 4 bits."""
    return [part.weight for _, part, is_packed in _linear(model) if is_packed]


def _linear(model: Any) -> list[tuple[str, Any, bool]]:
    """(name, module, whether its weight is to be in 4 bits) of the linear modules of the causal LM, without adapters."""
    from transformers.pytorch_utils import Conv1D  # a linear layer with its weight transposed: GPT-2

    causal = causal_of(model)
    head = causal.get_output_embeddings()
    whole = {id(own) for part in causal.modules() if isinstance(part, nn.Embedding) for own in part.parameters()}
    whole |= {id(own) for own in head.parameters()} if head is not None else set()
    found = []
    for name, part in causal.named_modules():
        if type(part) in (nn.Linear, Conv1D) and ".lora_" not in name:
            row = part.weight.shape[0 if isinstance(part, Conv1D) else 1]
            found.append((name, part, id(part.weight) not in whole and row % BLOCK == 0))
    return found


def require_bitsandbytes(config: ModelConfig) -> None:
    """BadInput where 4-bit weights are asked for, and there is no bitsandbytes here that makes them on any device."""
    if config.quantization is None:
        return
    try:
        found = version("bitsandbytes")
        if tuple(int(part) for part in found.split(".")[:2]) >= LEAST:
            return
        why = f"of at least {'.'.join(map(str, LEAST))}, and this is {found}"
    except PackageNotFoundError:
        why = "which is not installed"
    rule = f"null without bitsandbytes {why}"
    remedy = "Install it on every node: pip install 'bft-ray[4bit]'; or set model.quantization=null."
    raise BadInput("model.quantization", config.quantization, rule, remedy)


def require_plain(described: Any, config: ModelConfig) -> None:
    """BadInput for a model that was saved quantized, by whatever method.

    Args:
        described: its configuration, of transformers.
    """
    found = getattr(described, "quantization_config", None)
    if not found:
        return
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    method = getattr(method, "value", method) or "a method without a name"
    rule = f"a model with plain weights: these were saved quantized ({method})"
    remedy = "Give the model that it was made of; model.quantization=nf4 keeps that in 4 bits while adapters train."
    raise BadInput("model.path", config.path, rule, remedy)


def loading(config: ModelConfig, described: Any) -> dict[str, Any]:
    """Further arguments of `from_pretrained`.

    Args:
        described: configuration of the model, of transformers.

    Raises:
        BadInput: no bitsandbytes, or no weight that could be in 4 bits.
    """
    if config.quantization is None:
        return {}
    require_bitsandbytes(config)
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    with torch.device("meta"):
        linear = _linear(AutoModelForCausalLM.from_config(described, trust_remote_code=config.trust_remote_code))
    if not any(is_packed for *_, is_packed in linear):
        rule = f"null: this model has no linear modules but its head whose rows are multiples of {BLOCK} weights"
        raise BadInput(
            "model.quantization", config.quantization, rule, "It needs no 4-bit weights, or cannot have them."
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quantization,
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=[name for name, _, is_packed in linear if not is_packed] or None,
            bnb_4bit_compute_dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[config.dtype],
        )
    }


def keep_layout(model: Any) -> None:
    """Let the 4-bit weights of a loaded model stay as they are.

    On a CPU with AVX512-BF16 bitsandbytes would lay them out anew in the first evaluation, for a product that has no
    gradient: what trains after it would learn nothing, without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
