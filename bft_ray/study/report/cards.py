"""Trials that are compared although they were computed on different types of card, from their records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bft_ray.page.model import Finding
from bft_ray.space.definition import SearchSpace
from bft_ray.study.confirm.choose import Choice
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH


def differ(
    parts: Mapping[str, Sequence[TrialRecord]], space: SearchSpace, choice: Choice | None = None
) -> Finding | None:
    """Baselines and search are compared with each other, and so are the runs of a confirmation. Records of an earlier version
    have no type, and are left out.
    """
    groups = {
        "of baselines and search": [*parts.get(BASELINES, ()), *parts.get(SEARCH, ())],
        "of the confirmation": parts.get(CONFIRMATION, ()),
    }
    texts = []
    for name, records in groups.items():
        counts = Counter(" and ".join(record.cards) for record in records if record.cards and record.is_finished)
        if len(counts) > 1 or any(" and " in cards for cards in counts):
            told = ", ".join(f"{count} on {cards}" for cards, count in sorted(counts.items()))
            texts.append(f"{told} {name}")
    if not texts:
        return None
    mixed = _mixed_seeds(parts.get(CONFIRMATION, ()))
    paired = f" The arms of seed {', '.join(map(str, mixed))} were computed on types that differ." if mixed else ""
    same = " The study is `deterministic`, but it is so on one type alone." if space.deterministic else ""
    return Finding(
        "Trials that are compared ran on different types of card",
        f"Trials: {'; '.join(texts)}. Types round differently, and their times do not compare.{paired}{same}",
        "Differences as small as rounding are no evidence. To keep a study on one type of accelerator, name its "
        'resource, for an H100 `cluster.resources_per_worker: {"accelerator_type:H100": 0.001}`.',
    )


def _mixed_seeds(records: Sequence[TrialRecord]) -> list[int]:
    """The seeds whose runs, which are compared in pairs, were not all computed on the same types."""
    by_seed: dict[int, set[tuple[str, ...]]] = {}
    for record in records:
        if record.cards and record.is_finished:
            by_seed.setdefault(record.seeds[0], set()).add(record.cards)
    return sorted(seed for seed, cards in by_seed.items() if len(cards) > 1)
