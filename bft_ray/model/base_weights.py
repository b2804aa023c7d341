"""A cheap fingerprint of the weights that a run or study starts from: a model that was trained again has another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from io import BufferedReader
from pathlib import Path

from bft_ray.config import ModelConfig
from bft_ray.model.causal_lm import adapter_of
from bft_ray.model.gguf import is_converted

#: files of so many bytes are read whole; of larger ones a block at every stride, and the last one
_WHOLE_BYTES, _STRIDE_BYTES, _BLOCK_BYTES = 2**26, 2**24, 2**14
_FILES = ("*.safetensors", "*.bin", "*config.json")


def weights_fingerprint(model: ModelConfig) -> str:
    """sha256 of the folders of model and adapter: names, sizes, and content of configurations and weights;
    "" for a model of the hub alone, which `model.revision` names.

    Of a file beyond 64 MiB one part in a thousand is read (100 MB of 100 GB: seconds), evenly spread: enough to tell
    weights that were trained, or written in another dtype; not enough to find a single changed number. Neither
    times nor places count, so that it is the same on all nodes and of a copy.
    """
    return _digest([path for path in adapter_of(model) if path], _FILES)


def base_fingerprint(model: ModelConfig) -> str:
    """As `weights_fingerprint`, of the weights of the base model alone: neither the adapter on it nor its settings, which
    a copy that another version of transformers wrote may put otherwise. Of a converted GGUF file the name of its folder,
    which is made of the file's content: other versions write the same weights in other files.
    """
    base = Path(adapter_of(model)[0])
    return base.name if is_converted(base) else _digest([str(base)], _FILES[:1])


def _digest(paths: Iterable[str], patterns: Iterable[str]) -> str:
    digest, found = hashlib.sha256(), False
    for folder in map(Path, paths):
        for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
            found = True
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            with file.open("rb") as stream:
                digest.update(_sample(stream, file.stat().st_size))
    return digest.hexdigest() if found else ""


def _sample(stream: BufferedReader, size: int) -> bytes:
    if size <= _WHOLE_BYTES:
        return hashlib.file_digest(stream, "sha256").digest()
    digest = hashlib.sha256()
    for place in [*range(0, size, _STRIDE_BYTES), size - _BLOCK_BYTES]:
        stream.seek(place)
        digest.update(stream.read(_BLOCK_BYTES))
    return digest.digest()
