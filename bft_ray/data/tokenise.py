"""A row -> token ids, and which of them are supervised.

A row is rendered into *segments*: runs of text that are either supervised (what an assistant says, with the
token that ends its turn) or not. Segments are tokenised one by one and laid end to end. So the tokens of the
prompt are, by construction, the tokens that the model is given at generation, and no token is half in the
prompt, half in the answer.

- `chat`: the tokenizer's chat template renders the conversation and its tools (`bft_ray.data.chat`). The supervised
  spans come from its `{% generation %}` blocks where it has them, else from rendering the conversation turn by turn.
- `plain`: each turn of another role, then a newline; each assistant turn, then the end-of-sequence token. A
  row of prompt and completion becomes: prompt, newline, completion, eos.
- `text` rows: the text and eos, all supervised but the first token.

The bos token is where the model's own tokenizer puts one: plain and text rows begin as `tokenizer(text)` does, and in
chat the template decides. Training, scoring and generation all come here, so they follow one rule.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bft_ray.config import DataConfig
from bft_ray.data.chat import Chat, uses_date, with_thoughts, without_end
from bft_ray.data.record import Row, turns_of
from bft_ray.errors import BadInput

_NEWLINE = "\n"

#: fields of `data` that decide, with tokenizer and rows, which tokens a row becomes
TOKENISING = ("template", "max_length", "too_long", "date")


@dataclass(frozen=True)
class Encoded:
    """Tokens of one sample; position 0 is never supervised, the last one always is (if any is).

    num_bytes: UTF-8 bytes of the supervised text, special tokens not counted.
    """

    input_ids: list[int]
    supervised: list[bool]
    num_bytes: int


@dataclass(frozen=True)
class _Segment:
    text: str
    supervised: bool = False
    num_bytes: int = 0  # of its supervised text
    end: tuple[int, ...] = ()  # token ids that follow the text


def encode(row: Row, tokenizer: Any, config: DataConfig) -> Encoded:
    """Tokens of one row, of whatever length: see `shorten` for `max_length`.

    Raises:
        BadInput: `chat` without a chat template, or a conversation that the template refuses.
    """
    return encode_batch([row], tokenizer, config)[0]


def encode_batch(rows: Sequence[Row], tokenizer: Any, config: DataConfig) -> list[Encoded]:
    """`encode` for many rows by one call of the tokenizer, which is what makes it fast."""
    chat = Chat(tokenizer, date_of(config)) if uses_chat(tokenizer, config) else None
    head = first_tokens(tokenizer)
    rendered = [_segments(row, chat, tokenizer) for row in rows]
    tokenised = iter(_tokenise(rendered, tokenizer))
    return [
        _join(
            [(segment, next(tokenised)) for segment in segments],
            tokenizer,
            head if chat is None or row.text is not None else [],  # in chat the template decides
        )
        for row, segments in zip(rows, rendered, strict=True)
    ]


def first_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: its bos token, or nothing."""
    whole, bare = tokenizer(["a"])["input_ids"][0], tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
    return whole[: starts[0]] if starts and bare else []


def date_of(config: DataConfig) -> datetime.date:
    """What a chat template gets as today's date."""
    return datetime.date.fromisoformat(config.date) if config.date else datetime.date.today()


def with_date(config: DataConfig, tokenizer: Any, first: str | None = None) -> DataConfig:
    """The same settings, with the date pinned where the chat template shows it.

    Args:
        first: the date of the first start, where this is not the first; else it is today's.
    """
    if config.date or not (uses_chat(tokenizer, config) and uses_date(tokenizer)):
        return config
    return config.model_copy(update={"date": first or datetime.date.today().isoformat()})


def notes_of(tokenizer: Any, config: DataConfig) -> list[str]:
    """What users should know of how their rows become tokens."""
    if not uses_chat(tokenizer, config):
        return []
    chat, notes = Chat(tokenizer, date_of(config)), []
    if not chat.end_token:
        notes.append(f"the chat template does not end an answer: {tokenizer.eos_token} is added after each one taught")
    if uses_date(tokenizer):
        notes.append(f"the chat template shows the date: {date_of(config)} (data.date)")
    return notes


def shorten(encoded: Encoded, max_length: int, tokenizer: Any) -> Encoded:
    """The first `max_length` tokens; the bytes are those of the supervised text that is left."""
    if len(encoded.input_ids) <= max_length:
        return encoded
    input_ids, supervised = encoded.input_ids[:max_length], encoded.supervised[:max_length]
    text = _decode([token for token, taught in zip(input_ids, supervised, strict=True) if taught], tokenizer)
    whole = text.rstrip("\ufffd")  # a character may be cut in two
    return Encoded(input_ids, supervised, len(whole.encode()))


def uses_chat(tokenizer: Any, config: DataConfig) -> bool:
    """Whether rows go through the tokenizer's chat template; BadInput when they must and it has none."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if config.template == "chat" and not has_template:
        raise BadInput("data.template", "chat", "plain or auto, because this tokenizer has no chat template")
    return has_template and config.template != "plain"


# --- tokens -----------------------------------------------------------------------------------------------


def _tokenise(rendered: list[list[_Segment]], tokenizer: Any) -> list[list[int]]:
    # Tokenizers in the manner of Llama 2 put a space before every text. Within a sample there is none: such a
    # tokenizer is shown a newline before the segment, whose tokens are taken off again.
    newline, letter, both = tokenizer([_NEWLINE, "a", _NEWLINE + "a"], add_special_tokens=False)["input_ids"]
    can_lead = both != newline + letter and both[: len(newline)] == newline
    lead = _NEWLINE if can_lead else ""
    texts = [(lead if index else "") + segment.text for segments in rendered for index, segment in enumerate(segments)]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    tokens = encoded["input_ids"]
    if not lead:
        return tokens
    starts = [index > 0 for segments in rendered for index in range(len(segments))]
    return [ids[len(newline) :] if later else ids for ids, later in zip(tokens, starts, strict=True)]


def _join(parts: list[tuple[_Segment, list[int]]], tokenizer: Any, head: list[int]) -> Encoded:
    input_ids: list[int] = []
    supervised: list[bool] = []
    for segment, tokens in parts:
        input_ids += [*tokens, *segment.end]
        supervised += [segment.supervised] * (len(tokens) + len(segment.end))
    num_bytes = sum(segment.num_bytes for segment, _ in parts)
    if head and input_ids[: len(head)] != head:
        input_ids, supervised = head + input_ids, [False] * len(head) + supervised
    elif supervised and supervised[0]:  # no earlier token could predict it
        supervised[0] = False
        num_bytes -= len(_decode(input_ids[:1], tokenizer).encode())
    while supervised and not supervised[-1]:  # what comes after the last supervised token teaches nothing
        supervised.pop()
        input_ids.pop()
    return Encoded(input_ids, supervised, num_bytes)


def _decode(input_ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# --- segments ---------------------------------------------------------------------------------------------


def _segments(row: Row, chat: Chat | None, tokenizer: Any) -> list[_Segment]:
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if row.text is not None:
        text = without_end(row.text, [tokenizer.eos_token])
        return [_Segment(text, True, len(text.encode()), eos)]
    turns, is_taught = _turns(row)
    if chat is not None:
        return _chat_segments(row, turns, is_taught, chat, eos)
    segments = []
    for index, (turn, taught) in enumerate(zip(turns, is_taught, strict=True), 1):
        content = _plain_content(row, turn, index)
        if turn["role"] == "assistant":
            content = without_end(content, [tokenizer.eos_token])
            segments.append(_Segment(content, taught, len(content.encode()) if taught else 0, eos))
        else:
            segments.append(_Segment(content + _NEWLINE))
    return segments


def _turns(row: Row) -> tuple[list[dict], list[bool]]:
    """The conversation, and which of its turns carry loss: the assistant's, but none within a prompt and none of weight
    0.
    """
    prompt = turns_of(row.prompt, "user")
    completion = row.messages if row.messages is not None else turns_of(row.completion, "assistant")
    taught = [turn["role"] == "assistant" and bool(turn.get("weight", 1)) for turn in completion]
    return prompt + completion, [False] * len(prompt) + taught


def _plain_content(row: Row, turn: dict, number: int) -> str:
    """The text of a turn where no template is used."""
    for name, what in (("tool_calls", "a call"), ("reasoning_content", "thoughts")):
        if turn.get(name):
            raise _not_plain(row, f"{what} in turn {number}")
    if row.tools:
        raise _not_plain(row, "tools")
    content = turn.get("content") or ""
    return with_thoughts(content, turn["reasoning"]) if turn.get("reasoning") else content


def _not_plain(row: Row, what: str) -> BadInput:
    remedy = "Use a model that has one and set data.template=chat, or remove them from the row."
    return BadInput(row.where, what, "left out without a chat template, which they need", remedy)


def _chat_segments(
    row: Row, turns: list[dict], is_taught: list[bool], chat: Chat, eos: tuple[int, ...]
) -> list[_Segment]:
    text, spans = chat.spans(turns, is_taught, row.tools, row.where)
    segments: list[_Segment] = []
    done = 0
    for span in spans:
        said = text[span.start : span.end]
        num_bytes = len(said.removesuffix(span.end_token).encode())
        segments.append(_Segment(text[done : span.start]))
        segments.append(_Segment(said, True, num_bytes, eos if span.adds_end else ()))
        done = span.end
    return [segment for segment in segments if segment.text or segment.end]


def tokenizer_content(tokenizer: Any) -> str:
    """All that decides how this tokenizer encodes, as text: for the cache key."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core = {
            **json.loads(backend.to_str()),
            "padding": None,
            "truncation": None,
        }  # these a call may change
    else:
        core = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    parts = {"core": core, "chat_template": tokenizer.chat_template, "special": tokenizer.special_tokens_map}
    return json.dumps(parts, sort_keys=True, default=str)
