"""Data flows one way: a file imports only from rooms that stand before its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [
    "errors", "waits", "metrics", "config", "domains", "stats", "data", "model", "loss", "spread", "evaluate", "tracking", "train",
    "profile", "search", "report", "operate", "cli",
]  # fmt: skip
#: library -> the rooms that may import it
ALLOWED = {
    "ray": {"spread", "train", "search", "operate"},
    "deepspeed": {"train"},
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "peft": {"model"},
}
#: files of `train` that must run with neither Ray nor a network
BARE = ["engine", "step", "loop", "schedule", "settings", "checkpoint", "host"]
FILES = sorted((ROOT / "bft_ray").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports when it runs, wherever it does so."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):  # what only type checkers see is no import
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names.add(node.module or "")
    return names


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "bft_ray").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layout(path):
    room = room_of(path)
    if room == "__init__":
        assert not imports(path)
        return
    assert room in ROOMS, f"{path} stands in no room of the layout"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "bft_ray" and rest:
            assert ROOMS.index(rest[0]) <= ROOMS.index(room), f"{room} imports {name}, which stands after it"
        assert room in ALLOWED.get(top, {room}), f"{room} imports {top}"
        if room in {"errors", "metrics", "config", "domains"}:
            assert top not in {"torch", "ray", "numpy", "transformers"}, f"{room} imports {top}"
        if room == "stats":
            assert top not in {"torch", "ray", "transformers", "pydantic"}, f"{room} imports {top}"
        if room == "loss":
            assert top not in {"numpy", "transformers", "trl"}, f"{room} imports {top}"


@pytest.mark.parametrize("name", BARE)
def test_the_step_needs_no_ray(name):
    """Also not through what these files import."""
    seen, queue = set(), [ROOT / "bft_ray" / "train" / f"{name}.py"]
    while queue:
        path = queue.pop()
        for module in imports(path) - seen:
            seen.add(module)
            place = ROOT / Path(*module.split("."))
            queue += [found for found in (place.with_suffix(".py"), place / "__init__.py") if found.is_file()]
    assert not {module for module in seen if module.split(".")[0] in {"ray", "mlflow", "optuna"}}


def test_no_file_is_thrown_together():
    assert not [path for path in FILES if path.name in {"utils.py", "helpers.py", "misc.py"}]
