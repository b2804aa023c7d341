"""Under which paths the rows of a cache entry were read: an entry is found by what the rows hold, wherever their file lies."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

_FILE = "read_as.json"  # beside the files with checksums: it changes


def note_paths(entry: Path, paths: Iterable[str]) -> None:
    """Add paths to those of an entry, those of this machine as absolute ones; nothing in a cache that may only be read."""
    known, whole = paths_of(entry), {_whole(path) for path in paths}
    if whole <= known:
        return
    new = entry / f"{_FILE}.{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):
        try:
            new.write_text(json.dumps(sorted(known | whole)))
            os.replace(new, entry / _FILE)
        finally:
            new.unlink(missing_ok=True)


def paths_of(entry: Path) -> set[str]:
    """All paths of an entry.

    Raises:
        OSError, ValueError, KeyError, TypeError: the entry is damaged.
    """
    sources = json.loads((entry / "meta.json").read_text())["report"]["sources"]
    paths = {str(source["path"]) for source in sources}
    with contextlib.suppress(FileNotFoundError):
        paths |= {str(path) for path in json.loads((entry / _FILE).read_text())}
    return paths


def _whole(path: str) -> str:
    file = Path(path).expanduser()
    return str(file.resolve()) if file.exists() else path
