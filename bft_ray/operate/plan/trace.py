"""What a forward and a backward pass hold beside weights and gradients: run on tensors that have shapes and no data.

torch's fake tensors take the kernels of the CPU path, and each operation is seen; so every architecture has its own
number, and checkpointing, packing and the fused loss are what the training step really does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bft_ray.config import Config, LoraConfig
from bft_ray.data.pack import MicroBatch
from bft_ray.errors import BftError, first_line
from bft_ray.loss import passes
from bft_ray.model.check import skeleton
from bft_ray.model.host_memory import bound_shape_caches
from bft_ray.model.lora import add_lora
from bft_ray.model.quantized import packed_weights
from bft_ray.operate.plan.live import LiveBytes
from bft_ray.train.loss_model import LossModel

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Untraceable(BftError):
    """An architecture that does not run on tensors without data."""


@dataclass(frozen=True)
class Shape:
    """The largest micro-batch: `num_rows` samples of `num_tokens` tokens each, all but their first one supervised."""

    num_rows: int
    num_tokens: int
    packing: bool = False


def traced_bytes(
    config: Config, described: Any, lora: LoraConfig | None, *, checkpointing: bool, shape: Shape, is_gpu: bool
) -> int:
    """Most bytes that live at once in a forward and backward pass, beyond weights and gradients of parameters.

    Args:
        described: configuration of the model (`bft_ray.model.check.describe`).
        lora: adapters; None: all weights train.
        checkpointing: activations are made again in the backward pass.
        is_gpu: blocks of the head as large as on a GPU.

    Raises:
        Untraceable: the shapes of the passes depend on values.
    """
    bound_shape_caches()
    model = built(config, described, lora)
    if checkpointing:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of the method's name
            model.gradient_checkpointing_enable({"use_reentrant": False})
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        _leave_meta(model)
        for tensor in (*model.parameters(), *model.buffers()):
            live.count(tensor)
        for parameter in model.parameters():
            if parameter.requires_grad:  # gradients are no part of it: `states` has them
                parameter.register_post_accumulate_grad_hook(lambda own: setattr(own, "grad", None))
        whole, micro = LossModel(model), _micro_batch(shape)
        held = live.live_bytes
        live.forget_peak()
        try:
            with nullcontext() if shape.packing else _one_sample_a_row():
                whole(micro, config.loss).loss_sum.backward()
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise Untraceable(
                f"the activations of {type(model).__name__} are not known: {first_line(error)}"
            ) from error
        found = live.peak_bytes - held
    if config.model.quantization and lora is not None:
        found += decoded_bytes(model)
    return found + (_more_of_a_gpu(lora is None) if is_gpu else 0)


def built(config: Config, described: Any, lora: LoraConfig | None) -> Any:
    """The model, ready to train, on the meta device: shapes and types, no memory. Errors as `skeleton`, and `add_lora`."""
    if config.model.attention.startswith("flash"):  # keeps the same tensors as the CPU's kernel of sdpa
        config = config.model_copy(update={"model": config.model.model_copy(update={"attention": "sdpa"})})
    with torch.device("meta"):
        model = skeleton(config, described)
        model.config.use_cache = False
        model = add_lora(model, lora, 0) if lora else model
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[config.model.dtype])
    return model.train()


def decoded_bytes(model: Any) -> int:
    """Of the largest 4-bit weight, decoded, as a product takes it; here the linear modules are plain ones."""
    return max((weight.numel() * weight.element_size() for weight in packed_weights(model)), default=0)


def _leave_meta(model: torch.nn.Module) -> None:
    """Each tensor on the CPU, as the mode that is on makes them; tied ones stay one."""
    known: dict[int, Any] = {}
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None and id(own) not in known:
                empty = torch.empty_like(own, device="cpu")
                known[id(own)] = own, torch.nn.Parameter(empty, requires_grad=own.requires_grad)
            if own is not None:
                module._parameters[name] = known[id(own)][1]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cpu")


@contextmanager
def _one_sample_a_row() -> Iterator[None]:
    """Tell transformers that no row holds two samples: it asks the positions, which have no values here."""
    from transformers import masking_utils

    asked = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asked


def _more_of_a_gpu(is_full: bool) -> int:
    """The head's block of logits under a frozen head is larger on a GPU."""
    return 0 if is_full else 4 * (passes.BLOCK_LOGITS_DEVICE - passes.BLOCK_LOGITS["cpu"])


def _micro_batch(shape: Shape) -> MicroBatch:
    rows, tokens = shape.num_rows, shape.num_tokens
    width, laid = rows * tokens, (1, rows * tokens) if shape.packing else (rows, tokens)
    place = torch.arange(width).view(rows, tokens)
    position = place[:, 1:].flatten()
    return MicroBatch(
        input_ids=torch.zeros(laid, dtype=torch.int64),
        position_ids=(place % tokens).view(laid) if shape.packing else None,
        position=position,
        sample=position // tokens,
        target=torch.zeros(len(position), dtype=torch.int64),
        lengths=[tokens - 1] * rows,
        sample_ids=[""] * rows,
        num_samples=rows,
    )
