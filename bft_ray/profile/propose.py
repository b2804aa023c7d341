"""A search space from a profile: what can differ on this data, and nothing that cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bft_ray.config import Config, LossConfig
from bft_ray.config.measured import is_measured
from bft_ray.config.steps import num_steps
from bft_ray.domains import domain
from bft_ray.profile.varied import config_and_fixed, path_measured, sibling
from bft_ray.profile.weights import Setting
from bft_ray.space.draft import CONFIRMATION_SEEDS, MOST_WINDOWS, PUBLISHED_WINDOW, REDUCTION, WHOLE, grace_steps
from bft_ray.space.parts import MIN_SEEDS
from bft_ray.train.pins import pin_paths

FLAT = 0.98  # weights of a larger effective share are hardly weights
_TRIALS_A_CHOICE = 2
_LEAST_TRIALS = 12
_DEFAULT = LossConfig(method="bft_inverse")


def propose(config: Config, source: str, parameters: Mapping[str, Any], num_samples: int) -> str:
    """A search space (YAML) over method, window, epsilon, cap and learning rate for this data.

    - the objective is the headline of the domain where the config measures it, else token accuracy;
    - early stopping: ASHA, its first rung where ranks agree with those at the end (`grace_steps`);
    - confirmation and test are measured on the files beside the validation data that are named like it
      (`validation.jsonl`, `confirmation.jsonl`, `test.jsonl`), where these exist. Comments on top say what is missing.

    Args:
        parameters: of `parameters_for`.
        source: where the config came from; the space names it, and fixes what the config has otherwise.
    """
    named, fixed = config_and_fixed(config, source, parameters)
    headline = domain(config.domain).headline
    metric = headline if is_measured(config, headline) else "validation/token_accuracy"
    grace = grace_steps(_num_steps(config, num_samples), metric)
    confirmation, missing = _confirmation(pin_paths(config), metric, config.seed)
    space = {
        "name": f"{config.domain}_proposed",
        "domain": config.domain,
        "description": f"proposed from a profile of {num_samples:,} samples",
        "config": named,
        "parameters": dict(parameters),
        **({"fixed": fixed} if fixed else {}),
        "objective": {"metric": metric},
        "budget": {"trials": _num_trials(parameters)},
        **({"scheduler": {"kind": "asha", "grace_steps": grace, "reduction": REDUCTION}} if grace else {}),
        "seeds": [config.seed],
        **({"confirmation": confirmation} if confirmation else {}),
    }
    return "".join(f"# {line}\n" for line in missing) + yaml.safe_dump(space, sort_keys=False, allow_unicode=True)


def _num_steps(config: Config, num_samples: int) -> int:
    """Of a trial; several sources are taken as equally large, which places a rung and nothing else."""
    num_sources = len(config.data.train)
    return num_steps(config, [max(1, num_samples // num_sources)] * num_sources)


def parameters_for(
    config: Config,
    settings: Sequence[Setting],
    groups: Sequence[Sequence[int]],
    longest: int,
    windows: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """Dotted field -> its declaration, as a search space has it.

    - methods: one for each published form of the sample weight; no two of them are the same run on any data;
    - windows: the longest four (and 256) of those that are different runs and leave at least 5 % of the samples to
      slide over, and the next one, which is nearly a plain mean over each sample;
    - epsilons and caps: of `inverse` settings that are different runs and whose weights are not nearly all equal; the
      method's own where all are, for they only start so;
    - the learning rate is searched beside them, around the config's.
    """
    heads = [settings[group[0]] for group in groups]  # the different runs
    inverse = [s for s in heads if s.loss.sample_weight == "inverse" and s.figures()["effective_share"] <= FLAT]
    epsilons = sorted({s.loss.epsilon for s in inverse}) or [_DEFAULT.epsilon]
    by_size = sorted({s.loss.weight_cap for s in inverse}, key=lambda cap: (cap is None, cap or 0))
    rate = config.optimizer.learning_rate
    return {
        "loss.method": _among(["bft", "bft_inverse", "bft_group"]),
        "loss.window": _among(_useful(windows, longest)),
        "loss.epsilon": _between(epsilons) | _only_inverse(),
        "loss.weight_cap": _among(by_size or [_DEFAULT.weight_cap]) | _only_inverse(),
        "optimizer.learning_rate": _among([float(f"{rate * factor:.3g}") for factor in (1 / 3, 1.0, 3.0)]),
    }


def _confirmation(config: Config, metric: str, seed: int) -> tuple[dict[str, Any] | None, list[str]]:
    """The section of the space, and what is missing, in sentences."""
    field, path = path_measured(config, metric)
    there = {split: beside for split in ("confirmation", "test") if (beside := sibling(path, split))}
    look = "confirmation.overrides: {%s: FILE}" % (field or "data.validation.0.path")
    if "confirmation" not in there:
        return None, [
            "No confirmation: there is no file of the confirmation split beside the validation data, so this study would",
            "compare and choose no champion. Rows that the search does not look at make one:",
            f"{look}, with at least {MIN_SEEDS} seeds.",
        ]
    seeds = [one for one in CONFIRMATION_SEEDS if one != seed]
    seeds += [CONFIRMATION_SEEDS[-1] + 1] if len(seeds) < MIN_SEEDS else []
    section: dict[str, Any] = {"top_k": 2, "seeds": seeds, "overrides": {field: there["confirmation"]}}
    if "test" not in there:
        return section, ["No test: there is no file of the test split beside the validation data."]
    return section | {"test": {field: there["test"]}}, []


def _useful(windows: Sequence[Mapping[str, float]], longest: int) -> list[int]:
    useful = [int(row["window"]) for row in windows if row["whole_share"] < WHOLE and row["window"] < longest]
    longer = [int(row["window"]) for row in windows if int(row["window"]) not in useful]
    also = {PUBLISHED_WINDOW} & set(useful)
    return sorted({*useful[-MOST_WINDOWS:], *also, *longer[:1]})


def _num_trials(parameters: Mapping[str, Any]) -> int:
    """A few for each window under each form: a method, or `bft_inverse` under a cap."""
    methods, windows, caps = (parameters[f"loss.{name}"]["values"] for name in ("method", "window", "weight_cap"))
    return max(_LEAST_TRIALS, _TRIALS_A_CHOICE * len(windows) * (len(methods) - 1 + len(caps)))


def _only_inverse() -> dict[str, Any]:
    """A new mapping each time: YAML would write one that is used twice as an alias."""
    return {"when": {"loss.method": ["bft_inverse"]}}


def _among(values: Sequence[Any]) -> dict[str, Any]:
    return {"kind": "categorical", "values": list(values)}


def _between(values: Sequence[float]) -> dict[str, Any]:
    if len(values) == 1:
        return _among(values)
    return {"kind": "float", "low": values[0], "high": values[-1], "log": True}
