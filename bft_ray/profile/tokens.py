"""One forward pass over a dataset, spread over Ray workers: the log-probability of every supervised token."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bft_ray.config import Config, DataConfig, ModelConfig
from bft_ray.data.dataset import TokenDataset
from bft_ray.data.pack import collate
from bft_ray.errors import BftError
from bft_ray.evaluate.engine.likelihood import cut_batches
from bft_ray.evaluate.engine.pool import share_out
from bft_ray.evaluate.engine.worker import Loaded, load
from bft_ray.loss import target_logp
from bft_ray.model.causal_lm import adapter_of
from bft_ray.model.halves import halves
from bft_ray.places.modes import settle
from bft_ray.profile.weights import TokenLogps
from bft_ray.workers.spread import spread

log = logging.getLogger(__name__)

_SHARDS_A_WORKER = 4
_VERSION = 1  # of the file's form


@dataclass(frozen=True)
class _Shard:
    """Samples as they travel to a worker: tokens alone. Has what `collate` reads."""

    ids: list[str]
    all_tokens: list[np.ndarray]
    all_labels: list[np.ndarray]

    def tokens(self, index: int) -> np.ndarray:
        return self.all_tokens[index]

    def labels(self, index: int) -> np.ndarray:
        return self.all_labels[index]


def token_logps(
    config: Config, dataset: TokenDataset, progress: Callable[[int, int], None] | None = None
) -> tuple[TokenLogps, bool]:
    """The log-probabilities of a dataset's supervised tokens under `config.model`, and whether they were cached.

    Cached as Parquet beside the tokenised data, by the content of both the data and the weights. In fp32 they depend
    neither on the batches nor on the number of workers (1e-5).

    Args:
        progress: called with (shards done, shards in all).

    Raises:
        BadInput: a model that cannot be read, or a cluster that cannot hold the workers.
        BftError: log-probabilities that are not finite; names the samples.
    """
    path = dataset.folder.parent / "profiles" / f"{_key(config.model, dataset)}.parquet"
    if (found := read(path)) is not None:
        return found, True
    num_shards = config.cluster.num_workers * _SHARDS_A_WORKER
    shards = share_out(np.asarray(dataset.lengths), min(num_shards, len(dataset)))
    answers = spread(
        partial(_score, batch_tokens=config.evaluation.batch_tokens),
        [_shard(dataset, shard) for shard in shards],
        cluster=config.cluster,
        setup=partial(_load, config.model, config.data, config.evaluation.batch_tokens, config.seed),
        progress=progress,
    )
    parts: list[Any] = [None] * len(dataset)
    for shard, answer in zip(shards, answers, strict=True):
        for index, own in zip(shard, answer, strict=True):
            parts[index] = own
    made = TokenLogps(dataset.ids, np.concatenate(parts), np.array([len(part) for part in parts], dtype=np.int64))
    broken = [name for name, part in zip(dataset.ids, parts, strict=True) if not np.isfinite(part).all()]
    if broken:
        raise BftError(f"log-probabilities are not finite for {', '.join(broken[:8])}; try model.dtype=fp32")
    write(path, made)
    return made, False


def write(path: Path, tokens: TokenLogps) -> None:
    """Parquet with a row a sample: id, logp (list of float32); whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(tokens.num_tokens)])
    table = pa.table(
        {"id": pa.array(tokens.ids), "logp": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens.logp))},
        metadata={"sha256": _sum(tokens.logp), "sha256.rows": _rows_sum(tokens.ids, tokens.num_tokens)},
    )
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        pq.write_table(table, file.name)
    settle(file.name)
    os.replace(file.name, path)


def read(path: Path) -> TokenLogps | None:
    """What `write` wrote; None where there is nothing, or, with a warning that names it, something damaged.

    An earlier version wrote no checksum of the rows.
    """
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        logps = table["logp"].combine_chunks()
        logp = logps.flatten().to_numpy().copy()  # its own, so that torch may take it
        found = TokenLogps(table["id"].to_pylist(), logp, logps.value_lengths().to_numpy().astype(np.int64))
        sums = {name: text.decode() for name, text in table.schema.metadata.items()}
        rows = _rows_sum(found.ids, found.num_tokens)
        if sums[b"sha256"] == _sum(logp) and sums.get(b"sha256.rows", rows) == rows:
            return found
        why = "its checksum differs"
    except Exception as error:  # pyarrow raises what it happens to meet in a damaged file
        why = type(error).__name__
    log.warning("%s is damaged (%s): it counts as absent", path, why)
    return None


def _shard(dataset: TokenDataset, indices: np.ndarray) -> _Shard:
    return _Shard(
        [dataset.ids[i] for i in indices],
        [np.array(dataset.tokens(i)) for i in indices],
        [np.array(dataset.labels(i)) for i in indices],
    )


def _load(model: ModelConfig, data: DataConfig, batch_tokens: int, seed: int) -> Loaded:
    return load(model, data, batch_tokens, seed)


def _score(loaded: Loaded, shard: _Shard, batch_tokens: int) -> list[np.ndarray]:
    """On a worker: log-probabilities [L_s] float32 of each sample of the shard."""
    answers: list[Any] = [None] * len(shard.ids)
    for places, logps in _batches(loaded, shard, batch_tokens):
        for place, own in zip(places, logps, strict=True):
            answers[place] = own
    return answers


def _batches(loaded: Loaded, shard: _Shard, batch_tokens: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    import torch

    parts = halves(loaded.model)
    with torch.no_grad():
        for places in cut_batches(np.array([len(tokens) for tokens in shard.all_tokens]), batch_tokens):
            micro = collate(shard, places, packing=False, pad_id=loaded.pad_id).to(loaded.device)  # type: ignore[arg-type]
            hidden = parts.hidden(micro.input_ids, micro.position_ids, None)
            x, weight, bias = parts.operands(hidden.flatten(0, 1)[micro.position - 1])
            logp, _ = target_logp(x, weight, micro.target, bias=bias, logit_scale=parts.scale, softcap=parts.softcap)
            yield places, np.split(logp.float().cpu().numpy(), np.cumsum(micro.lengths)[:-1])


def _key(model: ModelConfig, dataset: TokenDataset) -> str:
    settings = f"{_VERSION} {model.dtype} {model.attention} {dataset.fingerprint} {model_fingerprint(model)}"
    return hashlib.sha256(settings.encode()).hexdigest()


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


def _sum(logp: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logp).tobytes()).hexdigest()
