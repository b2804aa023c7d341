"""The champion of a domain: as text for a terminal, and as the config of a training."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from bft_ray.config import Config, LossConfig, config_from_yaml
from bft_ray.config.metrics import format_value
from bft_ray.errors import BadInput
from bft_ray.model.safe import whole_files
from bft_ray.page.model import shown_time
from bft_ray.places.storage import is_remote
from bft_ray.tracking.registry import ALIAS, Champion
from bft_ray.tracking.server import where

#: numbers of the loss that are always shown, even where they are the defaults of the method
_SHOWN = ("window", "gamma", "epsilon", "weight_cap", "token_cap", "token_power", "token_threshold", "entropy_top_k")

_AGAIN = "copy them there, or train them again (`train` below)"


def describe_champion(champion: Champion, uri: str) -> str:
    """The champion, its gain, its data, and the commands that use it.

    Args:
        champion: from the registry. Read are its tags `metric`, `value`, `gain`, `interval`, `detectable`, those of the
            best candidate, `verdict`, `study` and `data_fingerprint`; each may be missing. Where its weights should be on a disk of
            this machine, the headers of their files are read too.
        uri: of its tracking server.
    """
    tags = champion.tags
    when = shown_time(champion.created_s)
    option, note = where(uri)
    rows = {
        "champion": f"{champion.name}, version {champion.version} of {when}",
        "settings": _settings(config_from_yaml(champion.config_yaml, _title(champion))),
        "metric": _metric(tags),
        "gain": _gain(tags),
        "verdict": tags.get("verdict", ""),
        "study": tags.get("study", ""),
        "data": tags.get("data_fingerprint", ""),
        "run": f"{champion.run_id} (MLflow)",
        "model": f"{champion.source}, models:/{champion.name}/{champion.version}",
        "weights": _damage(champion.source),
        "config": f"bft-ray best {champion.domain}{option} --yaml > {champion.domain}.yaml{note}",
        "before": f"bft-ray evaluate {champion.domain}.yaml --out before",
        "train": f"bft-ray train --champion {champion.domain}{option}",
        "evaluate": f"bft-ray evaluate {champion.domain}.yaml --model {shlex.quote(champion.source)} --against before",
    }
    return "\n".join(f"{name:<10}{text.strip()}" for name, text in rows.items() if text)


def champion_config(champion: Champion, uri: str, overrides: list[str]) -> Config:
    """The config of a training with the champion's settings, tracked on the champion's server; overrides come last.

    Raises:
        BadInput, BadConfig: for the overrides, or for a config of another version of bft-ray.
    """
    own = ["name=null", f"tracking.uri={json.dumps(uri)}"]  # the registry keeps addresses without their passwords
    config = config_from_yaml(champion.config_yaml, _title(champion), [*own, *overrides])
    tags = config.tracking.tags | {f"bft.{ALIAS}": f"{champion.name}/{champion.version}"}
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"tags": tags})})


def _title(champion: Champion) -> str:
    return f"the config of {champion.name}/{champion.version}"


def _damage(source: str) -> str:
    """Why the weights cannot be used, where they are on a disk of this machine or should be; "" where nothing is wrong."""
    folder = Path(source)
    if is_remote(source) or not folder.is_absolute():
        return ""
    if not folder.is_dir():
        return f"not on this machine; {_AGAIN}"
    try:
        whole_files(folder, "model")
    except BadInput as error:
        return f"unusable: {error.value} must be {error.rule}; {_AGAIN}"
    return ""


def _settings(config: Config) -> str:
    """The method, the numbers that it uses, settings that differ from its defaults, and the length of the training."""
    loss, usual = config.loss, LossConfig(method=config.loss.method)
    parts: list[str] = [loss.method]
    for name in LossConfig.model_fields:
        value = getattr(loss, name)
        if name == "method" or name in loss.unused_fields() or value is None:
            continue
        if name in _SHOWN or value != getattr(usual, name):
            parts.append(f"{name} {value}")
    schedule = config.schedule
    length = f"{schedule.steps} steps" if schedule.steps else f"{schedule.epochs:g} epochs"
    parts += [
        f"learning_rate {config.optimizer.learning_rate:g}",
        f"{length} of {config.data.global_batch_size} samples",
    ]
    return ", ".join(parts)


def _metric(tags: Mapping[str, str]) -> str:
    name, value = tags.get("metric", ""), tags.get("value", "")
    with contextlib.suppress(ValueError):  # otherwise shown unchanged
        value = format_value(name, float(value))
    return f"{name} {value}"


def _gain(tags: Mapping[str, str]) -> str:
    """The champion's gain over the default; for the default itself, that of the best candidate, which was not enough."""
    if "gain" in tags:
        return f"{_measured(tags, '')} over the default{_detectable(tags, '')}"
    if "best_candidate_gain" not in tags:
        return ""
    prefix = "best_candidate_"
    own = f"{_measured(tags, prefix)} over it{_detectable(tags, prefix)}"
    return f"none, it is the default; the best candidate, {tags.get('best_candidate', '')}, has {own}"


def _measured(tags: Mapping[str, str], prefix: str) -> str:
    gain = tags[f"{prefix}gain"]
    with contextlib.suppress(ValueError):  # otherwise shown unchanged
        gain = f"{float(gain):+.4g}"
    return f"{gain} {tags.get(f'{prefix}interval', '')}".strip()


def _detectable(tags: Mapping[str, str], prefix: str) -> str:
    """A clause on the smallest effect that the confirmation could have detected."""
    with contextlib.suppress(ValueError):
        least, shows_in = float(tags.get(f"{prefix}detectable", "")), tags.get(f"{prefix}shows_in", "about 8 of 10")
        return f"; a true gain of {least:.4g} shows in {shows_in} such studies"
    return ""
