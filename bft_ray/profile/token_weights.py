"""The token weights with which the training of each form would start."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bft_ray.config import LossConfig
from bft_ray.config.profile import ProfileConfig
from bft_ray.loss.weights import token_weights
from bft_ray.model.start_logps import StartLogps


def token_settings(settings: ProfileConfig, window: int, has_entropy: bool) -> list[LossConfig]:
    """Each form of the token weight: `power` over the exponents, `threshold` over the thresholds, `group`, `entropy`.

    `prior` starts as the `power` of its exponent does: then p0 is p.
    """
    losses = [LossConfig(method="sft", token_weight="power", token_power=power) for power in settings.powers]
    losses += [
        LossConfig(method="sft", token_weight="threshold", token_threshold=threshold)
        for threshold in settings.thresholds
    ]
    if has_entropy:
        losses.append(LossConfig(method="sft", token_weight="entropy"))
    return [*losses, LossConfig(method="sft", token_weight="group", window=window)]


def weigh_tokens(tokens: StartLogps, losses: list[LossConfig], below: float) -> list[dict[str, Any]]:
    """One row for each form of the token weight.

    - `mean`: of the weights, 1 for plain fine-tuning: what is left of the learning rate;
    - `effective_share`: Kish's, over tokens: 1 when all weigh the same (0 when all weights are 0);
    - `low_share`: share of the weight on tokens whose probability is below `below`;
    - `zero_share`: tokens with a weight of less than 1e-6.
    """
    logp = torch.from_numpy(tokens.logp).double()
    sample = torch.repeat_interleave(torch.arange(len(tokens.num_tokens)), torch.from_numpy(tokens.num_tokens))
    is_low = np.exp(tokens.logp) < below
    rows = []
    for loss in losses:
        entropy = None if tokens.entropy is None else torch.from_numpy(tokens.entropy)
        weight = token_weights(logp, sample, len(tokens.num_tokens), loss, entropy).numpy()
        total = weight.sum()
        rows.append(
            {
                "name": name_of(loss),
                "token_weight": loss.token_weight,
                "mean": float(weight.mean()),
                "effective_share": float(total**2 / (len(weight) * (weight**2).sum())) if total else 0.0,
                "low_share": float(weight[is_low].sum() / total) if total else 0.0,
                "zero_share": float((weight < 1e-6).mean()),
            }
        )
    return rows


def name_of(loss: LossConfig) -> str:
    """Short: `power a0.5`, `threshold t0.1`, `entropy of 20`, `group w256`."""
    return {
        "power": f"power a{loss.token_power:g}",
        "threshold": f"threshold t{loss.token_threshold:g}",
        "entropy": f"entropy of {loss.entropy_top_k}",
        "group": f"group w{loss.window}",
    }[loss.token_weight]
