"""The settings of the loss that reference and fused path are compared on."""

from __future__ import annotations

from typing import Any

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
    "group, wide cap": {"method": "bft_group", "token_cap": 3.0, "token_epsilon": 0.1, "aggregate": "token"},
}
