"""A search space from a profile: what can differ on this data, and nothing that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from bft_ray.config import Config
from bft_ray.config.measured import is_measured
from bft_ray.domains import domain
from bft_ray.profile.weights import Setting

_WHOLE = 0.95  # a window that covers more of the samples whole tells little from the next
_FLAT = 0.98  # weights of a larger effective share are hardly weights
_TRIALS_A_CHOICE = 2
_LEAST_TRIALS = 12


def propose(
    config: Config,
    source: str,
    settings: Sequence[Setting],
    groups: Sequence[Sequence[int]],
    longest: int,
    windows: Sequence[dict[str, float]],
) -> str:
    """A search space (YAML) over method, window, epsilon, cap and learning rate for this data.

    - windows: those that are different runs and leave at least 5 % of the samples to slide over, and the next one,
      which is nearly a plain mean over each sample;
    - epsilons and caps: of `inverse` settings that are different runs and whose weights are not nearly all equal;
    - the learning rate is searched beside them, around the config's.

    The objective is the headline of the domain where the config measures it, else token accuracy. How the winner is
    confirmed is left to its owner, who knows which data are still unseen.

    Args:
        source: where the config came from, as the space names it.
    """
    useful = [int(row["window"]) for row in windows if row["whole_share"] < _WHOLE and row["window"] < longest]
    longer = [int(row["window"]) for row in windows if int(row["window"]) not in useful]
    useful += longer[:1]
    heads = [settings[group[0]] for group in groups]
    inverse = [s for s in heads if s.loss.sample_weight == "inverse" and s.figures()["effective_share"] <= _FLAT]
    epsilons = sorted({s.loss.epsilon for s in inverse}) or [0.05]
    caps = sorted({s.loss.weight_cap for s in inverse}, key=lambda cap: (cap is None, cap or 0)) or [8.0]
    rate = config.optimizer.learning_rate
    rates = [float(f"{rate * factor:.3g}") for factor in (1 / 3, 1.0, 3.0)]
    headline = domain(config.domain).headline
    only_inverse: dict[str, Any] = {"loss.method": ["bft_inverse"]}
    parameters: dict[str, Any] = {
        "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
        "loss.window": {"kind": "categorical", "values": useful},
        "loss.epsilon": _between(epsilons) | {"when": only_inverse},
        "loss.weight_cap": {"kind": "categorical", "values": caps, "when": only_inverse},
        "optimizer.learning_rate": {"kind": "categorical", "values": rates},
    }
    trials = max(_LEAST_TRIALS, _TRIALS_A_CHOICE * len(useful) * (1 + len(caps)))
    space = {
        "name": f"{config.domain}_proposed",
        "domain": config.domain,
        "description": f"proposed from a profile of {len(settings[0].weight):,} samples",
        "parameters": parameters,
        "config": source,
        "objective": {"metric": headline if is_measured(config, headline) else "validation/token_accuracy"},
        "budget": {"trials": trials},
    }
    return yaml.safe_dump(space, sort_keys=False)


def _between(values: Sequence[float]) -> dict[str, Any]:
    if len(values) == 1:
        return {"kind": "categorical", "values": list(values)}
    return {"kind": "float", "low": values[0], "high": values[-1], "log": True}
