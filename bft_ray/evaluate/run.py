"""One evaluation from the config: a base model, an adapter or a merged model, on Ray workers where there are
some.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import Config, ModelConfig
from bft_ray.data.dataset import TokenDataset, prepare
from bft_ray.errors import BadInput
from bft_ray.evaluate.choice import choice_metrics, encode_items, make_records, read_items
from bft_ray.evaluate.likelihood import SequenceScores, cut_batches, score_sequences
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.spread import spread

_SHARDS_A_WORKER = 4  # so that a slow worker does not hold up the rest, and little is lost with a dead one


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name (see `bft_ray.metrics`), one record an item: `set`, `id`, numbers, never text."""

    metrics: dict[str, float]
    records: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        """`metrics.json` and `records.jsonl`, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "records.jsonl", "".join(json.dumps(record) + "\n" for record in self.records))
        _write(folder / "metrics.json", json.dumps(self.metrics, indent=1) + "\n")


@dataclass(frozen=True)
class Batch:
    """Sequences as they travel to a worker: tokens only (scorable: see `likelihood.Sequences`)."""

    ids: list[str]
    all_tokens: list[np.ndarray]
    all_labels: list[np.ndarray]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.all_tokens], dtype=np.int64)

    def tokens(self, index: int) -> np.ndarray:
        return self.all_tokens[index]

    def labels(self, index: int) -> np.ndarray:
        return self.all_labels[index]

    def take(self, indices: np.ndarray) -> Batch:
        """Some of the sequences."""
        return Batch(
            [self.ids[i] for i in indices],
            [self.all_tokens[i] for i in indices],
            [self.all_labels[i] for i in indices],
        )


def evaluate_model(
    config: Config, out: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> EvaluationResult:
    """Measure `config.model` on `data.validation` (`validation/...`) and on every set of
    `evaluation.choices`.

    Everything is tokenised here; workers get tokens alone and load the model once each. Results do not depend
    on the number of workers (fp32: 1e-5).

    Args:
        out: folder for `metrics.json` and `records.jsonl`.
        progress: called with (shards done, shards in all).

    Raises:
        BadInput: nothing to measure, bad data (named by file and line), a model that cannot be read, or a
            cluster
            that cannot hold the workers.
    """
    if not config.data.validation and not config.evaluation.choices:
        raise BadInput("data.validation", [], "given, or else evaluation.choices", "There is nothing to measure.")
    sets = [(task.name, read_items(task)) for task in config.evaluation.choices]
    tokenizer = load_tokenizer(config.model)
    parts: list[Any] = []
    validation = None
    if config.data.validation:
        validation = prepare(config.data.validation, tokenizer, config.data, "data.validation")
        parts.append(validation)
    options = [encode_items(items, tokenizer, config.data) for _, items in sets]
    scores = _score(parts + options, config, tokenizer.pad_token_id or 0, progress)

    metrics: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    if validation is not None:
        own = scores.pop(0)
        metrics |= own.sums(int(validation.num_bytes.sum())).metrics("validation")
        records += _likelihood_records(validation, own)
    for (name, items), encoded, own in zip(sets, options, scores, strict=True):
        made = make_records(items, own)
        metrics |= choice_metrics(made, name, encoded.num_truncated)
        records += [{"set": name} | record.to_dict() for record in made]
    result = EvaluationResult(metrics, records)
    if out is not None:
        result.write(out)
    return result


def _score(
    parts: Sequence[Any], config: Config, pad_id: int, progress: Callable[[int, int], None] | None
) -> list[SequenceScores]:
    """The scores of each part, all parts shared out over the workers together."""
    everything = Batch(
        [name for part in parts for name in part.ids],
        [np.array(part.tokens(i)) for part in parts for i in range(len(part.ids))],
        [np.array(part.labels(i)) for part in parts for i in range(len(part.ids))],
    )
    packing = config.data.packing and config.model.attention.startswith("flash")
    batches = cut_batches(everything.lengths, config.evaluation.batch_tokens, packing)
    num_shards = min(len(batches), config.cluster.num_workers * _SHARDS_A_WORKER)
    shards = [np.concatenate(batches[number::num_shards]) for number in range(num_shards)]
    results = spread(
        partial(_score_shard, batch_tokens=config.evaluation.batch_tokens, packing=packing, pad_id=pad_id),
        [everything.take(shard) for shard in shards],
        cluster=config.cluster,
        setup=partial(_load, config.model, config.seed),
        progress=progress,
    )
    order = np.argsort(np.concatenate(shards))
    columns = [
        np.concatenate([getattr(r, name) for r in results])[order] for name in ("nll", "num_tokens", "num_correct")
    ]
    ends = np.cumsum([len(part.ids) for part in parts])[:-1]
    return [SequenceScores(*own) for own in zip(*(np.split(column, ends) for column in columns), strict=True)]


def _load(model: ModelConfig, seed: int) -> Any:
    """On a worker: the model on its device."""
    import torch

    return load_model(model, seed=seed).to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _score_shard(model: Any, shard: Batch, batch_tokens: int, packing: bool, pad_id: int) -> SequenceScores:
    device = next(model.parameters()).device
    return score_sequences(model, shard, batch_tokens, device, packing=packing, pad_id=pad_id)


def _likelihood_records(dataset: TokenDataset, scores: SequenceScores) -> list[dict[str, Any]]:
    return [
        {
            "set": "validation",
            "id": name,
            "nll": float(scores.nll[i]),
            "num_tokens": int(scores.num_tokens[i]),
            "num_correct": int(scores.num_correct[i]),
            "num_bytes": int(dataset.num_bytes[i]),
        }
        for i, name in enumerate(dataset.ids)
    ]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)
