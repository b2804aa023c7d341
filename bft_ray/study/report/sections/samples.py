"""The data: the profile of the training set, and the hardest items of the confirmation, by id and never by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bft_ray.config.metrics import higher_is_better
from bft_ray.page.model import Cell, Number, Section, Table
from bft_ray.profile.page import parts_of
from bft_ray.study.kept import Known
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import CONFIRMATION

_SHOWN = 15


def data(known: Known) -> Section | None:
    """The profile of the training data; None where there is none."""
    if known.profile is None:
        return None
    return Section("profile", "The training data: what windows see", parts_of(known.profile))


def hardest(known: Known) -> Section | None:
    """The items on which all arms together do worst; None before the confirmation."""
    metric = known.study.space.objective.metric
    table = hardest_table(known.parts[CONFIRMATION], metric, known.choice.champion if known.choice else None)
    if table is None:
        return None
    text = (
        "Items of the confirmation split with the worst mean score over all arms and seeds. Look at them in your own "
        "files: a wrong label or a missing context shows here first. Only ids are kept, never text."
    )
    return Section("hardest", "The hardest items", [text, table])


def hardest_table(runs: Sequence[TrialRecord], metric: str, champion: str | None) -> Table | None:
    """A row an item, worst first: its mean score over all runs and over those of the champion, and the spread of the arms."""
    own = [record for record in runs if record.extra.get("items") and not record.duplicate_of]
    if not own:
        return None
    ids = sorted(set.intersection(*(set(record.extra["items"]) for record in own)))
    scores = {record.id: np.array([record.extra["items"][item] for item in ids]) for record in own}
    mean = np.mean(list(scores.values()), axis=0)
    arms = _by_arm(own, scores)
    spread = np.ptp(list(arms.values()), axis=0)
    order = np.argsort(mean if higher_is_better(metric) else -mean, kind="stable")[:_SHOWN]
    names = [name for name in (champion,) if name in arms]
    rows: list[list[Cell]] = []
    for place in order:
        values = [mean[place], *(arms[name][place] for name in names), spread[place]]
        rows.append([f"`{ids[place]}`", *(Number.of(float(value), ".3f") for value in values)])
    return Table(["item", "mean of all runs", *(f"mean of {name}" for name in names), "best arm less worst"], rows)


def _by_arm(own: Sequence[TrialRecord], scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(record.extra["arm"] for record in own)
    return {name: np.mean([scores[r.id] for r in own if r.extra["arm"] == name], axis=0) for name in names}
