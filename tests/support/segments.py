"""Segments of a search, and a store for them that is memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bft_ray.study.records.segment import Segment


def make_segment(tree: dict, folder: Path | str, **changes: Any) -> Segment:
    settings: dict[str, Any] = {"rungs": (2, 4), "at_rungs": ("choices",)} | changes
    return Segment("study", "search/0", 42, tree, str(folder), **settings)


def is_store(path: str) -> bool:
    return path.startswith("store://")


def at_store(path: str) -> Any:
    """An object store in memory, where `storage` would reach for one over the network."""
    from fsspec.implementations.memory import MemoryFileSystem
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(MemoryFileSystem())), "/" + path.removeprefix("store://")
