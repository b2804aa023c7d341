"""Multiple choice by the length-normalised log-likelihood of each option after the question.

For option k with tokens o_1 .. o_n after prompt q (context, empty line, question):

    score_k = 1/n * sum_i log p(o_i | q, o_<i)      probability_k = exp(score_k) / sum_j exp(score_j)

The predicted option has the largest score; the headline is the probability of the right one, which moves with
small changes of a model where accuracy does not. Prompts are made by the same rule as training samples, the
option standing where a completion would: prompt and option are tokenised apart, and the token that ends a
turn is not scored.

    calibration error = sum_b n_b / n |mean of [predicted is right] in b - mean probability of the predicted in b|

over ten bins b of equal width of the predicted option's probability: the expected calibration error of Naeini,
Cooper and Hauskrecht (2015), as Guo et al. (2017) use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from bft_ray.config import DataConfig
from bft_ray.config.tasks import ChoiceTask
from bft_ray.data.rows import ChoiceRow, read_choices, row_key, source_of
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Context, Measured, Prepared, Score, Scores
from bft_ray.evaluate.means import content_of, summarise
from bft_ray.evaluate.options import Question, encode_options

_TIE = 1e-5  # nats a token: scores this near are equal, and the first option wins, whatever the batching


def prepare(task: ChoiceTask, context: Context) -> Prepared:
    """Accuracy, choice probability and calibration error of a multiple-choice set.

    Raises:
        BadInput: see `read_items` and `encode_options`.
    """
    items = read_items(task)
    request, num_truncated = encode_items(items, context.tokenizer, context.data)

    return Prepared([request], partial(_finish, task, items, num_truncated))


def _finish(task: ChoiceTask, items: Sequence[ChoiceRow], num_truncated: int, answers: Sequence[Scores]) -> Measured:
    records = make_records(items, answers[0])
    return Measured(choice_metrics(records, task.name, num_truncated), records)


def read_items(task: ChoiceTask) -> list[ChoiceRow]:
    """The items of a set, in any form of choices that `bft_ray.data.forms` knows.

    Raises:
        BadInput: no such file, no item, a file of another form, or a malformed row, named by file and line.
    """
    field = f"evaluation.tasks.{task.name}"
    items = list(read_choices(source_of(task), field))
    if not items:
        raise BadInput(f"{field}.path", task.path, "a set with items; this one is empty")
    return items


def encode_items(items: Sequence[ChoiceRow], tokenizer: Any, config: DataConfig) -> tuple[Score, int]:
    """The options after their questions, one continuation an option, in order; see `encode_options`."""
    questions = [Question(item.id, item.where, prompt_of(item), item.choices) for item in items]
    return encode_options(questions, tokenizer, config)


def make_records(items: Sequence[ChoiceRow], scores: Scores) -> list[dict[str, Any]]:
    """The scores of all options, in order, as one record an item: what a model made of it; no text.

    answer, predicted: indices of options; correct: 1 where they are the same.
    probability: of the right option; confidence: of the predicted one.
    scores: mean log-probability a token of each option, in nats.
    content, group: see `bft_ray.evaluate.means.of_item`; subject: of the item, where given.
    """
    means = -scores.nll / scores.num_tokens
    records = []
    end = 0
    for item in items:
        start, end = end, end + len(item.choices)
        own = means[start:end]
        odds = np.exp(own - own.max())
        predicted = int(np.argmax(own >= own.max() - _TIE))
        record = {
            "id": item.id,
            "content": content_of(row_key(item)),
            "answer": item.answer,
            "predicted": predicted,
            "probability": float(odds[item.answer] / odds.sum()),
            "confidence": float(odds[predicted] / odds.sum()),
            "scores": own.tolist(),
            "subject": item.subject,
            "group": item.group,
            "correct": int(predicted == item.answer),
        }
        records.append({name: value for name, value in record.items() if value is not None})
    return records


def choice_metrics(records: Sequence[dict[str, Any]], prefix: str, num_truncated: int = 0) -> dict[str, float]:
    """`<prefix>/accuracy`, `/probability`, each with its error (see `summarise`), `/calibration_error`, and
    `/macro_accuracy`, the mean over subjects of their accuracies, where all items have a subject.
    """
    right = np.array([record["correct"] for record in records], dtype=np.float64)
    probability = np.array([record["probability"] for record in records])
    metrics = summarise(prefix, {"accuracy": right, "probability": probability})  # type: ignore[dict-item]
    confidence = np.array([record["confidence"] for record in records])
    metrics[f"{prefix}/calibration_error"] = calibration_error(confidence, right)
    subjects = np.array([record.get("subject", "") for record in records])
    if all(subjects):
        metrics[f"{prefix}/macro_accuracy"] = float(np.mean([right[subjects == s].mean() for s in np.unique(subjects)]))
    return metrics | {f"{prefix}/num_items": float(len(records)), f"{prefix}/num_truncated": float(num_truncated)}


def calibration_error(confidence: np.ndarray, right: np.ndarray, num_bins: int = 10) -> float:
    """Expected calibration error, a share; `confidence` [n] in [0, 1], `right` [n] 0 or 1. 1.0 is in the last bin."""
    bins = np.minimum(
        (confidence * num_bins + 1e-6).astype(np.int64), num_bins - 1
    )  # rounding moves no one over an edge
    gaps = np.bincount(bins, right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def prompt_of(item: ChoiceRow) -> str:
    """What is asked: the context, if any, and the question."""
    return f"{item.context}\n\n{item.question}" if item.context else item.question
