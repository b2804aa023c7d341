"""The best of a search beside the tuned baselines, on the data of the search: the answer of a study without confirmation.

With d_si the score of the best trial minus that of its rival (the best baseline, or else the next trial) on item i under
seed s, with the sign for which above 0 is better:

    gain        D = mean over s of mean over i of d_si
    its error   of one seed, sd(d_i) / sqrt(n); of several, see `bft_ray.stats.alone.compare_alone`
    interval    D +- t(1 - p/2) se,   p = 0.05 / K

The trial is the best of K, picked on the items that also measure it. With Bonferroni's 0.05 / K the interval holds
whichever trial was picked.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bft_ray.config.metrics import format_value, higher_is_better, is_better
from bft_ray.space.assign import DEFAULT_METHOD
from bft_ray.space.definition import SearchSpace
from bft_ray.stats.alone import compare_alone
from bft_ray.stats.comparison import Comparison
from bft_ray.stats.simultaneous import as_arrays
from bft_ray.study.records.ranking import best, ranked, tuned
from bft_ray.study.records.record import Records, TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH

#: id of a trial -> seed -> item -> score, of those that are compared
Items = Mapping[str, Mapping[int, Mapping[str, float]]]

_ALPHA = 0.05


@dataclass(frozen=True)
class Standing:
    """The best trial of a search and the trial that it is compared with.

    Args:
        top: the best trial.
        rival: the best baseline; without baselines the next trial that is no duplicate; None: there is none.
        gain: of top over rival; None where the scores of single items are not known, or both are the same run.
        num_picked: trials from which the best was picked.
        num_items, num_seeds: that the gain is measured on.
    """

    top: TrialRecord
    rival: TrialRecord | None
    gain: Comparison | None = None
    num_picked: int = 1
    num_items: int = 0
    num_seeds: int = 1

    @property
    def is_same(self) -> bool:
        """Whether the best trial is the same run as the rival."""
        return self.rival is not None and self.top.key == self.rival.key and bool(self.top.key)


def compared(records: Records, metric: str) -> list[TrialRecord]:
    """The best trial of the search, and its rival, which are compared by item; empty while nothing has finished."""
    top = best(records.get(SEARCH, ()), metric)
    if top is None:
        return []
    baselines = list(tuned(records.get(BASELINES, ()), metric).values())
    if baselines:
        return [top, baselines[0]]
    others = [record for record in ranked(records[SEARCH], metric) if record.ran_to_end and record is not top]
    return [top, *others[:1]]


def standing_of(records: Records, metric: str, items: Items) -> Standing | None:
    """The best trial, its rival and the gain; None while no trial has finished.

    Args:
        items: of the trials that `compared` names; {}: not known.
    """
    found = compared(records, metric)
    if not found:
        return None
    top, rival = found[0], found[1] if len(found) > 1 else None
    picked = sum(record.ran_to_end for record in records[SEARCH]) or 1
    bare = Standing(top, rival, None, picked)
    if rival is None or bare.is_same or not {top.id, rival.id} <= set(items):
        return bare
    own = {record.id: items[record.id] for record in (top, rival)}
    seeds = sorted(set(own[top.id]) & set(own[rival.id]))
    if not seeds or len({frozenset(of) for by_seed in own.values() for of in by_seed.values()}) > 1:
        return bare
    arrays = as_arrays(own, seeds, sorted(own[top.id][seeds[0]]))
    difference = (1.0 if higher_is_better(metric) else -1.0) * (arrays[top.id] - arrays[rival.id])
    if difference.shape[1] < 2:
        return bare
    gain = compare_alone(top.label, rival.label, difference, _ALPHA / picked)
    return Standing(top, rival, gain, picked, difference.shape[1], len(seeds))


# ---- in words ----------------------------------------------------------------------------------------------------------


def in_words(standing: Standing, metric: str) -> str:
    """Markdown: which trial is best, whether beyond noise, and the evidence for that."""
    top, rival = standing.top, standing.rival
    own = f"`{top.label}` ({metric} {_value(metric, top)})"
    if rival is None:
        return f"**{own} is the only trial that ran to its end**: there is nothing to compare it with."
    what = "the best baseline" if rival.part == BASELINES else "the next trial"
    other = f"{what}, `{rival.label}` ({_value(metric, rival)})"
    if standing.is_same:
        return f"**No trial is better than the best baseline**, `{rival.label}`: the best one, {own}, is the same run."
    if standing.gain is None:
        return (
            f"**No winner is named**: the best trial is {own}, {other}. The noise is not known: there are no scores of single "
            "items."
        )
    gain = standing.gain
    noise = (
        f"gain {gain.gain:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}], standard error {gain.se:.2g} over {standing.num_items:,} "
        f"items{_seeds(standing)}"
    )
    picked = (
        f" The trial is the best of {standing.num_picked}, picked on the data that measured it: nothing is confirmed."
    )
    if gain.is_better:
        return f"**{own} is better than {other}**, beyond noise: {noise}.{picked}"
    if gain.is_worse:
        best_one = f"`{rival.label}` ({metric} {_value(metric, rival)})"
        return f"**{_first(what)} is the best of the study**, {best_one}, beyond noise. The best trial, {own}: {noise}."
    if rival.part == BASELINES and not is_better(metric, top.value or math.nan, rival.value or math.nan):
        return (
            f"**No trial is better than the best baseline**, `{rival.label}` ({metric} {_value(metric, rival)}): the best "
            f"trial is `{top.label}` ({_value(metric, top)}), {noise}: within noise, so neither is shown to be better."
        )
    return f"**No winner within noise**: the best trial is {own}, {other}: {noise}."


def leader(standing: Standing) -> TrialRecord | None:
    """The trial to train with: the best trial where it is better beyond noise, else the best baseline; None where there is
    neither.
    """
    if standing.gain is not None and standing.gain.is_better:
        return standing.top
    rival = standing.rival
    return rival if rival is not None and rival.part == BASELINES else None


def training_command(record: TrialRecord, space: SearchSpace) -> str:
    """The command that trains with a trial's settings."""
    values: dict[str, Any] = dict(space.fixed)
    if record.part == BASELINES:
        overrides = next((one.overrides for one in space.baselines if one.name == record.extra.get("baseline")), {})
        values = {name: value for name, value in values.items() if not name.startswith("loss.")}
        values |= {"loss.method": DEFAULT_METHOD} | overrides
    values |= record.assignment
    if space.budget.steps is not None:
        values["schedule.steps"] = space.budget.steps
    if space.domain is not None:
        values["domain"] = space.domain
    words = [f"{name}={_yaml(value)}" for name, value in values.items()]
    return shlex.join(["bft-ray", "train", str(space.config), *words])


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _value(metric: str, record: TrialRecord) -> str:
    return "" if record.value is None else format_value(metric, record.value)


def _seeds(standing: Standing) -> str:
    if standing.num_seeds > 1:
        return f" and {standing.num_seeds} seeds"
    return ", one seed (the variation between seeds is not in it)"


def _first(text: str) -> str:
    return text[0].upper() + text[1:]
