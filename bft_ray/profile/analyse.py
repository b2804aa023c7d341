"""Log-probabilities of the data -> all results of a profile; no model."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from bft_ray.config import Config, LossConfig
from bft_ray.config.profile import ProfileConfig
from bft_ray.profile.propose import FLAT, parameters_for, propose
from bft_ray.profile.result import Profile
from bft_ray.profile.stretches import Stretches, stretches
from bft_ray.profile.token_weights import token_settings, weigh_tokens
from bft_ray.profile.weights import (
    Setting,
    TokenLogps,
    distance,
    equal_groups,
    near_pairs,
    rank_correlations,
    weigh_settings,
    window_figures,
)

_FIELDS = {"sample_weight", "confidence", "window", "epsilon", "weight_cap"}


def analyse(
    tokens: TokenLogps,
    settings: ProfileConfig,
    title: str,
    config: Config,
    source: str,
    earlier: TokenLogps | None = None,
) -> Profile:
    """Everything that follows from the log-probabilities; no model."""
    began = time.perf_counter()
    windows = window_figures(tokens, settings.windows)
    windows_s = time.perf_counter() - began
    made = weigh_settings(tokens, _losses(settings, config.loss.gamma))
    longest = int(tokens.num_tokens.max())
    equal = equal_groups(made, longest)
    near = near_pairs(made, equal, settings.near)
    drift = _drift(made, earlier) if earlier is not None else {}
    forms = token_settings(settings, config.loss.window, tokens.entropy is not None)
    low = stretches(tokens, settings.low_confidence)
    rows = [{"name": setting.name} | setting.loss.model_dump(include=_FIELDS) | setting.figures() for setting in made]
    parameters = parameters_for(config, made, equal, longest, windows)
    return Profile(
        title=title,
        tokens=tokens,
        windows=windows,
        settings=rows,
        token_weights=weigh_tokens(tokens, forms, settings.low_confidence),
        stretches=low,
        equal=equal,
        near=near,
        ranks=rank_correlations([made[group[0]] for group in equal]),
        drift=drift,
        findings=[*_findings(tokens, windows, rows, equal, near, settings, drift), _about_stretches(low)],
        parameters=parameters,
        proposal=propose(config, source, parameters, len(made[0].weight)),
        seconds={"windows": windows_s, "analysis": time.perf_counter() - began},
    )


def _losses(settings: ProfileConfig, gamma: float) -> list[LossConfig]:
    """Each form of the sample weight that a named method has, over all windows; `inverse` over epsilons and caps too.

    `bft` represents `bft_no_token` too, whose sample weights are the same.
    """
    losses = [LossConfig(method="bft", window=window, gamma=gamma) for window in settings.windows]
    losses += [LossConfig(method="bft_group", window=window, gamma=gamma) for window in settings.windows]
    for window, epsilon, cap in itertools.product(settings.windows, settings.epsilons, settings.caps):
        losses.append(LossConfig(method="bft_inverse", window=window, epsilon=epsilon, weight_cap=cap, gamma=gamma))
    return losses


def _drift(made: list[Setting], earlier: TokenLogps) -> dict[str, dict[str, float]]:
    before = weigh_settings(earlier, [setting.loss for setting in made])
    return {
        now.name: {
            "moved": distance(now.weight, then.weight),
            "rank_correlation": float(np.nan_to_num(rank_correlations([now, then])[0, 1], nan=1.0)),
        }
        for now, then in zip(made, before, strict=True)
    }


def _about_stretches(low: Stretches) -> str:
    told = low.figures()
    if not told["longest_run"]:
        return f"No token has a probability below {low.below:g}."
    return (
        f"Tokens with a probability below {low.below:g} are {told['share_p50']:.0%} of a sample (median; 10 % to 90 % of the "
        f"samples: {told['share_p10']:.0%} to {told['share_p90']:.0%}), and their longest run is "
        f"{told['longest_run_p50']:.0f} tokens ({told['longest_run_p10']:.0f} to {told['longest_run_p90']:.0f}, at most "
        f"{told['longest_run']:.0f}): long runs are dense hard stretches, short ones are spread."
    )


def _findings(
    tokens: TokenLogps,
    windows: list[dict[str, float]],
    rows: list[dict[str, Any]],
    equal: list[list[int]],
    near: list[tuple[int, int, float]],
    settings: ProfileConfig,
    drift: dict[str, dict[str, float]],
) -> list[str]:
    lengths = tokens.num_tokens
    median, p95 = np.percentile(lengths, [50, 95])
    longest = int(lengths.max())
    lines = [
        f"{len(lengths):,} samples with {int(lengths.sum()):,} supervised tokens: "
        f"median {median:.0f}, 95 % below {p95:.0f}, longest {longest:,}.",
        f"The mean probability of a token is {np.exp(tokens.logp).mean():.3f}, its mean loss {-tokens.logp.mean():.3f} nats.",
    ]
    if same := [f"{row['window']:g}" for row in windows if row["window"] >= longest]:
        lines.append(f"Windows of {longest:,} and more are one and the same here: {', '.join(same)}.")
    if mostly := [row for row in windows if row["whole_share"] >= 0.5 and row["window"] < longest]:
        text = ", ".join(f"{row['window']:g} ({row['whole_share']:.0%})" for row in mostly)
        lines.append(f"These cover most samples whole, whose confidence is then a plain mean: {text}.")
    shares = [row["effective_share"] for row in rows]
    flat, steep = rows[int(np.argmax(shares))], rows[int(np.argmin(shares))]
    lines.append(
        f"Weights are most uneven with {steep['name']} (as if {steep['effective_share']:.0%} of the samples counted) "
        f"and most even with {flat['name']} ({flat['effective_share']:.0%})."
    )
    lines.append(f"Of {len(rows)} settings {len(equal)} are different runs; the others repeat one of them exactly.")
    inverse = [row for row in (rows[group[0]] for group in equal) if row["sample_weight"] == "inverse"]
    if even := sum(row["effective_share"] > FLAT for row in inverse):
        kept = "the epsilons and caps of the others" if even < len(inverse) else "the method's own epsilon and cap"
        lines.append(
            f"{even} of the {len(inverse)} different runs of `inverse` start with hardly any weights (as if more than "
            f"{FLAT:.0%} of the samples counted): the proposed search space has {kept}."
        )
    if near:
        lines.append(
            f"{len(near)} pairs of different runs start nearly alike (less than {settings.near:.1%} of the weight "
            "differs): expect little difference between them, though they are no duplicates."
        )
    if drift:
        name, row = max(drift.items(), key=lambda item: item[1]["moved"])
        lines.append(f"Since the earlier profile up to {row['moved']:.1%} of the weight has moved ({name}).")
    return lines
