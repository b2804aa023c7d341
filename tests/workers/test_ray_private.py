"""Private parts of Ray: in one file, and the installed Ray has them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import ray

from bft_ray.workers import ray_private
from tests.support.paths import ROOT

OWN = Path(ray_private.__file__)


def is_private(name: str) -> bool:
    """Of a dotted name of Ray: a part of it begins with an underscore; `__version__` is public."""
    first, *rest = name.split(".")
    return first == "ray" and any(part.startswith("_") and not part.endswith("__") for part in rest)


def dotted(node: ast.expr) -> str:
    """`a.b.c` of such an expression; "" of any other."""
    if isinstance(node, ast.Attribute):
        return f"{before}.{node.attr}" if (before := dotted(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def privates(source: str) -> Iterator[str]:
    """The private parts of Ray that a source imports or reaches through `ray.`."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [dotted(node)]
        yield from filter(is_private, names)


def test_what_counts_as_private():
    source = """
import ray, ray.train._checkpoint
from ray._private.services import find
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
def f(): return ray._raylet.GcsClient, ray.get, own._private, ray.util.x._y.z, ray.__version__
"""
    assert {*privates(source)} == {
        "ray.train._checkpoint",
        "ray._private.services.find",
        "ray.train.torch.config._TorchBackend",
        "ray._raylet",
        "ray._raylet.GcsClient",
        "ray.util.x._y",
        "ray.util.x._y.z",
    }


def test_no_other_file_uses_one():
    files = [path for room in ("bft_ray", "jobs", "cluster") for path in (ROOT / room).rglob("*.py") if path != OWN]
    found = {str(path.relative_to(ROOT)): [*privates(path.read_text())] for path in files}
    found = {path: names for path, names in found.items() if names}
    assert not found, f"private parts of Ray belong into {OWN.name}: {found}"


@pytest.mark.parametrize("name", sorted({*privates(OWN.read_text())}))
def test_the_installed_ray_has_it(name):
    module, _, part = name.rpartition(".")
    why = f"Ray {ray.__version__} has no {name}: look for another way, and change {OWN.name}"
    try:
        assert hasattr(import_module(module), part) or import_module(name), why
    except ImportError:
        pytest.fail(why)


def test_what_they_are_called_with():
    """The names of the arguments, where a wrong one would be seen only on a cluster."""
    from inspect import signature

    from ray._private.runtime_env.packaging import create_package
    from ray._private.state import state

    assert {"include_gitignore", "excludes", "logger"} <= {*signature(create_package).parameters}
    assert not signature(state.get_draining_nodes).parameters
