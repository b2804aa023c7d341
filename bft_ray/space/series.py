"""A series: one search space under several conditions (rows, passes, models, data sets), and what is asked across them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule
from bft_ray.config.load import read_yaml, validate
from bft_ray.errors import BadInput
from bft_ray.space.definition import SearchSpace

_NAME = r"^[a-z0-9][a-z0-9_-]*$"


class Condition(Section):
    """One study of the series."""

    at: dict[str, float] = Field(default_factory=dict, description="axis -> the condition's place on it: rows: 100")
    overrides: dict[str, Any] = Field(
        min_length=1, description="dotted fields of the space, or of the config for all of its runs"
    )


class Trend(Section):
    """A question across the conditions: how does the gain of one arm over another move along an axis?"""

    better: str = Field(description="name of an arm")
    than: str = Field(description="name of the arm that it is compared with")
    over: str = Field(description="axis; places are compared by their logarithm, so the answer is per doubling")
    metric: str | None = Field(None, description="null: that of the objective; otherwise one that a claim names")


class Contrast(Section):
    """A question about two groups of conditions: is the gain of one arm over another larger in one than in the other?"""

    better: str = Field(description="name of an arm")
    than: str = Field(description="name of the arm that it is compared with")
    of: list[str] = Field(min_length=1, description="conditions whose mean gain is asked for")
    against: list[str] = Field(min_length=1, description="conditions whose mean gain is subtracted")
    metric: str | None = Field(None, description="null: that of the objective; otherwise one that a claim names")


class Peak(Section):
    """A question about arms that differ in one setting: between them, where is it best, and does that move along an axis?"""

    setting: str = Field(min_length=1, description="what the arms differ in, as sentences call it: window")
    arms: dict[str, float] = Field(min_length=3, description="arm -> its value of the setting, above 0")
    over: str | None = Field(None, description="axis along which the best setting may move; null: it is not asked")
    capped_by: str | None = Field(
        None, description="axis whose place is the largest setting that makes a difference: the longest answer"
    )
    metric: str | None = Field(None, description="null: that of the objective; otherwise one that a claim names")


class Series(Section):
    """Several studies of one space. Each is a study of its own, with its records, its page and its resumption."""

    name: str = Field(pattern=_NAME, max_length=60, description="of the series; its studies are named NAME-CONDITION")
    question: str = Field(min_length=1, description="what the series answers, in a sentence")
    space: str = Field(description="search space of all studies: the name of a bundled one, or a file beside this one")
    overrides: dict[str, Any] = Field(default_factory=dict, description="dotted fields that all conditions set")
    conditions: dict[str, Condition] = Field(min_length=2, description="name of a condition -> what it sets")
    trends: list[Trend] = Field(default_factory=list, description="gains whose course over an axis is asked for")
    contrasts: list[Contrast] = Field(default_factory=list, description="gains that two groups of conditions differ in")
    peaks: list[Peak] = Field(default_factory=list, description="settings whose best value is asked for")

    @model_validator(mode="after")
    def _rules(self) -> Series:
        for name in self.conditions:
            if not re.match(_NAME, name):
                raise rule(f"conditions.{name}", name, "made of small letters, digits, - and _")
        for index, trend in enumerate(self.trends):
            if trend.better == trend.than:
                raise rule(f"trends.{index}.than", trend.than, "another baseline than `better`")
            self._axis(f"trends.{index}.over", trend.over, 2)
            if not blocks({name: one.at for name, one in self.conditions.items()}, trend.over, self.caps):
                rule_text = "an axis on which conditions differ that agree on every other axis"
                raise rule(f"trends.{index}.over", trend.over, rule_text, "Correct `at` of the conditions.")
        for index, peak in enumerate(self.peaks):
            if len({value for value in peak.arms.values() if value > 0}) < 3 or min(peak.arms.values()) <= 0:
                raise rule(f"peaks.{index}.arms", peak.arms, "at least three different values, all above 0")
            if peak.over is not None:
                self._axis(f"peaks.{index}.over", peak.over, 2)
            if peak.capped_by is not None:
                self._axis(f"peaks.{index}.capped_by", peak.capped_by, 1)
        return self

    def _axis(self, field: str, axis: str, num_places: int) -> None:
        places = {one.at[axis] for one in self.conditions.values() if axis in one.at}
        if len(places) < num_places or min(places) <= 0:
            many = "two different places" if num_places == 2 else "a place"
            rule_text = f"an axis on which conditions have at least {many}, all above 0"
            raise rule(field, axis, rule_text, "Give `at` to the conditions.")

    @model_validator(mode="after")
    def _contrasts(self) -> Series:
        for index, contrast in enumerate(self.contrasts):
            if contrast.better == contrast.than:
                raise rule(f"contrasts.{index}.than", contrast.than, "another baseline than `better`")
            for field, names in (("of", contrast.of), ("against", contrast.against)):
                if len(set(names)) < len(names):
                    raise rule(f"contrasts.{index}.{field}", names, "conditions, each once")
                for name in names:
                    if name not in self.conditions:
                        known = ", ".join(self.conditions)
                        raise rule(f"contrasts.{index}.{field}", name, f"the name of a condition: {known}")
            if both := set(contrast.of) & set(contrast.against):
                raise rule(f"contrasts.{index}.against", min(both), "a condition that `of` does not name")
        return self

    @property
    def caps(self) -> set[str]:
        """Names in `at` that are no axes: they say from where on a setting makes no difference."""
        return {peak.capped_by for peak in self.peaks if peak.capped_by is not None}

    def study_overrides(self, condition: str, more: Sequence[str] = ()) -> list[str]:
        """Overrides, as typed on a command line, that make the space the study of a condition.

        Args:
            more: further ones, for all studies; they win.
        """
        own = {"name": f"{self.name}-{condition}", **self.overrides, **self.conditions[condition].overrides}
        return [f"{name}={json.dumps(value)}" for name, value in own.items()] + list(more)


def blocks(at: Mapping[str, Mapping[str, float]], axis: str, caps: Collection[str] = ()) -> list[list[str]]:
    """Groups of conditions that agree on every axis but this one, and have two places or more on it.

    Args:
        at: of the conditions.
        caps: names in it that are no axes.
    """
    found: dict[tuple[tuple[str, float], ...], list[str]] = {}
    for name, places in at.items():
        if axis in places:
            others = tuple(sorted((a, x) for a, x in places.items() if a != axis and a not in caps))
            found.setdefault(others, []).append(name)
    return [names for names in found.values() if len({at[name][axis] for name in names}) > 1]


def check_questions(series: Series, condition: str, space: SearchSpace) -> None:
    """Check that the study of a condition measures what trends, contrasts and peaks ask.

    Raises:
        BadInput: an arm that is no baseline of the study, or a metric that it keeps no items of.
    """
    arms = [baseline.name for baseline in space.baselines]
    metrics = [space.objective.metric, *space.claimed_metrics]
    kinds: dict[str, Sequence[Trend | Contrast | Peak]] = {
        "trends": series.trends,
        "contrasts": series.contrasts,
        "peaks": series.peaks,
    }
    for field, question in ((f"{kind}.{at}", own) for kind, every in kinds.items() for at, own in enumerate(every)):
        for arm in question.arms if isinstance(question, Peak) else (question.better, question.than):
            if arm not in arms:
                known = f"the name of a baseline of every study; those of {condition} are {', '.join(arms)}"
                raise BadInput(field, arm, known, "Correct the name.")
        if question.metric is not None and question.metric not in metrics:
            known = f"the objective ({space.objective.metric}) or a metric that a claim names"
            raise BadInput(
                f"{field}.metric", question.metric, known, "Add a claim about it, so that its items are kept."
            )


def all_series() -> dict[str, Path]:
    """Series that come with the package, by name."""
    return shipped("search_spaces/series")


def shipped(folder: str) -> dict[str, Path]:
    """Name -> YAML file, of a folder that comes with the package."""
    package = Path(str(resources.files("bft_ray")))
    places = (package / folder, package.parent / folder)  # of a wheel, of the repository
    return {path.stem: path for place in places for path in sorted(place.glob("*.yaml"))}


def find_series(source: str) -> Path | None:
    """The file of a series: a YAML file with `conditions`, or the name of a bundled one; None for anything else."""
    path = Path(source)
    if os.path.isfile(path):
        return path if "conditions" in read_yaml(path) else None
    return all_series().get(source.removesuffix(".yaml"))


def load_series(path: Path) -> Series:
    """Read a series.

    Raises:
        BadInput: no YAML mapping.
        BadConfig: every unknown key, wrong type and broken rule, at once.
    """
    series = validate(Series, read_yaml(path), str(path))
    beside = path.parent / series.space
    return series.model_copy(update={"space": str(beside)}) if beside.is_file() else series
