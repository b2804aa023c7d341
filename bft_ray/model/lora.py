"""Low-rank adapters on a model, with targets that are known to exist."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bft_ray.config import LoraConfig
from bft_ray.errors import BadInput


def add_lora(model: Any, config: LoraConfig, seed: int) -> Any:
    """`W x + alpha/rank * B A x` on the targeted linear modules (Hu et al., arXiv 2106.09685); B starts at 0.

    Only A and B require gradients afterwards. The same seed gives the same A on every rank.

    Raises:
        BadInput: a target that names no linear module; the text lists those that exist.
    """
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    from bft_ray.model.lora_linear import join_adapters

    check_targets(model, config)
    dtype = model.dtype
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=config.dropout,
        target_modules=config.targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(enabled=True):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's, of an old name in transformers
            warnings.filterwarnings("ignore", "fan_in_fan_out is set")  # by peft itself, as GPT-2's layers need it
            adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
    to_dtype(adapted, dtype)
    join_adapters(adapted)
    return adapted


def to_dtype(model: Any, dtype: Any) -> None:
    """Adapters in the dtype of the model, where they are not: read ones, and those on 4-bit weights, which are made in fp32."""
    for parameter in model.parameters():  # not `model.to`: rotary frequencies are buffers, and stay in fp32
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def has_adapters(model: Any) -> bool:
    """Whether peft has attached adapters."""
    return hasattr(model, "peft_config")


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """A context in which the model computes without its adapters.

    peft's own `disable_adapter` also sets `requires_grad` off and on, behind the back of an engine that has hooks on the
    parameters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [
        module for module in model.modules() if isinstance(module, BaseTunerLayer) and not module.disable_adapters
    ]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def remove_adapters(model: Any) -> Any:
    """The base model, as it was before adapters were attached; its weights have not been touched."""
    base = model.unload()
    base.disable_input_require_grads()  # peft's own hook, for gradient checkpointing
    return base


def check_targets(model: Any, config: LoraConfig) -> None:
    """Every named target must match the end of a module's name."""
    if config.targets == "all-linear":
        return
    names = linear_names(model)
    for target in config.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            exists = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise BadInput(
                "lora.targets", target, "the name of a linear module of the model", f"It has: {', '.join(exists)}."
            )


def linear_names(model: Any) -> list[str]:
    """Full names of the modules that can carry an adapter."""
    import torch
    from transformers.pytorch_utils import Conv1D  # a linear layer with its weight transposed: GPT-2

    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]
