"""The search space that `bft-ray init` wrote, with the values that a profile measured in place of estimated ones.

What a profile owns are the values of `loss.window`, `loss.epsilon` and `loss.weight_cap`, where the space varies them.
All other text of the file stays as it is, comments and edits included; what it was is kept as `search_space.yaml.before`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bft_ray.config.load import read_yaml
from bft_ray.errors import BadInput
from bft_ray.space.draft import MARK

SPACE = "search_space.yaml"
OWNED = ("loss.window", "loss.epsilon", "loss.weight_cap")


@dataclass(frozen=True)
class Rewritten:
    """A space's file and what it becomes.

    Args:
        path: of the file.
        before, text: its text, and the new one.
        changes: `loss.window: [64, 256] -> [16, 32]`, one a parameter that changed.
    """

    path: Path
    before: str
    text: str
    changes: tuple[str, ...]

    def save(self) -> None:
        """Write the new text in one move, the old one beside it; nothing where they are equal."""
        if self.text == self.before:
            return
        self.path.with_name(f"{self.path.name}.before").write_text(self.before, encoding="utf-8")
        made = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        made.write_text(self.text, encoding="utf-8")
        os.replace(made, self.path)


def space_beside(config: str) -> Path | None:
    """The space that `bft-ray init` wrote beside this config, for it."""
    path = Path(config).with_name(SPACE)
    if not Path(config).is_file() or not path.is_file():
        return None
    if not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        return None
    named = read_yaml(path).get("config")
    return path if isinstance(named, str) and path.with_name(named).resolve() == Path(config).resolve() else None


def rewrite(path: Path, parameters: Mapping[str, Any]) -> Rewritten:
    """The space with what the profile found for the parameters that it owns.

    A condition (`when`) stays the user's.

    Args:
        parameters: dotted field -> plain declaration, as a search space has them.

    Raises:
        BadInput: a file that is no YAML mapping.
    """
    before = path.read_text(encoding="utf-8")
    space = read_yaml(path)
    declared = space.get("parameters")
    old = declared if isinstance(declared, dict) else {}
    text, changes = before, []
    for name in OWNED:
        if name not in parameters or not isinstance(old.get(name), dict):
            continue
        new = {key: value for key, value in parameters[name].items() if key != "when"}
        kept = {key: value for key, value in old[name].items() if key == "when"}
        if (new | kept) == old[name]:
            continue
        text = replaced(text, ("parameters", name), new | kept)
        changes.append(f"{name}: {_short(old[name])} -> {_short(new)}")
    return Rewritten(path, before, text, tuple(changes))


def replaced(text: str, keys: tuple[str, ...], value: Any) -> str:
    """A YAML text with another value at a path of keys, in flow style; all other text is the same.

    Raises:
        BadInput: no such key.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((inner for name, inner in pairs if name.value == key), None)
        if node is None:
            raise BadInput(".".join(keys), None, "a key of the search space")
    assert node is not None
    return text[: node.start_mark.index] + _flow(value) + text[_end(node) :]


def _end(node: yaml.Node) -> int:
    """Where a node's text ends, without the comments behind it, which a block style counts to it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _flow(value: Any) -> str:
    """As `init` writes it: `{kind: categorical, values: [1, 2]}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str) and value.replace("_", "").isalnum() and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def _short(declared: Mapping[str, Any]) -> str:
    if "values" in declared:
        return _flow(list(declared["values"]))
    return f"{declared.get('low')} to {declared.get('high')}"
