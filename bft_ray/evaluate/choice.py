"""Multiple choice by the length-normalised log-likelihood of each option after the question.

For option k with tokens o_1 .. o_n after prompt q (context, empty line, question):

    score_k = 1/n * sum_i log p(o_i | q, o_<i)      probability_k = exp(score_k) / sum_j exp(score_j)

The predicted option has the largest score; the headline is the probability of the right one, which moves with
small changes of a model where accuracy does not. Prompts are made by the same rule as training samples, the
option standing where a completion would: prompt and option are tokenised apart, and the token that ends a
turn is not scored.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bft_ray.config import ChoiceTask, DataConfig
from bft_ray.data.rows import Row, read_table
from bft_ray.data.tokenise import encode_batch
from bft_ray.errors import BadInput
from bft_ray.evaluate.likelihood import SequenceScores, score_sequences

_IGNORED = -100
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


@dataclass(frozen=True)
class ChoiceRecord:
    """What a model made of one item; no text.

    Args:
        scores: mean log-probability a token of each option, in nats.
        probability: of the right option.
    """

    id: str
    answer: int
    predicted: int
    probability: float
    scores: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON."""
        return asdict(self) | {"scores": list(self.scores)}


@dataclass(frozen=True)
class EncodedOptions:
    """All options of all items, one sequence each, in order (scorable: see `likelihood.Sequences`)."""

    ids: list[str]  # of the item, with the option's index
    sequences: list[np.ndarray]  # prompt and option, [T]
    num_option_tokens: list[int]
    num_truncated: int  # items whose prompt was shortened

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(sequence) for sequence in self.sequences], dtype=np.int64)

    def tokens(self, index: int) -> np.ndarray:
        return self.sequences[index]

    def labels(self, index: int) -> np.ndarray:
        labels = self.sequences[index].copy()
        labels[: -self.num_option_tokens[index]] = _IGNORED
        return labels


def read_items(task: ChoiceTask) -> list[ChoiceItem]:
    """The items of a set: rows of `question`, `choices` (list of at least 2), `answer` (index), and, where
    given, `context` and `id`. In a CSV file `choices` is a JSON list.

    Raises:
        BadInput: no such file, no item, or a malformed row, named by file and line.
    """
    field = f"evaluation.choices.{task.name}"
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
    """The options as token sequences of at most `config.max_length`.

    A prompt that is too long loses its beginning (the same for all options of an item), never the option.

    Raises:
        BadInput: an option that alone exceeds `max_length`, or one without a token.
    """
    rows = [
        Row(f"{item.id}/{index}", item.where, _prompt(item), choice)
        for item in items
        for index, choice in enumerate(item.choices)
    ]
    closing = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {tokenizer.unk_token_id}
    encoded = iter(encode_batch(rows, tokenizer, config))
    sequences: list[np.ndarray] = []
    num_option_tokens: list[int] = []
    num_truncated = 0
    for item in items:
        parts = [_split(next(encoded), closing) for _ in item.choices]
        longest = max(len(option) for _, option in parts)
        if min(len(option) for _, option in parts) == 0:
            raise BadInput(f"{item.where} choices", "an option without tokens", "made of text")
        if longest >= config.max_length:
            raise BadInput(
                f"{item.where} choices",
                f"an option of {longest} tokens",
                f"shorter than data.max_length ({config.max_length})",
                "Raise data.max_length, or take the item out.",
            )
        room = config.max_length - longest
        num_truncated += any(len(prompt) > room for prompt, _ in parts)
        for prompt, option in parts:
            sequences.append(np.array(_last(prompt, room, tokenizer.bos_token_id) + option, dtype=np.int32))
            num_option_tokens.append(len(option))
    return EncodedOptions([row.id for row in rows], sequences, num_option_tokens, num_truncated)


def score_choices(
    model: Any,
    tokenizer: Any,
    items: Sequence[ChoiceItem],
    config: DataConfig,
    batch_tokens: int,
    device: Any,
    *,
    packing: bool = False,
) -> list[ChoiceRecord]:
    """Records of all items, in order; they do not depend on the batch size (fp32: 1e-5)."""
    options = encode_items(items, tokenizer, config)
    scores = score_sequences(model, options, batch_tokens, device, packing=packing, pad_id=tokenizer.pad_token_id or 0)
    return make_records(items, scores)


def make_records(items: Sequence[ChoiceItem], scores: SequenceScores) -> list[ChoiceRecord]:
    """The scores of all options, in the order of `encode_items`, as one record an item."""
    means = -scores.nll / scores.num_tokens
    records = []
    end = 0
    for item in items:
        start, end = end, end + len(item.choices)
        own = means[start:end]
        odds = np.exp(own - own.max())
        predicted = int(np.argmax(own >= own.max() - _TIE))
        probability = float(odds[item.answer] / odds.sum())
        records.append(ChoiceRecord(item.id, item.answer, predicted, probability, tuple(own.tolist())))
    return records


def choice_metrics(records: Sequence[ChoiceRecord], prefix: str, num_truncated: int = 0) -> dict[str, float]:
    """`<prefix>/accuracy`, `/probability`, each with its standard error over items (`_se`) and the smallest
    difference between two models that it could show (`_detectable` = 1.96 sqrt(2) se; pairing by item shows
    smaller ones).

    The errors are left out for a single item.
    """
    columns = {
        "accuracy": np.array([record.predicted == record.answer for record in records], dtype=np.float64),
        "probability": np.array([record.probability for record in records]),
    }
    metrics = {f"{prefix}/{name}": float(values.mean()) for name, values in columns.items()}
    if len(records) > 1:
        for name, values in columns.items():
            error = float(values.std(ddof=1)) / math.sqrt(len(values))
            metrics[f"{prefix}/{name}_se"] = error
            metrics[f"{prefix}/{name}_detectable"] = 1.96 * math.sqrt(2) * error
    return metrics | {
        f"{prefix}/num_items": float(len(records)),
        f"{prefix}/num_truncated": float(num_truncated),
    }


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
    return ChoiceItem(name, where, question, tuple(choices), answer, context)


def _kind(value: Any) -> str:
    """What a value is, without quoting it."""
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) and not value.strip() else type(value).__name__


# --- tokens -------------------------------------------------------------------------------------------------


def _prompt(item: ChoiceItem) -> str:
    return f"{item.context}\n\n{item.question}" if item.context else item.question


def _split(encoded: Any, closing: set[int]) -> tuple[list[int], list[int]]:
    """(prompt, option) of an encoded sample, without the tokens that end the turn."""
    start = encoded.supervised.index(True)
    end = len(encoded.input_ids)
    while end > start and encoded.input_ids[end - 1] in closing:
        end -= 1
    return encoded.input_ids[:start], encoded.input_ids[start:end]


def _last(prompt: list[int], room: int, bos: int | None) -> list[int]:
    """The last `room` tokens of a prompt; its bos token, where it has one, stays in front."""
    if len(prompt) <= room:
        return prompt
    head = prompt[:1] if prompt[0] == bos and room > 1 else []
    return head + prompt[len(prompt) - (room - len(head)) :]
