"""Data flows one way: a file imports only from rooms that stand before its own."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

ROOMS = [
    "errors", "waits", "saving", "metrics", "domains", "config", "space", "stats", "places", "page", "data", "model", "loss", "workers",
    "evaluate", "tracking", "train", "profile", "study", "operate", "notebook", "commands", "cli",
]  # fmt: skip
#: library -> the rooms that may import it
ALLOWED = {
    "ray": {"workers", "train", "study", "operate"},
    "deepspeed": {"train"},
    "optuna": {"study"},
    "mlflow": {"tracking"},
    "peft": {"model"},
}
#: files of `train` that must run with neither Ray nor a network
BARE = ["engine", "imports", "step", "loop", "schedule", "settings", "checkpoint", "host", "start", "anchor"]
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
        assert imports(path) <= {"typing", "importlib"}  # so that `import bft_ray` takes no time
        return
    assert room in ROOMS, f"{path} stands in no room of the layout"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "bft_ray" and rest:
            assert ROOMS.index(rest[0]) <= ROOMS.index(room), f"{room} imports {name}, which stands after it"
        assert room in ALLOWED.get(top, {room}), f"{room} imports {top}"
        if room in {"errors", "metrics", "config", "domains", "space"}:
            assert top not in {"torch", "ray", "numpy", "transformers"}, f"{room} imports {top}"
        if room == "stats":
            assert top not in {"torch", "ray", "transformers", "pydantic"}, f"{room} imports {top}"
        if room == "loss":
            assert top not in {"numpy", "transformers", "trl"}, f"{room} imports {top}"


def modules_of(path: Path) -> set[str]:
    """The files of the package that a file imports, by dotted name; `from package import file` names the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bft_ray"):
            files = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= files or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES if path.name != "__init__.py"}
FOLDERS = sorted({path.parent for path in FILES if path.parent.name != "tasks"})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_has_no_circles_inside(folder):
    """Neither between its files nor between the rooms in it."""
    prefix = ".".join(folder.relative_to(ROOT).parts) + "."
    arrows: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name.startswith(prefix):
            own = name.removeprefix(prefix).split(".")[0]
            others = {
                other.removeprefix(prefix).split(".")[0] for other in modules_of(path) if other.startswith(prefix)
            }
            arrows[own] = arrows.get(own, set()) | others - {own}
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(f"{folder.name}: {' -> '.join(error.args[1])}")


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


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_imports_another(path):
    """What tests share lies in `tests/support/`; neither is it a test, nor does it import one."""
    others = {name for name in imports(path) if name.split(".")[0] == "tests"}
    assert all(name.startswith("tests.support.") for name in others), others
    assert path.parent.name != "support" or not path.name.startswith("test_")


def test_no_file_is_thrown_together():
    assert not [path for path in FILES if path.name in {"utils.py", "helpers.py", "misc.py"}]
