"""A search space from a profile: what can differ on this data, and nothing that cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bft_ray.config import Config, LossConfig
from bft_ray.config.measured import is_measured
from bft_ray.domains import domain
from bft_ray.profile.varied import config_and_fixed
from bft_ray.profile.weights import Setting

_WHOLE = 0.95  # a window that covers more of the samples whole tells little from the next
_FLAT = 0.98  # weights of a larger effective share are hardly weights
_TRIALS_A_CHOICE = 2
_LEAST_TRIALS = 12
_DEFAULT = LossConfig(method="bft_inverse")


def propose(
    config: Config,
    source: str,
    settings: Sequence[Setting],
    groups: Sequence[Sequence[int]],
    longest: int,
    windows: Sequence[Mapping[str, float]],
) -> str:
    """A search space (YAML) over method, window, epsilon, cap and learning rate for this data.

    - methods: one for each published form of the sample weight; no two of them are the same run on any data;
    - windows: those that are different runs and leave at least 5 % of the samples to slide over, and the next one,
      which is nearly a plain mean over each sample;
    - epsilons and caps: of `inverse` settings that are different runs and whose weights are not nearly all equal; the
      method's own where all are, for they only start so;
    - the learning rate is searched beside them, around the config's.

    The objective is the headline of the domain where the config measures it, else token accuracy. How the winner is
    confirmed is left to its owner, who knows which data are still unseen.

    Args:
        source: where the config came from; the space names it, and fixes what the config has otherwise.
    """
    parameters = _parameters(config, [settings[group[0]] for group in groups], _useful(windows, longest))
    named, fixed = config_and_fixed(config, source, parameters)
    headline = domain(config.domain).headline
    space = {
        "name": f"{config.domain}_proposed",
        "domain": config.domain,
        "description": f"proposed from a profile of {len(settings[0].weight):,} samples",
        "config": named,
        "parameters": parameters,
        **({"fixed": fixed} if fixed else {}),
        "objective": {"metric": headline if is_measured(config, headline) else "validation/token_accuracy"},
        "budget": {"trials": _num_trials(parameters)},
        "seeds": [config.seed],
    }
    return yaml.safe_dump(space, sort_keys=False, allow_unicode=True)


def _useful(windows: Sequence[Mapping[str, float]], longest: int) -> list[int]:
    useful = [int(row["window"]) for row in windows if row["whole_share"] < _WHOLE and row["window"] < longest]
    longer = [int(row["window"]) for row in windows if int(row["window"]) not in useful]
    return useful + longer[:1]


def _parameters(config: Config, heads: Sequence[Setting], windows: Sequence[int]) -> dict[str, Any]:
    """Dotted field -> its values, of which `heads` are the different runs."""
    inverse = [s for s in heads if s.loss.sample_weight == "inverse" and s.figures()["effective_share"] <= _FLAT]
    epsilons = sorted({s.loss.epsilon for s in inverse}) or [_DEFAULT.epsilon]
    caps = sorted({s.loss.weight_cap for s in inverse}, key=lambda cap: (cap is None, cap or 0)) or [
        _DEFAULT.weight_cap
    ]
    rate = config.optimizer.learning_rate
    rates = [float(f"{rate * factor:.3g}") for factor in (1 / 3, 1.0, 3.0)]
    return {
        "loss.method": _among(["bft", "bft_inverse", "bft_group"]),
        "loss.window": _among(windows),
        "loss.epsilon": _between(epsilons) | _only_inverse(),
        "loss.weight_cap": _among(caps) | _only_inverse(),
        "optimizer.learning_rate": _among(rates),
    }


def _num_trials(parameters: Mapping[str, Any]) -> int:
    """A few for each window under each form: a method, or `bft_inverse` under a cap."""
    methods, windows, caps = (parameters[f"loss.{name}"]["values"] for name in ("method", "window", "weight_cap"))
    return max(_LEAST_TRIALS, _TRIALS_A_CHOICE * len(windows) * (len(methods) - 1 + len(caps)))


def _only_inverse() -> dict[str, Any]:
    """A new mapping each time: YAML would write one that stands twice as an alias."""
    return {"when": {"loss.method": ["bft_inverse"]}}


def _among(values: Sequence[Any]) -> dict[str, Any]:
    return {"kind": "categorical", "values": list(values)}


def _between(values: Sequence[float]) -> dict[str, Any]:
    if len(values) == 1:
        return _among(values)
    return {"kind": "float", "low": values[0], "high": values[-1], "log": True}
