"""What a profile found: figures of windows and settings, which are equal or nearly so, sentences, a search space."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bft_ray.profile.rewrite import Rewritten
from bft_ray.profile.stretches import Stretches
from bft_ray.profile.weights import TokenLogps

_BINS = 40


@dataclass(frozen=True)
class Profile:
    """What was found; indices are places in `settings`.

    Args:
        title: domain and model.
        windows: a row a window, see `window_figures`.
        settings: a row a setting: its name, fields, and `Setting.figures`.
        token_weights: a row a form of the token weight, see `weigh_tokens`.
        stretches: low-confidence tokens of each sample.
        equal: groups that are the same run at every step, singles among them.
        near: pairs of different groups that start alike: (index, index, share of the weight that differs).
        distinct: one setting of each group.
        ranks: rank correlations of the starting weights of `distinct`.
        drift: how far the weights have moved since an earlier profile, by setting's name; empty without one.
        findings: sentences.
        parameters: what a search space varies on this data, as it declares it.
        proposal: a search space, YAML.
        rewritten: the space that `bft-ray init` wrote, with these parameters; None where it stays as it is.
    """

    title: str
    tokens: TokenLogps
    windows: list[dict[str, float]]
    settings: list[dict[str, Any]]
    token_weights: list[dict[str, Any]]
    stretches: Stretches
    equal: list[list[int]]
    near: list[tuple[int, int, float]]
    ranks: np.ndarray
    drift: dict[str, dict[str, float]]
    findings: list[str]
    parameters: dict[str, Any]
    proposal: str
    rewritten: Rewritten | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def distinct(self) -> list[int]:
        """Indices of settings that differ: the first of each group of equal ones."""
        return [group[0] for group in self.equal]

    def near_rows(self) -> list[dict[str, Any]]:
        """The pairs of `near` by name, with the rank correlation of their weights, nearest first."""
        place = {index: row for row, index in enumerate(self.distinct)}
        return [
            {
                "a": self.settings[a]["name"],
                "b": self.settings[b]["name"],
                "moved": apart,
                "rank_correlation": _number(self.ranks[place[a], place[b]]),
            }
            for a, b, apart in self.near
        ]

    def _histograms(self) -> dict[str, dict[str, list[float]]]:
        """Samples by their length, tokens by their probability, and samples by their longest run of low-confidence tokens."""
        lengths, runs = self.tokens.num_tokens, self.stretches.longest
        longest = int(runs.max()) + 1
        edges = np.geomspace(max(lengths.min(), 1), lengths.max() + 1, _BINS + 1)
        return {
            "lengths": _counted(lengths, edges),
            "tokens": _counted(np.exp(self.tokens.logp), np.linspace(0, 1, _BINS + 1)),
            "runs": _counted(runs, np.linspace(0, longest, min(longest, _BINS) + 1)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tokens and the pictures, for JSON."""
        lengths = self.tokens.num_tokens
        names = [row["name"] for row in self.settings]
        return {
            "title": self.title,
            "num_samples": len(lengths),
            "num_supervised_tokens": int(lengths.sum()),
            "lengths": {f"p{level}": float(np.percentile(lengths, level)) for level in (0, 5, 25, 50, 75, 95, 99, 100)},
            "histograms": self._histograms(),
            "windows": self.windows,
            "settings": self.settings,
            "token_weights": self.token_weights,
            "low_confidence": {"below": self.stretches.below} | self.stretches.figures(),
            "equal": [[names[index] for index in group] for group in self.equal if len(group) > 1],
            "near": self.near_rows(),
            "rank_correlations": {
                "settings": [names[index] for index in self.distinct],
                "matrix": [[_number(value) for value in row] for row in self.ranks],
            },
            "drift": self.drift,
            "findings": self.findings,
            "seconds": self.seconds,
        }


def _counted(values: np.ndarray, edges: np.ndarray) -> dict[str, list[float]]:
    counts, _ = np.histogram(values, edges)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": counts.tolist()}


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(float(value), 6)
