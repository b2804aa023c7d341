"""One forward pass over a dataset, spread over Ray workers: the log-probability of every supervised token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import Config
from bft_ray.data.dataset import TokenDataset
from bft_ray.data.pack import collate
from bft_ray.errors import BftError
from bft_ray.evaluate.engine.likelihood import cut_batches
from bft_ray.evaluate.engine.pool import share_out
from bft_ray.evaluate.engine.worker import Loaded, load
from bft_ray.loss import target_logp
from bft_ray.model import start_logps
from bft_ray.model.halves import halves
from bft_ray.model.rotary import Rotary
from bft_ray.model.start_logps import TOP_K, path_of, write
from bft_ray.profile.weights import TokenLogps
from bft_ray.workers.spread import spread

_SHARDS_A_WORKER = 4


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
    path = path_of(config.model, dataset)
    if (found := read(path)) is not None:
        return found, True
    num_shards = config.cluster.num_workers * _SHARDS_A_WORKER
    shards = share_out(np.asarray(dataset.lengths), min(num_shards, len(dataset)))
    answers = spread(
        partial(_score, batch_tokens=config.evaluation.batch_tokens),
        [_shard(dataset, shard) for shard in shards],
        cluster=config.cluster,
        setup=partial(load, config.model, config.data, config.evaluation.batch_tokens, config.seed),
        progress=progress,
    )
    parts: list[Any] = [None] * len(dataset)
    for shard, answer in zip(shards, answers, strict=True):
        for index, own in zip(shard, answer, strict=True):
            parts[index] = own
    logp, entropy = np.concatenate(parts, axis=1)
    made = TokenLogps(dataset.ids, logp, np.array([part.shape[1] for part in parts], dtype=np.int64), entropy=entropy)
    broken = [name for name, part in zip(dataset.ids, parts, strict=True) if not np.isfinite(part).all()]
    if broken:
        raise BftError(f"log-probabilities are not finite for {', '.join(broken[:8])}; try model.dtype=fp32")
    write(path, made, dataset.fingerprint)
    return made, False


def read(path: Path) -> TokenLogps | None:
    """Read what `bft_ray.model.start_logps.write` wrote; None where there is no such file, or a damaged one."""
    found = start_logps.read(path)
    return None if found is None else TokenLogps(found.ids, found.logp, found.num_tokens, entropy=found.entropy)


def _shard(dataset: TokenDataset, indices: np.ndarray) -> _Shard:
    return _Shard(
        [dataset.ids[i] for i in indices],
        [np.array(dataset.tokens(i)) for i in indices],
        [np.array(dataset.labels(i)) for i in indices],
    )


def _score(loaded: Loaded, shard: _Shard, batch_tokens: int) -> list[np.ndarray]:
    """On a worker: log-probabilities and relative entropies [2, L_s] float32 of each sample of the shard."""
    import torch

    answers: list[Any] = [None] * len(shard.ids)
    parts, rotary = halves(loaded.model), Rotary(loaded.model)
    with torch.no_grad():
        lengths = np.array([len(tokens) for tokens in shard.all_tokens])
        for places in cut_batches(lengths, batch_tokens, rotary.alike(lengths)):
            rotary.forget()
            micro = collate(shard, places, packing=False, pad_id=loaded.pad_id).to(loaded.device)  # type: ignore[arg-type]
            hidden = parts.hidden(micro.input_ids, micro.position_ids, None)
            x, weight, bias = parts.operands(hidden.flatten(0, 1)[micro.position - 1])
            head: dict[str, Any] = {"bias": bias, "logit_scale": parts.scale, "softcap": parts.softcap}
            logp, _, entropy = target_logp(x, weight, micro.target, entropy_top_k=TOP_K, **head)
            both = torch.stack([logp, entropy]).float().cpu().numpy()  # type: ignore[list-item]
            for place, own in zip(places, np.split(both, np.cumsum(micro.lengths)[:-1], axis=1), strict=True):
                answers[place] = own
    return answers
