"""The layout of the samples of a run: packed in one row, padded, or alone; from what `bft_ray.model.layouts` measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bft_ray.config import Config
from bft_ray.errors import BadInput
from bft_ray.model.halves import causal_of
from bft_ray.model.layouts import Layouts
from bft_ray.model.rotary import stretched


@dataclass(frozen=True)
class Rows:
    """The layout of the samples of a run.

    Args:
        packing: end to end in one row; else a row each, padded to the longest.
        size: most samples of a micro-batch; None: no limit. 1 where padding is not exact either.
        why: one line for people.
    """

    packing: bool
    size: int | None = None
    why: str = ""


def choose_rows(config: Config, layouts: Layouts, model: Any, device: torch.device | str) -> Rows:
    """The layout of the samples: that of `data.packing`, or where it is null the fastest exact one.

    Packing is fast where attention skips what is masked: on a GPU, but for eager attention. On a CPU it is slower than
    padding, and padding is taken.

    Raises:
        BadInput: `data.packing` is true and not exact, or the model looks ahead.
    """
    causal = causal_of(model)
    name, text = type(causal).__name__, causal.config.get_text_config()
    if layouts.padded_flow > layouts.flow_tolerance and math.isfinite(layouts.padded_flow):
        rule = f"a causal architecture: of this one a token sees later ones (by {layouts.padded_flow:.1e})"
        raise BadInput("model.path", name, rule, "Use a decoder, or a model whose config has is_decoder.")
    leak = _leak(layouts, text, config)
    if config.data.packing and leak:
        raise BadInput("data.packing", True, f"false or null: {name} is not exact with it ({leak})", "Leave it null.")
    own = _apart(layouts, text, config)
    if own:
        return Rows(False, 1, f"one sample a row: {name} is not exact with padding ({own})")
    if config.data.packing is not None:
        return Rows(config.data.packing, None, "packed" if config.data.packing else "padded")
    if leak:
        return Rows(False, None, f"padded: {name} is not exact when packed ({leak})")
    if torch.device(device).type != "cuda" or config.model.attention == "eager":
        where = "eager attention" if torch.device(device).type == "cuda" else "the CPU"
        return Rows(False, None, f"padded, which is faster than packing with {where}")
    return Rows(True, None, "packed")


def _leak(layouts: Layouts, text: Any, config: Config) -> str:
    """Why packing is not exact; empty where it is."""
    if not layouts.packing_is_exact:
        if not math.isfinite(layouts.packed):
            return "it takes no position_ids"
        if layouts.packed_flow > layouts.flow_tolerance:
            return f"a sample sees its neighbours, by {layouts.packed_flow:.1e} of its gradient"
        return f"packed and alone differ by {layouts.packed:.1e}"
    chunk = getattr(text, "attention_chunk_size", None)
    if chunk and config.data.micro_batch_tokens > chunk:
        return f"its attention is cut every {chunk} tokens of the row"
    return _apart(layouts, text, config)


def _apart(layouts: Layouts, text: Any, config: Config) -> str:
    """Why padding is not exact either; empty where it is.

    Raises:
        BadInput: rotary positions that depend on what the model has seen before.
    """
    if not layouts.padding_is_exact:
        return f"padded and alone differ by {layouts.padded:.1e}"
    for kind, original in stretched(text):
        if config.data.max_length > original:
            if kind == "dynamic":
                rule = f"at most {original}: beyond, this model's rotary positions depend on the batches before"
                raise BadInput("data.max_length", config.data.max_length, rule, "Lower it.")
            return f"its rotary positions change where the longest sample has more than {original} tokens"
    return ""
