"""Which loss settings are the same at every step of a run, though their fields differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from bft_ray.config.loss import POWERED, LossConfig
from bft_ray.config.tree import Config

_ENDLESS = 2**40  # a length that no window holds


def canonical(loss: LossConfig, longest: int) -> dict[str, Any]:
    """The fields that have an effect, in one form for all settings that give the same training run.

    Settings are duplicates if they differ only in

    - fields that the method does not use (`LossConfig.unused_fields`), the method's name among them;
    - windows that hold the longest sample whole: `L_s <= g` has one window, all of it. A *centered* group reaches
      `(g - 1) // 2` tokens ahead, so there the window must be about twice as long;
    - `inverse` weights under a cap >= 1 / epsilon, which `1 / (c^gamma + epsilon)` never reaches;
    - `inverse`, normalised, under a cap <= 1 / (1 + epsilon): `c <= 1`, so every weight is cut, and all are equal;
    - token weights that are 1 for every token: `power`, `prior` and `entropy` with `token_power` 0, `threshold` at 0;
    - `power` with `token_power` 1, which is `exp_nll`.

    Settings that only start alike are no duplicates.

    Args:
        longest: supervised tokens of the longest training sample.

    Returns:
        field -> value; the same for duplicates on this data, and different for all other settings, as far as is known.
    """
    fields = loss.model_dump()
    if _never_cut(loss):
        fields["weight_cap"] = None
    elif _all_cut(loss):
        fields |= {"sample_weight": "none", "weight_cap": None, "normalise": False}
    fields["token_weight"] = _token_weight(loss)
    # what is unused under the settings as simplified
    settings = LossConfig.model_construct(**fields)
    reaches_ahead = settings.token_weight == "group" and settings.window_alignment == "centered"
    whole = 2 * longest - 1 if reaches_ahead else longest
    fields["window"] = min(settings.window, max(whole, 1))
    unused = {"method", *settings.unused_fields()} | ({"anchor"} if not loss.anchor else set())
    return {name: value for name, value in fields.items() if name not in unused}


def same_run(a: LossConfig, b: LossConfig, longest: int) -> bool:
    """Whether two settings give the same run on data whose longest sample has `longest` supervised tokens."""
    return canonical(a, longest) == canonical(b, longest)


def distinct(configs: Sequence[Config], longest: int | None) -> list[list[int]]:
    """Places of configs that are the same run at every step, in order of the first of each group.

    Two runs are the same when their losses are (`canonical`) and all their other fields are equal, the name aside.

    Args:
        longest: supervised tokens of the longest training sample of any of them (where they cut samples to different
            lengths: before the cut, or under the largest `data.max_length`; with too large a number fewer duplicates are
            found). None: not known, so windows are never duplicates because of their length.
    """
    groups: dict[str, list[int]] = {}
    for place, config in enumerate(configs):
        groups.setdefault(run_key(config, longest), []).append(place)
    return list(groups.values())


def run_key(config: Config, longest: int | None) -> str:
    """Text that is the same for duplicates on the same data, and different for all other runs, as far as is known; see
    `distinct`.

    The place of a run and the layout of its batches are left out: results do not depend on them.
    """
    fields = config.model_dump(mode="json")
    fields["loss"] = canonical(config.loss, _ENDLESS if longest is None else longest)
    for name in ("name", "cluster", "tracking"):
        fields.pop(name)
    for name in ("cache_dir", "keep_tokens", "micro_batch_tokens", "micro_batch_size"):
        fields["data"].pop(name)
    fields["evaluation"].pop("batch_tokens")
    return json.dumps(fields, sort_keys=True)


def duplicate_reasons(a: LossConfig, b: LossConfig, longest: int | None) -> list[str]:
    """Why two settings are the same run: one clause for each of their differences; [] where they are not.

    Args:
        longest: as for `distinct`.
    """
    length = _ENDLESS if longest is None else longest
    if not same_run(a, b, length):
        return []
    reasons = []
    flat = [loss for loss in (a, b) if _all_cut(loss)]
    if flat and a != b:
        reasons.append(f"all weights are equal where weight_cap ({flat[0].weight_cap:g}) <= 1 / (1 + epsilon)")
    if a.token_weight != b.token_weight:
        reasons += [_why_simpler(loss) for loss in (a, b) if _token_weight(loss) != loss.token_weight]
    for name in LossConfig.model_fields:
        values = getattr(a, name), getattr(b, name)
        if name == "method" or values[0] == values[1]:
            continue
        if name == "window" and longest is not None and not {"window"} & {*a.unused_fields(), *b.unused_fields()}:
            reasons.append(f"windows {values[0]} and {values[1]} both hold the longest sample ({longest} tokens) whole")
        elif name == "weight_cap" and any(_never_cut(loss) for loss in (a, b)):
            reasons.append("weight_cap >= 1 / epsilon never binds")
        elif name in a.unused_fields() and name in b.unused_fields():
            reasons.append(f"{name} is not used")
    return list(dict.fromkeys(reasons)) or ["both methods give the same fields"] * (a != b)


def _token_weight(loss: LossConfig) -> str:
    """The simplest name of the same token weight."""
    if (loss.token_weight in POWERED and loss.token_power == 0) or (
        loss.token_weight == "threshold" and loss.token_threshold == 0
    ):
        return "none"
    return "exp_nll" if loss.token_weight == "power" and loss.token_power == 1 else loss.token_weight


def _why_simpler(loss: LossConfig) -> str:
    """Why `_token_weight` is another name than the loss has."""
    if loss.token_weight == "threshold":
        return "every probability reaches token_threshold 0, so all token weights are 1"
    if loss.token_power == 0:
        return f"token_weight {loss.token_weight} with token_power 0 is 1 for every token"
    return "token_weight power with token_power 1 is exp_nll"


def _never_cut(loss: LossConfig) -> bool:
    return loss.sample_weight == "inverse" and loss.weight_cap is not None and loss.weight_cap >= 1 / loss.epsilon


def _all_cut(loss: LossConfig) -> bool:
    inverse = loss.sample_weight == "inverse" and loss.normalise and loss.weight_cap is not None
    return inverse and loss.weight_cap <= 1 / (1 + loss.epsilon)  # type: ignore[operator]
