"""A search space by name or file, the config that it varies, and whether the two fit, all problems at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bft_ray.config.load import load_config, parse_override, read_yaml, recipes, set_field, validate
from bft_ray.config.measured import has_item_scores, is_measured, measured_names, source_of
from bft_ray.config.tree import Config
from bft_ray.errors import BadConfig, BadInput, did_you_mean
from bft_ray.space.assign import baseline_config, config_of, shown, with_overrides
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import baseline_assignments, representatives
from bft_ray.space.parts import Asha
from bft_ray.space.series import all_series, shipped

#: up to this number every combination is checked against the config; of more, representatives
_CHECKED = 2000
#: places of a space whose keys are dotted fields themselves
_DOTTED = ("parameters", "fixed", "confirmation.overrides", "confirmation.test")
#: what confirmation and test may set: what is measured. Anything else would confirm another run
_MEASURED = ("data.validation", "evaluation")


def spaces() -> dict[str, Path]:
    """Search spaces that come with the package, by name."""
    return shipped("search_spaces")


def load_space(source: str | Path, overrides: Sequence[str] = ()) -> SearchSpace:
    """Read a search space, or a bundled one by its name.

    Args:
        overrides: `budget.trials=40` sets a field of the space; a name that is none of its sections, such as
            `loss.gamma=2` or `data.train.0.path=my.jsonl`, is a field of the config that all runs set (`fixed`).

    Raises:
        BadInput: no such file or space, text that is no YAML mapping, or the config of a run.
        BadConfig: every unknown key, wrong type and broken rule, at once.
    """
    path = find_space(source)
    tree = read_yaml(path)
    if "parameters" not in tree and tree.keys() & {"model", "data", "loss"}:
        remedy = (
            "Give the search space, which names its config: `bft-ray init` writes both, bft.yaml and search_space.yaml."
        )
        raise BadInput("space", str(source), "a search space, and this is the config of a run", remedy)
    for override in overrides:
        _override(tree, *parse_override(override))
    space = validate(SearchSpace, tree, str(source))
    beside = path.parent / space.config
    if space.config not in recipes() and os.path.isfile(beside):
        space = space.model_copy(update={"config": str(beside.resolve())})
    return space


def find_space(source: str | Path) -> Path:
    """The path of a search space: a file, or the name of one that comes with the package."""
    path = Path(source)
    if os.path.isfile(path):
        return path
    known = spaces()
    if (found := known.get(str(source).removesuffix(".yaml"))) is not None:
        return found
    names = sorted({*known, *all_series()})
    hint = did_you_mean(str(source), names) or f"Search spaces and series: {', '.join(names)}."
    raise BadInput("space", str(source), "a YAML file or the name of a search space", hint)


def load_base(space: SearchSpace, config: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The config that a space varies: its own, or another one.

    Args:
        overrides: FIELD=VALUE of the config.

    Raises:
        BadInput, BadConfig: see `load_config`.
    """
    return load_config(config or space.config, tuple(overrides))


def load_study(
    source: str | Path, config: str | Path | None = None, overrides: Sequence[str] = ()
) -> tuple[SearchSpace, Config]:
    """A search space and its config, checked against each other; arguments as for `load_space` and `load_base`.

    Raises:
        BadInput, BadConfig: see `load_space`, `load_base` and `check_space`.
    """
    space = load_space(source, overrides)
    base = load_base(space, config)
    check_space(space, base, str(source))
    return space, base


def study_name(source: str, config: str | None = None, overrides: Sequence[str] = ()) -> str:
    """`NAME/DOMAIN` of a study, as given or from its search space.

    Raises:
        BadInput: neither a name of this form nor a search space.
    """
    try:
        find_space(source)
    except BadInput:
        if "/" in source:
            return source
        raise
    space, base = load_study(source, config, overrides)
    return space.study_of(base)


def check_space(space: SearchSpace, base: Config, source: str = "the search space") -> None:
    """Raise BadConfig with every problem that a run of the study would have with its config.

    Checked are all combinations of a space (of more than 2,000 only the ends of its ranges), all runs of the baselines,
    the metrics, the rungs, and the data of confirmation and test.
    """
    problems = list(dict.fromkeys(_problems(space, base)))
    if problems:
        raise BadConfig(source, problems)


def _problems(space: SearchSpace, base: Config) -> Iterator[str]:
    trials: list[Config] = []
    found: dict[str, str] = {}  # problem -> the first combination that has it
    for assignment in representatives(space, _CHECKED):
        try:
            trials.append(config_of(base, space, assignment))
        except (BadConfig, BadInput) as error:
            for problem in _each(error):
                found.setdefault(problem, shown(assignment))
    yield from (f"{problem} (Under {where}.)" for problem, where in found.items())
    for baseline in space.baselines:
        for assignment in baseline_assignments(space):
            try:
                baseline_config(base, space, baseline, assignment)
            except (BadConfig, BadInput) as error:
                yield from (f"{problem} (Of baseline {baseline.name}.)" for problem in _each(error))
                break
    if trials:
        yield from _metric_problems(space, trials[0])
        yield from _rung_problems(space, trials)
        yield from _split_problems(space, trials[0])


def _each(error: BadConfig | BadInput) -> list[str]:
    """The problems of an error, one by one."""
    return error.problems if isinstance(error, BadConfig) else [str(error)]


def _metric_problems(space: SearchSpace, trial: Config) -> Iterator[str]:
    named = {"objective.metric": space.objective.metric}
    if space.objective.second:
        named["objective.second.metric"] = space.objective.second.metric
    named |= {f"claims.{index}.metric": claim.metric for index, claim in enumerate(space.claims) if claim.metric}
    if isinstance(space.scheduler, Asha) and space.scheduler.metric:
        named["scheduler.metric"] = space.scheduler.metric
    known = ", ".join(measured_names(trial)) or "nothing"
    for field, metric in named.items():
        if not is_measured(trial, metric):
            remedy = f"Measured are {known}. Add data.validation or evaluation.tasks, or name another metric."
            yield str(BadInput(field, metric, "measured by the runs of the config", remedy))
    if space.objective.second and not trial.evaluation.before:
        rule = "true with a second objective, which is compared with the base model"
        yield str(BadInput("evaluation.before", False, rule))


def _rung_problems(space: SearchSpace, trials: Sequence[Config]) -> Iterator[str]:
    if not isinstance(space.scheduler, Asha):
        return
    steps = [trial.schedule.steps for trial in trials if trial.schedule.steps is not None]
    if steps and space.scheduler.grace_steps >= min(steps):
        rule = f"below the steps of the shortest trial ({min(steps)}): it could not be stopped"
        yield str(BadInput("scheduler.grace_steps", space.scheduler.grace_steps, rule, "Lower it."))


def _split_problems(space: SearchSpace, trial: Config) -> Iterator[str]:
    if space.confirmation is None:
        return
    metric = space.objective.metric
    if not has_item_scores(metric):
        rule = "a mean over items, a ratio or an AUROC where a confirmation compares item by item"
        yield str(BadInput("objective.metric", metric, rule, "For example the accuracy or probability of the set."))
    for index, claim in enumerate(space.claims):
        if claim.metric and not has_item_scores(claim.metric):
            rule = "a mean over items, a ratio or an AUROC: claims are judged item by item"
            yield str(
                BadInput(f"claims.{index}.metric", claim.metric, rule, "For example NAME/bits_per_byte of a text.")
            )
    seen = {source_of(trial, metric): "the search"}
    for part, overrides in (("overrides", space.confirmation.overrides), ("test", space.confirmation.test)):
        field = f"confirmation.{part}"
        for name in overrides:
            if not any(name == free or name.startswith(f"{free}.") for free in _MEASURED):
                rule = "a field of data.validation or evaluation: else another run would be confirmed"
                yield str(BadInput(f"{field}.{name}", overrides[name], rule, "Set it in `fixed` for all runs."))
        if not overrides:
            continue
        try:
            moved = with_overrides(trial, overrides, field)
        except (BadConfig, BadInput) as error:
            yield from (f"{problem} (Under {field}.)" for problem in _each(error))
            continue
        where = source_of(moved, metric)
        if where in seen:
            rule = f"such that {metric} is measured on other data than in {seen[where]}"
            yield str(BadInput(field, where or "not measured", rule, "Set the path of what it is measured on."))
        seen[where] = "the confirmation"


def _override(tree: dict[str, Any], name: str, value: Any) -> None:
    """Set a field of a space's tree, where keys with dots stay whole; what is none of its sections goes to `fixed`."""
    if name.split(".")[0] not in SearchSpace.model_fields:
        name = f"fixed.{name}"
    for place in _DOTTED:
        if name.startswith(f"{place}."):
            section: Any = tree
            for key in place.split("."):
                if not isinstance(section.setdefault(key, {}), Mapping):
                    raise BadInput(place, section[key], "a mapping of dotted fields")
                section = section[key]
            name = name.removeprefix(f"{place}.")
            if place == "parameters" and (whole := _parameter_of(name, section)):  # a field of one: loss.window.values
                set_field(section[whole], name.removeprefix(f"{whole}."), value)
                return
            section[name] = value
            return
    if name == "scheduler.kind" and value == "none":
        tree["scheduler"] = {}  # the fields of the one that the file has
    set_field(tree, name, value)


def _parameter_of(name: str, parameters: Mapping[str, Any]) -> str | None:
    """The parameter of the space that a longer dotted name lies in, if there is one."""
    return next((key for key in parameters if name.startswith(f"{key}.") and isinstance(parameters[key], dict)), None)
