"""Whether DeepSpeed accepts what `deepspeed.overlay` adds, checked before a worker starts.

A section that it does not know at all it leaves out without a word, and so is not found here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from bft_ray.config import Config
from bft_ray.errors import BadInput, first_line
from bft_ray.train.engine import import_deepspeed
from bft_ray.train.settings import deepspeed_settings

_REMEDY = "See https://www.deepspeed.ai/docs/config-json, or leave it out."


def check_overlay(config: Config) -> None:
    """Let DeepSpeed read its settings. It is loaded (seconds) only where there is an overlay.

    Raises:
        BadInput: a key or value that it refuses.
    """
    if not config.deepspeed.overlay:
        return
    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig

    try:
        DeepSpeedConfig(deepspeed_settings(config))
    except ValidationError as error:
        first = error.errors()[0]
        field, received = _find(config.deepspeed.overlay, first["loc"]) or (
            ".".join(map(str, first["loc"])),
            first["input"],
        )
        rule = f"what DeepSpeed accepts: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise BadInput(f"deepspeed.overlay.{field}", received, rule, _REMEDY) from None
    except Exception as error:  # errors of its own code: text in place of a number, a number in place of a section
        raise BadInput(
            "deepspeed.overlay", config.deepspeed.overlay, f"what DeepSpeed accepts: {first_line(error)}", _REMEDY
        ) from None


def _find(tree: Any, path: Sequence[int | str]) -> tuple[str, Any] | None:
    """(dotted name, value) of the first place in `tree` whose name ends so: DeepSpeed names a field within its section."""
    if not isinstance(tree, dict):
        return None
    if path[0] in tree:
        value = tree
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for name in path:
                value = value[name]
            return ".".join(map(str, path)), value
    for name, inner in tree.items():
        if found := _find(inner, path):
            return f"{name}.{found[0]}", found[1]
    return None
