"""Generated answers against gold ones: exact match of the final answer, token F1, ROUGE-L.

What exact match compares is the task's `answer`:

- `final`: the first number after `####` (GSM8K), as a number: 1,200 = 1200.0 = $1200 = 1.2e3; none where it is part of a
  term, a time, a fraction or digits in groups of another kind (2 x 10^5, 12:30, 1/2, 1 000, 1,2), which could be read in two ways;
- `yes_no_maybe`: the first of these words;
- `text`: the whole text by SQuAD's rule (lowercase, no punctuation, no articles).

An answer from which that cannot be read is wrong and counted (`num_unparsed`), and so is an empty one (`num_empty`).
Prompts are made by the same rule as in training. With several samples an item's value is the mean over them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any, get_args

import numpy as np

from bft_ray.config import SourceConfig
from bft_ray.config.tasks import GenerationTask
from bft_ray.data.rows import BadRow, Row, read_rows, row_key, source_of
from bft_ray.data.tokenise import encode_batch
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.generate import check_engine
from bft_ray.evaluate.engine.request import Context, Generate, Measured, Prepared
from bft_ray.evaluate.means import column_records, of_item, summarise
from bft_ray.evaluate.rouge import normalise, rouge_l, rouge_tokens, token_f1

_NUMBER = re.compile(
    r"""\#\#\#\#\s*\(?\s*
        (?P<sign>[-+−]?)\s*[$€£]?\s*(?P<inner>[-+−]?)
        (?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)
        (?P<exponent>[eE][-+−]?\d{1,3})?
        (?![\d,/:^] | \.\d | [eE][-+−]?\d)         # the number goes on, or is none: 1.5.2, 1,2, 12:30
        (?![ \u00a0\u202f]*[/×*x^]\s*\d | [ \u00a0\u202f]+\d)  # a term, or digits in groups: 2 x 10^5, 1 000
    """,
    re.VERBOSE,
)
ANSWERS: tuple[str, ...] = get_args(GenerationTask.model_fields["answer"].annotation)
_YES_NO_MAYBE = re.compile(r"\b(yes|no|maybe)\b", re.IGNORECASE)


def prepare(task: GenerationTask, context: Context) -> Prepared:
    """One request to generate; metrics `exact_match`, `token_f1`, `rouge_l` (with errors), `num_empty`,
    `num_unparsed`, `answer_tokens`, `num_items`.

    ROUGE-L is left out for items whose gold text has no Latin letter or digit, which it could not see.

    Raises:
        BadInput: a bad file, a gold answer that has not what `answer` compares, a prompt without room for an answer
            within `data.max_length` (all named by file and line), or vLLM asked for and not installed.
    """
    field = f"evaluation.tasks.{task.name}"
    check_engine(task.decoding, f"{field}.decoding.engine")
    rows = read_prompts(source_of(task), field)
    golds = [str(row.completion) for row in rows]
    for row, gold in zip(rows, golds, strict=True):
        if parse_answer(gold, task.answer) is None:
            others = [kind for kind in ANSWERS if kind != task.answer and parse_answer(gold, kind) is not None]
            instead = f", or set {field}.answer to {' or '.join(others)}" if others else ""
            rule = {"final": "a text with a number after ####", "yes_no_maybe": "a text with yes, no or maybe"}
            raise BadInput(
                f"{row.where} completion",
                "a gold answer without it",
                rule.get(task.answer, "a text with a letter or digit"),
                f"Remove the row{instead}.",
            )
    prompts = encode_prompts(rows, context)
    request = Generate([row.id for row in rows], prompts, task.decoding, context.seed)
    return Prepared([request], partial(_finish, task, rows, golds, context.tokenizer))


def parse_answer(text: str, answer: str) -> str | None:
    """What exact match compares, in a canonical form; None where the text has none."""
    if answer == "final":
        found = _NUMBER.search(text)
        if not found:
            return None
        digits = f"{found['digits'].replace(',', '')}{found['exponent'] or ''}".replace("−", "-")
        whole, _, part = format(Decimal(digits), "f").partition(".")  # exact: arithmetic would round to 28 digits
        value = (
            f"{whole.lstrip('0') or '0'}.{part}".rstrip("0").rstrip(".")
            if part.strip("0")
            else whole.lstrip("0") or "0"
        )
        return value if value == "0" or not {found["sign"], found["inner"]} & {"-", "−"} else f"-{value}"
    if answer == "yes_no_maybe":
        word = _YES_NO_MAYBE.search(text)
        return word[1].lower() if word else None
    return normalise(text) or None


def _finish(
    task: GenerationTask, rows: list[Row], golds: list[str], tokenizer: Any, answers: Sequence[list[list[np.ndarray]]]
) -> Measured:
    scored = [
        [
            _score(decode(tokens, tokenizer), gold, task.answer) | {"answer_tokens": float(len(tokens))}
            for tokens in item
        ]
        for item, gold in zip(answers[0], golds, strict=True)
    ]
    columns = {name: [float(np.mean([one[name] for one in item])) for item in scored] for name in scored[0][0]}
    headlines = {name: columns[name] for name in ("exact_match", "token_f1", "rouge_l")}
    every = [one for item in scored for one in item]
    counts = {
        f"{task.name}/num_empty": sum(one["empty"] for one in every),
        f"{task.name}/num_unparsed": sum(one["unparsed"] for one in every),
        f"{task.name}/answer_tokens": float(np.mean(columns["answer_tokens"])),
        f"{task.name}/num_items": float(len(rows)),
    }
    own = [of_item(row.id, row_key(row), row.group) for row in rows]
    return Measured(summarise(task.name, headlines) | counts, column_records(own, columns))


def _score(text: str, gold: str, answer: str) -> dict[str, float]:
    parsed = parse_answer(text, answer)
    return {
        "exact_match": float(parsed is not None and parsed == parse_answer(gold, answer)),
        "token_f1": token_f1(text, gold),
        "rouge_l": rouge_l(text, gold) if rouge_tokens(gold) else float("nan"),
        "empty": float(not text.strip()),
        "unparsed": float(parsed is None and bool(text.strip())),
    }


# --- prompts, for all evaluators that generate --------------------------------------------------------------


def read_prompts(source: SourceConfig, field: str) -> list[Row]:
    """Rows of a prompt and one gold answer, whose `completion` is the answer's text.

    Raises:
        BadInput: a bad file, no rows, a row of another form, or an empty answer.
    """
    rows = []
    for row in read_rows(source, field):
        if isinstance(row, BadRow):
            raise BadInput(row.where, row.reason, "a row with an answer", "Fill it or take the row out.")
        rows.append(_with_gold_text(row))
    if not rows:
        raise BadInput(f"{field}.path", source.path, "a file with rows; this one is empty")
    return rows


def _with_gold_text(row: Row) -> Row:
    """The last turn of a conversation is its answer; thoughts before an answer are not compared."""
    if row.text is not None:
        raise BadInput(row.where, "a row of text", "a row of prompt and completion, or of messages")
    if isinstance(row.completion, str):
        return row
    turns = row.completion if row.messages is None else row.messages[-1:]
    if not turns or len(turns) != 1 or turns[0]["role"] != "assistant" or not turns[0]["content"].strip():
        rule = (
            "one turn of the assistant with text" if row.messages is None else "a conversation that ends with an answer"
        )
        raise BadInput(f"{row.where} {'completion' if row.messages is None else 'messages'}", "no such answer", rule)
    prompt = row.prompt if row.messages is None else row.messages[:-1]
    return replace(row, prompt=prompt, completion=turns[0]["content"], messages=None)


def encode_prompts(rows: Sequence[Row], context: Context) -> list[np.ndarray]:
    """Tokens [T] before the completion in training, T >= 1.

    Raises:
        BadInput: a prompt that leaves no room within `data.max_length`; it is never cut.
    """
    prompts = []
    for row, encoded in zip(rows, encode_batch(rows, context.tokenizer, context.data), strict=True):
        prompt = encoded.input_ids[: encoded.supervised.index(True)]
        check_room(row.where, len(prompt) + 1, context)
        prompts.append(np.array(prompt, dtype=np.int32))
    return prompts


def check_room(where: str, num_tokens: int, context: Context) -> None:
    """Raises BadInput where so many tokens do not fit into `data.max_length`."""
    if num_tokens > context.data.max_length:
        raise BadInput(
            f"{where} prompt",
            f"{num_tokens} tokens with the shortest answer",
            f"at most data.max_length ({context.data.max_length})",
            "Raise data.max_length, or take the row out.",
        )


def decode(tokens: np.ndarray, tokenizer: Any) -> str:
    """The text of an answer."""
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
