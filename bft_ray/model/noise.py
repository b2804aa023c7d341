"""What a model's own config draws at random while it trains (dropout, layer drop, jitter of a router) is off.

It is drawn anew in each forward pass, so that the loss of a step would depend on how its rows are laid out: in micro-batches, on
ranks, packed or padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bft_ray.errors import enumerate_names

_SIGNS = ("drop", "jitter")  # in names of fields, such as attn_pdrop, layerdrop, router_jitter_noise
_OTHER_HEADS = ("classifier", "summary")
_KEPT = "_bft_noise"  # attribute of a model: the fields that were set to 0, with their values


def noise_of(described: Any) -> dict[str, float]:
    """Dotted field -> value of all such shares above 0 in a config of transformers, those of its parts included."""
    found: dict[str, float] = {}
    for name, value in vars(described).items():
        if hasattr(value, "to_dict"):
            found |= {f"{name}.{inner}": share for inner, share in noise_of(value).items()}
        elif isinstance(value, float) and value > 0 and any(sign in name for sign in _SIGNS):
            found[name] = value
    return found


def noise_text(described: Any) -> str:
    """A sentence for whoever trains it; "" where there is nothing to say. Heads that a causal LM lacks have shares too."""
    found = {name: value for name, value in noise_of(described).items() if not name.startswith(_OTHER_HEADS)}
    shown = enumerate_names(f"{name} {value:g}" for name, value in found.items())
    return f"0 while it trains, or the loss would depend on the layout of rows: its own {shown}" if found else ""


def silence(described: Any) -> dict[str, float]:
    """Set all such shares of a config to 0; returns what they were."""
    found = noise_of(described)
    _set(described, dict.fromkeys(found, 0.0))
    return found


def keep(model: Any, found: dict[str, float]) -> None:
    """Note with a model what `silence` found in its config, for `as_it_came`."""
    setattr(model, _KEPT, found)


@contextmanager
def as_it_came(model: Any) -> Iterator[None]:
    """While the context lasts, the model's config has the shares that it came with: to save it."""
    found = getattr(model, _KEPT, {})
    _set(model.config, found)
    try:
        yield
    finally:
        _set(model.config, dict.fromkeys(found, 0.0))


def _set(described: Any, values: dict[str, float]) -> None:
    for name, value in values.items():
        *parts, own = name.split(".")
        inner = described
        for part in parts:
            inner = getattr(inner, part)
        setattr(inner, own, value)
