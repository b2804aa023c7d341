"""Rows with one right answer each, as prompts of tokens and what exact match compares."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bft_ray.config import SourceConfig
from bft_ray.data.rows import ChoiceRow, Row, read_choices
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Context
from bft_ray.evaluate.tasks.generation import encode_prompts, parse_answer, read_prompts


@dataclass(frozen=True)
class Items:
    """What is asked.

    Args:
        ids: unique.
        prompts: tokens [T] of each, as in fine-tuning.
        golds: what exact match compares an answer with, each in its canonical form.
        groups: what items share (patient, document ...); () none.
    """

    ids: list[str]
    prompts: list[np.ndarray]
    golds: list[str]
    groups: list[tuple[str, ...]]

    def first(self, count: int) -> Items:
        """The first so many."""
        return Items(self.ids[:count], self.prompts[:count], self.golds[:count], self.groups[:count])

    @property
    def constant(self) -> float:
        """Reward of always giving the most common gold answer."""
        return Counter(self.golds).most_common(1)[0][1] / len(self.golds)

    def digest(self) -> str:
        """Of all that they hold: the same for the same items in the same order."""
        said = [
            (name, prompt.tolist(), gold) for name, prompt, gold in zip(self.ids, self.prompts, self.golds, strict=True)
        ]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def rows_of(sources: Sequence[SourceConfig], field: str, from_choices: str | None = None) -> list[Row]:
    """Rows of a prompt and one gold answer, from one or several sources.

    Raises:
        BadInput: bad rows or files, no rows, or an id that two sources share.
    """
    rows: dict[str, Row] = {}
    for place, source in enumerate(sources):
        name = f"{field}.{place}"
        own = _of_choices(source, name, from_choices) if from_choices else read_prompts(source, name)
        for row in own:
            if row.id in rows:
                raise BadInput(row.where, "an id that an earlier source has", "a row with an id of its own")
            rows[row.id] = row
    if not rows:
        raise BadInput(field, [source.path for source in sources], "sources with rows; these are empty")
    return list(rows.values())


def _of_choices(source: SourceConfig, field: str, kind: str) -> Iterator[Row]:
    for choice in read_choices(source, field):
        prompt, answer = asked_of(choice, kind)
        yield Row(choice.id, choice.where, prompt, answer, group=choice.group)


def asked_of(row: ChoiceRow, kind: str) -> tuple[str, str]:
    """Prompt and answer of a multiple-choice question.

    Args:
        kind: `options`: the prompt lists them, the answer is the right one; `yes_no`: the prompt asks about one of them, the
            right one for half of the ids and else any other, drawn by the sha256 of the id.
    """
    question = f"{row.context}\n\n{row.question}" if row.context else row.question
    if kind == "options":
        return f"{question}\nChoose one: {'; '.join(row.choices)}.", row.choices[row.answer]
    draw = int.from_bytes(hashlib.sha256(row.id.encode()).digest()[:8], "big")
    others = [place for place in range(len(row.choices)) if place != row.answer]
    place = row.answer if draw % 2 == 0 else others[draw // 2 % len(others)]
    return f"{question}\nIs it {row.choices[place]}?", "yes" if place == row.answer else "no"


def as_jsonl(rows: Sequence[Row]) -> str:
    """Rows as a file that fine-tuning reads; only those of `rows_of` with `from_choices`, whose prompts are texts."""
    return "".join(
        json.dumps({"id": row.id, "prompt": row.prompt, "completion": row.completion}, ensure_ascii=False) + "\n"
        for row in rows
    )


def items_of(rows: Sequence[Row], context: Context, answer: str) -> Items:
    """Rows as items.

    Raises:
        BadInput: a gold answer that has not what `answer` compares, or a prompt that does not fit.
    """
    golds = []
    for row in rows:
        gold = parse_answer(str(row.completion), answer)
        if gold is None:
            remedy = "Remove the row, or set rows.answer to what its answers have."
            raise BadInput(
                f"{row.where} completion", "an answer without it", f"one from which `{answer}` is read", remedy
            )
        golds.append(gold)
    groups: list[tuple[str, ...]] = [(row.group,) if row.group is not None else () for row in rows]
    return Items([row.id for row in rows], encode_prompts(rows, context), golds, groups)


def require_apart(train: Items, held_out: Items) -> None:
    """Raises BadInput where a held-out prompt is also trained on."""
    seen = {prompt.tobytes() for prompt in train.prompts}
    shared = [name for name, prompt in zip(held_out.ids, held_out.prompts, strict=True) if prompt.tobytes() in seen]
    if shared:
        rule = f"without prompts of rows.train; {len(shared)} are there too, such as {shared[0]}"
        raise BadInput("rows.held_out", f"{len(held_out.ids)} items", rule, "Take them out of one of the two.")
