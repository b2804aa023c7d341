"""Duplicates: of trials that are the same run at every step, the first is trained and the others take its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from bft_ray.config.tree import Config
from bft_ray.space.duplicates import duplicate_reasons, run_key
from bft_ray.study.records.record import TrialRecord


def key_of(config: Config, seeds: Sequence[int], longest: int | None) -> str:
    """Text that a trial and its duplicates share: canonical loss, every other field of the config, and the seeds.

    Args:
        config: of the trial; its own `seed` does not count.
        seeds: one run each.
        longest: supervised tokens of the longest training sample; None: unknown, and fewer duplicates are found.
    """
    text = run_key(config.model_copy(update={"seed": 0}), longest) + json.dumps(list(seeds))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def original_of(records: Iterable[TrialRecord], key: str) -> TrialRecord | None:
    """The first trial that runs or ran under this key; None: there is none. It does not depend on the order of results.

    Args:
        records: of one part of the study.
    """
    found = [r for r in records if r.key == key and not r.duplicate_of]
    return min(found, key=lambda record: record.number, default=None)


def why_duplicate(config: Config, original: Config, longest: int | None) -> str:
    """Why one config is a duplicate of another: `windows 512 and 1024 both hold the longest sample (350 tokens) whole`."""
    reasons = duplicate_reasons(config.loss, original.loss, longest)
    return "; ".join(reasons) or "the same settings"
