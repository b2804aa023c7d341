"""What an evaluator asks of a model, and what it gets back: tokens out, numbers in; never text of the data.

There are three verbs. Evaluators make requests and read answers; `bft_ray.evaluate.run` pools the requests of
all tasks and shares them out over the workers, each of which loads the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bft_ray.config import DataConfig
from bft_ray.config.tasks import Decoding


@dataclass(frozen=True)
class Score:
    """Log-likelihoods of continuations after prompts. Item i: one prompt and its continuations.

    Args:
        ids: of the items.
        prompts: tokens [T] of each item's shared beginning (at least one token).
        continuations: for each item, the tokens [n] of each of its continuations (at least one each).
        counted: for each continuation, which of its tokens [n] are scored (turns of others are not); None: all.
    """

    ids: list[str]
    prompts: list[np.ndarray]
    continuations: list[list[np.ndarray]]
    counted: list[list[np.ndarray | None]] | None = None


@dataclass(frozen=True)
class Scores:
    """One entry a continuation, items in order: nll float64 in nats, num_tokens and num_correct int64."""

    nll: np.ndarray
    num_tokens: np.ndarray
    num_correct: np.ndarray


@dataclass(frozen=True)
class Generate:
    """Continue each prompt. Answers: list over prompts of list over samples of token ids, end token left out."""

    ids: list[str]
    prompts: list[np.ndarray]
    decoding: Decoding
    seed: int


@dataclass(frozen=True)
class Embed:
    """Mean over a sequence's positions of the hidden states after the final norm: answers [n, D] float32."""

    ids: list[str]
    sequences: list[np.ndarray]


Request = Score | Generate | Embed


@dataclass(frozen=True)
class Measured:
    """Metrics by name (see `bft_ray.metrics`) and one record an item: `id` and numbers, never text."""

    metrics: dict[str, float]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """A task, ready to run: its requests, and what makes metrics of their answers (in the same order)."""

    requests: Sequence[Request]
    finish: Callable[[Sequence[Any]], Measured]


@dataclass(frozen=True)
class Context:
    """What evaluators may use on the driver."""

    tokenizer: Any
    data: DataConfig  # template, max_length
    batch_tokens: int
    seed: int
