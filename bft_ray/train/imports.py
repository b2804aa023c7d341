"""DeepSpeed, imported without what is of no use here."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

import torch


def import_deepspeed() -> Any:
    """DeepSpeed, without the CPU communication op that it would otherwise compile for a minute at start, and without
    MLflow, which its autotuner imports where it can: four fifths of the import, and nothing here uses either.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _failing("mlflow"):
        import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


class _Failing(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"{spec.name} is not imported here", name=spec.name)


@contextlib.contextmanager
def _failing(package: str) -> Iterator[None]:
    """The first import of a package fails, in this thread alone: others may import it at the same time."""
    thread = threading.get_ident()

    class Finder(MetaPathFinder):
        def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(fullname, _Failing()) if fullname == package and threading.get_ident() == thread else None

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
