"""What became of the rows: read, kept, dropped and why, truncated; and how long the samples are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

QUANTILES = {"min": 0.0, "p5": 0.05, "p50": 0.5, "p95": 0.95, "max": 1.0}


@dataclass
class SourceReport:
    """Counts of one source: rows_read = rows_kept + all of dropped; the truncated ones are among the kept."""

    path: str
    rows_read: int = 0
    rows_kept: int = 0
    truncated: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


@dataclass(frozen=True)
class DataReport:
    """Counts by source, and lengths of the kept samples.

    tokens, supervised_tokens: min, p5, p50, p95, max, mean a sample and their total, all in tokens.
    notes: what users should know of how rows became tokens.
    """

    sources: list[SourceReport]
    tokens: dict[str, float]
    supervised_tokens: dict[str, float]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> DataReport:
        """From `to_dict`."""
        return cls(**{**tree, "sources": [SourceReport(**source) for source in tree["sources"]]})

    def to_text(self) -> str:
        """A few lines for a terminal or a log."""
        lines = []
        for source in self.sources:
            reasons = [f"{count:,} {reason}" for reason, count in sorted(source.dropped.items())]
            dropped = f"; dropped: {', '.join(reasons)}" if reasons else ""
            truncated = f", {source.truncated:,} of them truncated" if source.truncated else ""
            counts = f"{source.rows_read:,} rows read, {source.rows_kept:,} kept"
            lines.append(f"{source.path}: {counts}{truncated}{dropped}")
        for name, lengths in (("tokens", self.tokens), ("supervised tokens", self.supervised_tokens)):
            a_sample = ", ".join(f"{key} {lengths[key]:,.0f}" for key in QUANTILES)
            lines.append(f"{name} a sample: {a_sample}; {lengths['total']:,.0f} in all")
        return "\n".join(lines + self.notes)


def describe_lengths(lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Quantiles (each an observed length), mean and total of lengths; at least one."""
    quantiles = np.quantile(lengths, list(QUANTILES.values()), method="inverted_cdf")
    described = dict(zip(QUANTILES, map(float, quantiles), strict=True))
    return {**described, "mean": float(np.mean(lengths)), "total": float(np.sum(lengths))}
