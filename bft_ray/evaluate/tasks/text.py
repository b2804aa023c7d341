"""Likelihood of text: plain, or completions after their prompts.

    nll = -sum_t log p(x_t | x_<t) / N        perplexity = e^nll        bits per byte = sum_t -log2 p / bytes

over the N supervised tokens, the token that ends a text among them; bytes are those of the supervised text in UTF-8.
Rows become tokens by the same rule as training samples.

A text longer than `data.max_length` is cut in windows of that length, and every token is scored once: the first window
scores all it holds, each further one begins with the later half of the one before, as context, and scores what is new
(with the bos token in front, where the text has one). So no token after the first window sees less than half a window,
and no text is dropped or cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bft_ray.config import DataConfig
from bft_ray.config.tasks import TextTask
from bft_ray.data.dataset import IGNORED, TokenDataset
from bft_ray.data.rows import BadRow, Row, question_key, read_rows, row_key, source_of
from bft_ray.data.tokenise import encode_batch
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.likelihood import LikelihoodSums
from bft_ray.evaluate.engine.request import Context, Measured, Prepared, Score, Scores
from bft_ray.evaluate.means import of_item
from bft_ray.stats.errors import ratio_error, with_error
from bft_ray.stats.linearise import linear_auroc

_ROWS_A_CALL = 256  # of the tokenizer


@dataclass(frozen=True)
class Text:
    """Tokens [T] of one text, which of them are scored [T] (never the first), their bytes, and whether it is a wrong answer;
    `key` is that of its row."""

    id: str
    key: str
    tokens: np.ndarray
    is_scored: np.ndarray
    num_bytes: int
    group: str | None = None
    is_wrong: bool = False


def prepare(task: TextTask, context: Context) -> Prepared:
    """NLL, perplexity, bits per byte and token accuracy of a file of texts or of prompts and completions.

    Raises:
        BadInput: no such file, a malformed row, or no row with text.
    """
    field = f"evaluation.tasks.{task.name}"
    found = list(read_rows(source_of(task), field))
    rows = [row for row in found if not isinstance(row, BadRow)]
    texts = list(_texts(rows, context.tokenizer, context.data))
    if not texts:
        raise BadInput(f"{field}.path", task.path, "a file with rows that have text")
    if task.wrong.share and all(text.is_wrong for text in texts):
        rule = "small enough to leave a row with its own answer, to compare the others with"
        raise BadInput(f"{field}.wrong.share", task.wrong.share, rule)
    extra = {f"{task.name}/num_left_out": float(len(found) - len(texts))}
    return prepare_texts(texts, task.name, context, extra)


def prepare_dataset(dataset: TokenDataset, name: str, context: Context) -> Prepared:
    """NLL, perplexity, bits per byte and token accuracy of samples that are tokenised already."""
    texts = [
        Text(
            own,
            dataset.keys[i],
            np.array(dataset.tokens(i)),
            dataset.labels(i) != IGNORED,
            int(dataset.num_bytes[i]),
            dataset.groups[i],
        )
        for i, own in enumerate(dataset.ids)
    ]
    return prepare_texts(texts, name, context, {})


def prepare_texts(texts: Sequence[Text], name: str, context: Context, extra: dict[str, float]) -> Prepared:
    """Requests for the windows of all texts; one record a text."""
    request = Score([], [], [], [])
    owners: list[int] = []
    for index, text in enumerate(texts):
        for prompt, continuation, counted in windows(text, context.data.max_length, context.tokenizer.bos_token_id):
            owners.append(index)
            request.ids.append(text.id)
            request.prompts.append(prompt)
            request.continuations.append([continuation])
            assert request.counted is not None
            request.counted.append([counted])

    return Prepared([request], partial(_finish, texts, name, owners, extra))


def windows(text: Text, max_length: int, bos: int | None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(prompt, continuation, which tokens of it are scored or None for all) of the windows with a scored token."""
    tokens, head = text.tokens, text.tokens[:1] if text.tokens[0] == bos else text.tokens[:0]
    room = max_length - len(head)
    scored_to, start = 1, 0
    while scored_to < len(tokens):
        stop = min(len(tokens), max_length if start == 0 else start + room)
        found = np.flatnonzero(text.is_scored[scored_to:stop])
        if len(found):
            first, last = scored_to + found[0], scored_to + found[-1] + 1
            front = tokens[start:first] if start == 0 else np.concatenate([head, tokens[start:first]])
            counted = text.is_scored[first:last]
            yield front, tokens[first:last], None if counted.all() else counted
        scored_to, start = stop, stop - room // 2


def _texts(rows: Iterable[Row], tokenizer: Any, config: DataConfig) -> Iterator[Text]:
    """Rows that have a token to score."""
    every = list(rows)
    for start in range(0, len(every), _ROWS_A_CALL):
        some = every[start : start + _ROWS_A_CALL]
        for row, encoded in zip(some, encode_batch(some, tokenizer, config), strict=True):
            if any(encoded.supervised):
                tokens = np.array(encoded.input_ids, dtype=np.int32)
                supervised = np.array(encoded.supervised)
                # which wrong answer a row is given depends on the others that are read
                key = question_key(row) if row.is_wrong else row_key(row)
                yield Text(row.id, key, tokens, supervised, encoded.num_bytes, row.group, row.is_wrong)


def _finish(
    texts: Sequence[Text], name: str, owners: Sequence[int], extra: dict[str, float], answers: Sequence[Scores]
) -> Measured:
    """
    Args:
        owners: of each window its text.
    """
    columns = (answers[0].nll, answers[0].num_tokens, answers[0].num_correct)
    nll, num_tokens, num_correct = (np.bincount(owners, column, minlength=len(texts)) for column in columns)
    num_bytes = np.array([text.num_bytes for text in texts])
    sums = LikelihoodSums(float(nll.sum()), int(num_tokens.sum()), int(num_correct.sum()), int(num_bytes.sum()))
    metrics = sums.metrics(name)
    if len(texts) > 1:
        ratios = {"nll": (nll, num_tokens), "token_accuracy": (num_correct, num_tokens)}
        if sums.num_bytes:
            ratios["bits_per_byte"] = (nll / np.log(2), num_bytes)
        for metric, parts in ratios.items():
            value, error = metrics[f"{name}/{metric}"], ratio_error(*parts)
            metrics |= with_error(f"{name}/{metric}", value, error, len(texts))
    wrong = np.array([text.is_wrong for text in texts])
    mean_nll = nll / num_tokens
    if wrong.any():
        metrics[f"{name}/wrong_auroc"] = float(linear_auroc(wrong, mean_nll).mean())
    records: list[dict[str, Any]] = [
        of_item(text.id, text.key, text.group)
        | {
            "nll": float(nll[i]),
            "num_tokens": int(num_tokens[i]),
            "num_correct": int(num_correct[i]),
            "num_bytes": int(num_bytes[i]),
        }
        | ({"mean_nll": float(mean_nll[i]), "is_wrong": int(wrong[i])} if wrong.any() else {})
        for i, text in enumerate(texts)
    ]
    return Measured(metrics | {f"{name}/num_items": float(len(texts))} | extra, records)
