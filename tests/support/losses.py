"""The settings of the loss that reference and fused path are compared on."""

from __future__ import annotations

from typing import Any

import torch

from bft_ray.config import METHODS

CONFIGS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "prob": {"method": "bft", "token_weight": "prob"},
    "arithmetic": {"method": "bft", "confidence": "arithmetic", "gamma": 2.0},
    "complement capped, normalised": {"method": "bft", "weight_cap": 0.9, "normalise": True},
    "inverse, low cap": {"method": "bft_inverse", "weight_cap": 2.0, "epsilon": 0.2, "gamma": 0.5},
    "inverse, not normalised": {"method": "bft_inverse", "weight_cap": None, "normalise": False},
    "inverse, token aggregate": {"method": "bft_inverse", "aggregate": "token", "confidence": "arithmetic"},
    "group, centered": {"method": "bft_group", "window_alignment": "centered"},
    "power": {"method": "bft", "token_weight": "power", "token_power": 0.5},
    "power 2, token": {"method": "dft", "token_weight": "power", "token_power": 2.0},
    "prior": {"method": "bft", "token_weight": "prior", "token_power": 0.7},
    "entropy": {"method": "bft_inverse", "token_weight": "entropy", "token_power": 0.6, "entropy_top_k": 5},
    "entropy of 20": {"method": "dft", "token_weight": "entropy"},
    "threshold": {"method": "bft", "token_weight": "threshold", "token_threshold": 0.3},
    "anchor": {"method": "bft", "anchor": 0.4},
    "anchor, plain": {"method": "sft", "anchor": 1.5},
    "prior, anchor": {"method": "bft_inverse", "token_weight": "prior", "anchor": 0.1, "aggregate": "token"},
    "entropy, anchor": {"method": "bft_no_sample", "token_weight": "entropy", "anchor": 0.2},
    "group, wide cap": {"method": "bft_group", "token_cap": 3.0, "token_epsilon": 0.1, "aggregate": "token"},
}


def start_of(logits: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] "under the starting weights": others than these, and a function of them."""
    return 0.7 * logits.detach() + 0.5 * logits.detach().roll(1, -1)
