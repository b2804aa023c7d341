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

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bft_ray.config import DataConfig
from bft_ray.config.tasks import ChoiceTask
from bft_ray.data.rows import read_table
from bft_ray.errors import BadInput
from bft_ray.evaluate.means import summarise
from bft_ray.evaluate.options import EncodedOptions, Question, encode_options
from bft_ray.evaluate.request import Context, Measured, Prepared, Scores

_TIE = 1e-5  # nats a token: scores this near are equal, and the first option wins, whatever the batching


@dataclass(frozen=True)
class ChoiceItem:
    """One question; `where` is its file and line, `answer` the index of the right choice."""

    id: str
    where: str
    question: str
    choices: tuple[str, ...]
    answer: int
    context: str = ""
    subject: str | None = None


@dataclass(frozen=True)
class ChoiceRecord:
    """What a model made of one item; no text.

    Args:
        scores: mean log-probability a token of each option, in nats.
        probability: of the right option.
        confidence: probability of the predicted option.
        subject: of the item, where given.
    """

    id: str
    answer: int
    predicted: int
    probability: float
    confidence: float
    scores: tuple[float, ...]
    subject: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        record = asdict(self) | {"scores": list(self.scores), "correct": int(self.predicted == self.answer)}
        if self.subject is None:
            record.pop("subject")
        return record


def prepare(task: ChoiceTask, context: Context) -> Prepared:
    """Accuracy, choice probability and calibration error of a multiple-choice set.

    Raises:
        BadInput: see `read_items` and `encode_options`.
    """
    items = read_items(task)
    encoded = encode_items(items, context.tokenizer, context.data)

    def finish(answers: Sequence[Scores]) -> Measured:
        records = make_records(items, answers[0])
        return Measured(
            choice_metrics(records, task.name, encoded.num_truncated), [record.to_dict() for record in records]
        )

    return Prepared([encoded.request], finish)


def read_items(task: ChoiceTask) -> list[ChoiceItem]:
    """The items of a set: rows of `question`, `choices` (list of at least 2), `answer` (index), and, where
    given, `context`, `subject` and `id`. In a CSV file `choices` is a JSON list.

    Raises:
        BadInput: no such file, no item, or a malformed row, named by file and line.
    """
    field = f"evaluation.tasks.{task.name}"
    items: list[ChoiceItem] = []
    seen: dict[str, str] = {}
    for where, record in read_table(task.path, limit=task.limit, field=field):
        item = _item(where, _typed(record) if task.path.endswith(".csv") else record)
        if item.id in seen:
            raise BadInput(f"{where} id", item.id, f"unique, but stands at {seen[item.id]} too")
        seen[item.id] = where
        items.append(item)
    if not items:
        raise BadInput(f"{field}.path", task.path, "a set with items; this one is empty")
    return items


def encode_items(items: Sequence[ChoiceItem], tokenizer: Any, config: DataConfig) -> EncodedOptions:
    """The options after their questions, one continuation an option, in order; see `encode_options`."""
    questions = [Question(item.id, item.where, _prompt(item), item.choices) for item in items]
    return encode_options(questions, tokenizer, config)


def make_records(items: Sequence[ChoiceItem], scores: Scores) -> list[ChoiceRecord]:
    """The scores of all options, in order, as one record an item."""
    means = -scores.nll / scores.num_tokens
    records = []
    end = 0
    for item in items:
        start, end = end, end + len(item.choices)
        own = means[start:end]
        odds = np.exp(own - own.max())
        predicted = int(np.argmax(own >= own.max() - _TIE))
        probability = float(odds[item.answer] / odds.sum())
        confidence = float(odds[predicted] / odds.sum())
        records.append(
            ChoiceRecord(item.id, item.answer, predicted, probability, confidence, tuple(own.tolist()), item.subject)
        )
    return records


def choice_metrics(records: Sequence[ChoiceRecord], prefix: str, num_truncated: int = 0) -> dict[str, float]:
    """`<prefix>/accuracy`, `/probability`, each with its error (see `summarise`), `/calibration_error`, and
    `/macro_accuracy`, the mean over subjects of their accuracies, where all items have a subject.
    """
    right = np.array([record.predicted == record.answer for record in records], dtype=np.float64)
    probability = np.array([record.probability for record in records])
    metrics = summarise(prefix, {"accuracy": right, "probability": probability})  # type: ignore[dict-item]
    confidence = np.array([record.confidence for record in records])
    metrics[f"{prefix}/calibration_error"] = calibration_error(confidence, right)
    subjects = np.array([record.subject or "" for record in records])
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


# --- rows ---------------------------------------------------------------------------------------------------


def _typed(record: dict) -> dict:
    """A row of a CSV file, whose cells are text: the list and the index read from it."""
    typed = dict(record)
    for name in ("choices", "answer"):
        with contextlib.suppress(KeyError, json.JSONDecodeError):  # left as it is: the checks name it
            typed[name] = json.loads(record[name])
    return typed


def _item(where: str, record: dict) -> ChoiceItem:
    question, context = record.get("question"), record.get("context") or ""
    if not isinstance(question, str) or not question.strip():
        raise BadInput(f"{where} question", _kind(question), "text that is not empty")
    if not isinstance(context, str):
        raise BadInput(f"{where} context", _kind(context), "text, or left out")
    subject = record.get("subject") or None
    if subject is not None and not isinstance(subject, str):
        raise BadInput(f"{where} subject", _kind(subject), "text, or left out")
    choices = record.get("choices")
    if not isinstance(choices, list) or len(choices) < 2:
        value = f"a list of {len(choices)}" if isinstance(choices, list) else _kind(choices)
        raise BadInput(f"{where} choices", value, "a list of at least 2 options")
    for index, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise BadInput(f"{where} choices.{index}", _kind(choice), "text that is not empty")
    answer = record.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise BadInput(
            f"{where} answer",
            answer if isinstance(answer, int) else _kind(answer),
            f"the index of the right option, 0 to {len(choices) - 1}",
            "Indices count from 0: write 0 for option A, 1 for B.",
        )
    given = record.get("id")
    name = where.rsplit("/", 1)[-1] if given in (None, "") else str(given)
    return ChoiceItem(name, where, question, tuple(choices), answer, context, subject)


def _kind(value: Any) -> str:
    """What a value is, without quoting it."""
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) and not value.strip() else type(value).__name__


def _prompt(item: ChoiceItem) -> str:
    return f"{item.context}\n\n{item.question}" if item.context else item.question
