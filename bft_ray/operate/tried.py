"""What only a whole model shows: how it makes its logits, and whether it looks ahead. A small one is tried before a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bft_ray.config import Config
from bft_ray.model.causal_lm import adapter_of, load_model
from bft_ray.operate.machine import GIB

_MOST_BYTES = 2 * GIB  # of weights: a larger model is tried by the run alone


def require_tried(config: Config, described: Any) -> None:
    """Refuse what a run refuses when it has the weights, in the same words.

    BERT and its like are causal LMs to transformers, and look ahead. Other models are not loaded for it, but where
    `data.packing` is asked for.

    Args:
        described: the model's configuration (`bft_ray.model.check.describe`).

    Raises:
        BadInput: see `check_halves` and `choose_rows`.
    """
    may_fail = getattr(described.get_text_config(), "is_decoder", None) is False or config.data.packing
    if not may_fail or not 0 < weights_bytes(config) <= _MOST_BYTES:
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and config.model.attention.startswith("flash"):
        return
    from bft_ray.model.halves import check_halves
    from bft_ray.model.layouts import measure_layouts
    from bft_ray.model.packing import choose_rows

    model = load_model(config.model, seed=config.seed).to(device).eval()
    check_halves(model, device)
    choose_rows(config, measure_layouts(model, device), model, device)


def weights_bytes(config: Config) -> int:
    """Bytes of the base weights on this disk; 0 where they are elsewhere."""
    return sum(path.stat().st_size for path in Path(adapter_of(config.model)[0]).glob("*.safetensors"))
