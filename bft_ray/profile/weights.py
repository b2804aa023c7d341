"""From only the log-probability of each token: confidences of every window, starting weights of every setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bft_ray.config import LossConfig
from bft_ray.loss.weights import sample_weights
from bft_ray.model.start_logps import StartLogps
from bft_ray.space.duplicates import canonical

_QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class TokenLogps(StartLogps):
    """The supervised tokens of a dataset, with the confidences that follow from their log-probabilities."""

    _prefixes: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    _confidences: dict[tuple[int, str], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def confidence(self, window: int, mean: str) -> np.ndarray:
        """[S] float64: `c_s(g)` as of `bft_ray.loss.window_confidence`; kept for later calls.

        That function knows one window; here the sums from the start are shared by all windows of a mean.
        """
        key = (window, mean)
        if key not in self._confidences:
            least = _least_means(self._prefix(mean), self.num_tokens, window)
            self._confidences[key] = np.exp(least) if mean == "geometric" else least
        return self._confidences[key]

    def _prefix(self, mean: str) -> np.ndarray:
        """[N + 1] float64: sums of the log-probabilities (or probabilities) from the start, as in the loss."""
        if mean not in self._prefixes:
            values = self.logp.astype(np.float64)
            self._prefixes[mean] = np.concatenate([[0.0], np.cumsum(values if mean == "geometric" else np.exp(values))])
        return self._prefixes[mean]


def _least_means(prefix: np.ndarray, num_tokens: np.ndarray, window: int) -> np.ndarray:
    """[S]: the least mean of any window of a sample; of all of it where it has no more tokens than the window."""
    stop = np.cumsum(num_tokens)
    start = stop - num_tokens
    means = (prefix[stop] - prefix[start]) / num_tokens
    slides = num_tokens > window
    if slides.any():
        sums = prefix[window:] - prefix[:-window]  # from every token on; those across two samples are passed over
        bounds = np.stack([start[slides], stop[slides] - window + 1], axis=1).ravel()
        bounds = bounds[: -1 if bounds[-1] == len(sums) else None]  # where the last part ends with the sums
        means[slides] = np.minimum.reduceat(sums, bounds)[::2] / window
    return means


@dataclass(frozen=True)
class Setting:
    """A loss setting and the weights with which its training would start.

    Args:
        loss: the setting.
        weight: [S] float64, mean 1: `r_s / mean(r)` over the dataset (all ones where all are 0).
        confidence: [S] float64.
    """

    loss: LossConfig
    weight: np.ndarray
    confidence: np.ndarray

    @property
    def name(self) -> str:
        """Short: `complement w256`, `inverse w128 e0.05 c8`; `arithmetic` where it is, `gamma2` where it is not 1."""
        loss = self.loss
        parts = [loss.sample_weight, f"w{loss.window}"]
        if loss.sample_weight == "inverse":
            parts.append(f"e{loss.epsilon:g}")
        if loss.weight_cap is not None:
            parts.append(f"c{loss.weight_cap:g}")
        if loss.confidence == "arithmetic":
            parts.append("arithmetic")
        if loss.gamma != 1:
            parts.append(f"gamma{loss.gamma:g}")
        return " ".join(parts)

    def figures(self) -> dict[str, float]:
        """Shape of the weights.

        - `effective_share`: Kish's effective sample size by the number of samples, `(sum r)^2 / (S sum r^2)`: 1 when all
          weights are equal, 1/S when one sample has it all;
        - `largest_share`: of the total weight, what the heaviest sample has;
        - `capped_share`: samples whose weight the cap cuts;
        - `weight_p10`, `_p50`, `_p90`: quantiles, as multiples of the mean.
        """
        weight, total = self.weight, self.weight.sum()
        quantiles = np.quantile(weight, _QUANTILES)
        _, capped = sample_weights(torch.from_numpy(self.confidence), self.loss)
        return {
            "effective_share": float(total**2 / (len(weight) * (weight**2).sum())),
            "largest_share": float(weight.max() / total),
            "capped_share": float(capped.double().mean()),
            **{f"weight_p{100 * level:.0f}": float(q) for level, q in zip(_QUANTILES, quantiles, strict=True)},
        }


def weigh_settings(tokens: TokenLogps, losses: Sequence[LossConfig]) -> list[Setting]:
    """The starting weights of each setting."""
    made = []
    for loss in losses:
        confidence = tokens.confidence(loss.window, loss.confidence)
        raw, _ = sample_weights(torch.from_numpy(confidence), loss)
        mean = float(raw.mean())
        weight = raw.numpy() / mean if mean > 0 else np.ones(len(confidence))
        made.append(Setting(loss, weight, confidence))
    return made


def window_figures(tokens: TokenLogps, windows: Sequence[int]) -> list[dict[str, float]]:
    """For each window: the share of samples that it covers whole, and quantiles of the geometric confidence."""
    rows = []
    for window in windows:
        confidence = tokens.confidence(window, "geometric")
        quantiles = np.quantile(confidence, _QUANTILES)
        rows.append(
            {
                "window": window,
                "whole_share": float((tokens.num_tokens <= window).mean()),
                **{f"confidence_p{100 * level:.0f}": float(q) for level, q in zip(_QUANTILES, quantiles, strict=True)},
            }
        )
    return rows


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation between two ways to share out one weight: `1/2 sum |a_s / sum a - b_s / sum b|`, 0..1."""
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)


def rank_correlations(settings: Sequence[Setting]) -> np.ndarray:
    """Spearman's rank correlation of the weights of all pairs; NaN beside a setting whose weights are all equal."""
    from scipy.stats import rankdata

    ranks = np.stack([rankdata(setting.weight) for setting in settings])
    centred = ranks - ranks.mean(1, keepdims=True)
    norm = np.sqrt((centred**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return centred @ centred.T / np.outer(norm, norm)


def equal_groups(settings: Sequence[Setting], longest: int) -> list[list[int]]:
    """Indices of settings that are the same run at every step (see `bft_ray.space.duplicates`), in order."""
    groups: dict[str, list[int]] = {}
    for index, setting in enumerate(settings):
        groups.setdefault(repr(sorted(canonical(setting.loss, longest).items())), []).append(index)
    return list(groups.values())


def near_pairs(
    settings: Sequence[Setting], groups: Sequence[Sequence[int]], below: float
) -> list[tuple[int, int, float]]:
    """Pairs of settings of different groups whose starting weights differ by less than `below`, nearest first.

    One of each group represents it. They only *start* alike: they are no duplicates. Settings with different token
    weights are not compared: their runs differ even under the same sample weights.
    """
    heads = [group[0] for group in groups]
    pairs = []
    for place, a in enumerate(heads):
        for b in heads[place + 1 :]:
            if settings[a].loss.token_weight != settings[b].loss.token_weight:
                continue
            apart = distance(settings[a].weight, settings[b].weight)
            if apart < below:
                pairs.append((a, b, apart))
    return sorted(pairs, key=lambda pair: pair[2])
