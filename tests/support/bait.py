"""Files that run code in whoever unpickles them: the code makes a folder, so that a test can see that it has run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np


class Bait:
    """Pickled, it makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self._marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self._marker,)


def as_pickle(path: Path, marker: Path) -> Path:
    """A plain pickle; `pandas.read_pickle`, joblib and `cloudpickle` read these too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Bait(marker)))
    return path


def as_torch(path: Path, marker: Path) -> Path:
    """What `torch.save` writes: a zip with a pickle."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.zeros(2), "bait": Bait(marker)}, path)
    return path


def as_npy(path: Path, marker: Path) -> Path:
    """An array of objects: its content is a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        np.save(stream, np.array([Bait(marker)], dtype=object), allow_pickle=True)
    return path


def as_yaml(path: Path, marker: Path) -> Path:
    """A tag that yaml's unsafe loader calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"domain: !!python/object/apply:os.mkdir ['{marker}']\n")
    return path
