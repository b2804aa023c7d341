"""A question and its options -> tokens, by the same rule as training samples.

The option is in the place of a completion: prompt and option are tokenised apart, and the token that ends a turn is
not scored. So the tokens of the prompt are the same for all options of a question, and are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bft_ray.config import DataConfig
from bft_ray.data.rows import Row
from bft_ray.data.tokenise import Encoded, encode_batch
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Score


@dataclass(frozen=True)
class Question:
    """A prompt and what may follow it.

    Args:
        where: file and line, for errors.
    """

    id: str
    where: str
    prompt: str
    options: tuple[str, ...]


def encode_options(questions: Sequence[Question], tokenizer: Any, config: DataConfig) -> tuple[Score, int]:
    """The options as token sequences of at most `config.max_length` with their prompt, one continuation an option in order;
    and the number of questions whose prompt was shortened.

    A prompt that is too long loses its beginning (the same for all options of a question), never the option.

    Raises:
        BadInput: an option that alone exceeds `max_length`, or one without a token.
    """
    rows = [Row(each.id, each.where, each.prompt, option) for each in questions for option in each.options]
    closing = closing_tokens(tokenizer)
    encoded = iter(encode_batch(rows, tokenizer, config))
    request = Score([], [], [])
    num_truncated = 0
    for question in questions:
        parts = [split(next(encoded), closing) for _ in question.options]
        longest = max(len(option) for _, option in parts)
        if min(len(option) for _, option in parts) == 0:
            raise BadInput(f"{question.where} choices", "an option without tokens", "made of text")
        if longest >= config.max_length:
            raise BadInput(
                f"{question.where} choices",
                f"an option of {longest} tokens",
                f"shorter than data.max_length ({config.max_length})",
                "Raise data.max_length, or take the item out.",
            )
        room = config.max_length - longest
        num_truncated += any(len(prompt) > room for prompt, _ in parts)
        last: list[int] = []
        for prompt, option in parts:
            prompt = _last(prompt, room, tokenizer.bos_token_id)
            if prompt != last:  # as a rule once a question; a chat template may look at the answer
                request.ids.append(question.id)
                request.prompts.append(np.array(prompt, dtype=np.int32))
                request.continuations.append([])
                last = prompt
            request.continuations[-1].append(np.array(option, dtype=np.int32))
    return request, num_truncated


def closing_tokens(tokenizer: Any) -> set[int]:
    """Tokens that may end a turn."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} - {tokenizer.unk_token_id}


def split(encoded: Encoded, closing: set[int]) -> tuple[list[int], list[int]]:
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
