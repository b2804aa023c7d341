"""The log-probability of every supervised token of a dataset under given weights: kept beside the tokens, and found again by
weights and data.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bft_ray.config import LossConfig, ModelConfig
from bft_ray.data.dataset import TokenDataset
from bft_ray.model.causal_lm import adapter_of
from bft_ray.places.modes import settle

log = logging.getLogger(__name__)

#: likeliest tokens of the entropies that are kept
TOP_K: int = LossConfig.model_fields["entropy_top_k"].default
_VERSION = 2  # of what is kept


@dataclass(frozen=True)
class StartLogps:
    """The supervised tokens of a dataset, sample after sample.

    Args:
        ids: of the S samples.
        logp: [N] float32, natural logarithm.
        num_tokens: [S] int64, supervised tokens of each sample (at least 1).
        entropy: [N] float32, relative entropy of the 20 likeliest words (`bft_ray.loss.entropy`); None: not kept.
    """

    ids: list[str]
    logp: np.ndarray
    num_tokens: np.ndarray
    entropy: np.ndarray | None = field(default=None, kw_only=True)

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.num_tokens)])

    def of(self, index: int) -> np.ndarray:
        """[L_s] log-probabilities of the supervised tokens of a sample, in order."""
        return self.logp[self._bounds[index] : self._bounds[index + 1]]


def path_of(model: ModelConfig, dataset: TokenDataset) -> Path:
    """Where the log-probabilities of a dataset under the weights of `model` are kept: beside the tokens."""
    dtype = model.dtype + (f" {model.quantization}" if model.quantization else "")
    settings = f"{_VERSION} {dtype} {model.attention} {dataset.fingerprint} {model_fingerprint(model)}"
    return dataset.folder.parent / "profiles" / f"{hashlib.sha256(settings.encode()).hexdigest()}.parquet"


def write(path: Path, tokens: StartLogps, fingerprint: str = "") -> None:
    """Parquet with a row a sample: id, logp, and where it is known entropy (lists of float32); whole or not at all.

    Args:
        fingerprint: of the dataset, so that what was made of it is found; "": of a copy in a folder of the user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = pa.array(np.concatenate([[0], np.cumsum(tokens.num_tokens)]))
    columns = {"logp": tokens.logp} | ({} if tokens.entropy is None else {"entropy": tokens.entropy})
    lists = {name: pa.LargeListArray.from_arrays(offsets, pa.array(values)) for name, values in columns.items()}
    sums = {"sha256": _sum(*columns.values()), "sha256.rows": _rows_sum(tokens.ids, tokens.num_tokens)}
    sums["dataset"] = fingerprint
    table = pa.table({"id": pa.array(tokens.ids)} | lists, metadata=sums)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        pq.write_table(table, file.name)
    settle(file.name)
    os.replace(file.name, path)


def read(path: Path) -> StartLogps | None:
    """What `write` wrote; None where there is nothing, or, with a warning that names it, something damaged.

    An earlier version wrote no checksum of the rows, and no entropy.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        lists = {name: table[name].combine_chunks() for name in table.column_names if name != "id"}
        # their own, so that torch may take them
        values = {name: column.flatten().to_numpy().copy() for name, column in lists.items()}
        num_tokens = lists["logp"].value_lengths().to_numpy().astype(np.int64)
        found = StartLogps(table["id"].to_pylist(), values["logp"], num_tokens, entropy=values.get("entropy"))
        sums = {name: text.decode() for name, text in table.schema.metadata.items()}
        rows = _rows_sum(found.ids, found.num_tokens)
        if sums[b"sha256"] == _sum(*values.values()) and sums.get(b"sha256.rows", rows) == rows:
            return found
        why = "its checksum differs"
    except Exception as error:  # pyarrow raises what it happens to meet in a damaged file
        why = type(error).__name__
    log.warning("%s is damaged (%s): it counts as absent", path, why)
    return None


def dataset_of(path: Path) -> str | None:
    """The fingerprint of the dataset that a kept file is of; None: it does not say, or is damaged."""
    try:
        return (pq.read_metadata(path).metadata or {}).get(b"dataset", b"").decode() or None
    except (OSError, pa.ArrowException, UnicodeDecodeError):
        return None


def model_fingerprint(model: ModelConfig) -> str:
    """sha256 of the weights and configuration of a folder and its adapter; of name and commit for a hub model."""
    digest = hashlib.sha256()
    for path in adapter_of(model):
        if path is None:
            continue
        folder = Path(path)
        if not folder.is_dir():
            digest.update(f"{path}@{_commit(model, path)}".encode())
            continue
        for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _commit(model: ModelConfig, path: str) -> str:
    from transformers import AutoConfig

    described = AutoConfig.from_pretrained(path, revision=model.revision, trust_remote_code=model.trust_remote_code)
    return str(getattr(described, "_commit_hash", None) or model.revision)


def _rows_sum(ids: list[str], num_tokens: np.ndarray) -> str:
    return hashlib.sha256("\n".join([*ids, *map(str, num_tokens.tolist())]).encode()).hexdigest()


def _sum(*columns: np.ndarray) -> str:
    digest = hashlib.sha256()
    for values in columns:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
