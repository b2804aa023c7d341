"""The DeepSpeed settings of a config: a preset by stage, offload, and the user's overlay on top."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from bft_ray.config import Config

#: Elements of DeepSpeed's own reduction buffers, which it allocates whole whatever the model's size.
BUCKET_ELEMENTS = 500_000_000


def is_zero3(config: Config) -> bool:
    """Whether the ranks share out the weights themselves."""
    return int(config.deepspeed.preset[-1]) == 3


def deepspeed_settings(config: Config, num_trainable: int | None = None) -> dict[str, Any]:
    """What `deepspeed.initialize` is given.

    Args:
        num_trainable: parameters that train, where they are known. The reduction buffers then have no more elements: one
            bucket held all gradients before as well, so the sums are the same.

    Batch sizes are placeholders: micro-batches are cut by tokens, and the step divides by global counts itself,
    so accumulation is 1 for DeepSpeed and the boundary is set by hand.
    """
    stage = int(config.deepspeed.preset[-1])
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_print": 10**9,
        "zero_optimization": _zero(stage, config.deepspeed.offload, num_trainable),
        # zero0 is clipped by the engine wrapper, which also applies the common scale of the step
        "gradient_clipping": (config.optimizer.max_grad_norm or 0.0) if stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if config.model.dtype == "bf16":
        settings["bf16"] = {"enabled": True}
        if stage >= 2:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return merge(settings, config.deepspeed.overlay)


def _zero(stage: int, offload: str, num_trainable: int | None) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if num_trainable:
        zero["reduce_bucket_size"] = min(BUCKET_ELEMENTS, num_trainable)
    if stage >= 2:
        zero |= {"contiguous_gradients": True, "overlap_comm": True}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`, key by key at every depth; neither is changed."""
    merged = deepcopy(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged
