"""Whether DeepSpeed accepts what `deepspeed.overlay` adds, checked before a worker starts."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bft_ray.config import Config
from bft_ray.errors import BadInput, first_line
from bft_ray.train.imports import import_deepspeed
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

    known = _known()
    for name, value in config.deepspeed.overlay.items():
        if name not in known:
            raise BadInput(f"deepspeed.overlay.{name}", value, "a section that DeepSpeed reads", _remedy(name, known))
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


def _known() -> set[str]:
    """The names that DeepSpeed's code quotes. One that is not among them it would leave out without a word; it has no
    list of its sections, and reads some only where they are used.
    """
    import deepspeed

    files = Path(deepspeed.__path__[0]).rglob("*.py")
    return {
        name for file in files for name in re.findall(r"""["']([a-z][a-z0-9_]*)["']""", file.read_text(errors="ignore"))
    }


def _remedy(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, [one for one in known if len(one) > 3 and one[-1] != "_"], 1, cutoff=0.75)
    return f"Did you mean `{near[0]}`? {_REMEDY}" if near else _REMEDY


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
