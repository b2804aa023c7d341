"""A row -> token ids, and which of them are supervised.

A row is rendered into *segments*: runs of text that are either supervised (what an assistant says, with the
token that ends its turn) or not. Segments are tokenised one by one and laid end to end. So the tokens of the
prompt are, by construction, the tokens that the model is given at generation, and no token lies half in the
prompt, half in the answer.

- `chat`: the tokenizer's chat template renders the conversation. The supervised spans come from its
  `{% generation %}` blocks where it has them, else from rendering the conversation turn by turn.
- `plain`: each turn of another role, then a newline; each assistant turn, then the end-of-sequence token. A
  row of prompt and completion becomes: prompt, newline, completion, eos.
- `text` rows: the text and eos, all supervised but the first token.

The bos token goes first where the tokenizer has one and the template did not set it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bft_ray.config import DataConfig
from bft_ray.data.rows import Row
from bft_ray.errors import BadInput

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_NEWLINE = "\n"


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
    rendered = [_segments(row, tokenizer, config) for row in rows]
    tokenised = iter(_tokenise(rendered, tokenizer))
    return [_join([(segment, next(tokenised)) for segment in segments], tokenizer) for segments in rendered]


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


def _join(parts: list[tuple[_Segment, list[int]]], tokenizer: Any) -> Encoded:
    input_ids: list[int] = []
    supervised: list[bool] = []
    for segment, tokens in parts:
        input_ids += [*tokens, *segment.end]
        supervised += [segment.supervised] * (len(tokens) + len(segment.end))
    num_bytes = sum(segment.num_bytes for segment, _ in parts)
    bos = tokenizer.bos_token_id
    if bos is not None and input_ids[:1] != [bos]:
        input_ids.insert(0, bos)
        supervised.insert(0, False)
    elif supervised and supervised[0]:  # nothing stands before it that could predict it
        supervised[0] = False
        num_bytes -= len(_decode(input_ids[:1], tokenizer).encode())
    while supervised and not supervised[-1]:  # what comes after the last supervised token teaches nothing
        supervised.pop()
        input_ids.pop()
    return Encoded(input_ids, supervised, num_bytes)


def _decode(input_ids: list[int], tokenizer: Any) -> str:
    return tokenizer.decode(input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


# --- segments ---------------------------------------------------------------------------------------------


def _segments(row: Row, tokenizer: Any, config: DataConfig) -> list[_Segment]:
    eos = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    if row.text is not None:
        return [_Segment(row.text, True, len(row.text.encode()), eos)]
    turns, is_taught = _turns(row)
    if uses_chat(tokenizer, config):
        return _chat_segments(turns, is_taught, tokenizer, row.where)
    segments = []
    for turn, taught in zip(turns, is_taught, strict=True):
        content = turn.get("content") or ""
        if turn["role"] == "assistant":
            segments.append(_Segment(content, taught, len(content.encode()) if taught else 0, eos))
        else:
            segments.append(_Segment(content + _NEWLINE))
    return segments


def _turns(row: Row) -> tuple[list[dict], list[bool]]:
    """The conversation, and which of its turns carry loss: the assistant's, but none within a prompt."""
    if row.messages is not None:
        return row.messages, [turn["role"] == "assistant" for turn in row.messages]
    prompt = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else row.prompt or []
    completion = row.completion or []
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    return prompt + completion, [False] * len(prompt) + [turn["role"] == "assistant" for turn in completion]


def _chat_segments(turns: list[dict], is_taught: list[bool], tokenizer: Any, where: str) -> list[_Segment]:
    if _GENERATION.search(tokenizer.get_chat_template()):
        text, spans = _marked_spans(turns, is_taught, tokenizer, where)
    else:
        text, spans = _found_spans(turns, is_taught, tokenizer, where)
    specials = sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}, key=len, reverse=True)
    segments: list[_Segment] = []
    done = 0
    for start, end in spans:
        said = text[start:end]
        closing = next((token for token in specials if said.rstrip().endswith(token)), "")
        if closing:  # the turn ends with its end token; white space behind it belongs to the template
            said = said.rstrip()
        elif tokenizer.eos_token and text.startswith(tokenizer.eos_token, end):  # left outside of the block
            said, closing = said + tokenizer.eos_token, tokenizer.eos_token
        segments.append(_Segment(text[done:start]))
        segments.append(_Segment(said, True, len(said.removesuffix(closing).encode())))
        done = start + len(said)
    return [segment for segment in segments if segment.text]


def _marked_spans(turns: list[dict], is_taught: list[bool], tokenizer: Any, where: str):
    """The rendered text and its supervised [start, end) by the template's own `{% generation %}` blocks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render():
        return render_jinja_template(
            conversations=[turns],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )

    [text], [spans] = _guarded(render, where)
    taught = [flag for flag, turn in zip(is_taught, turns, strict=True) if turn["role"] == "assistant"]
    if all(taught):
        return text, spans
    if len(spans) != len(taught):
        raise _unclear(where, "marks not one block for each assistant turn")
    return text, [span for span, flag in zip(spans, taught, strict=True) if flag]


def _found_spans(turns: list[dict], is_taught: list[bool], tokenizer: Any, where: str):
    """The rendered text and its supervised [start, end), from what the template adds turn by turn."""

    def render(turns: list[dict], asks: bool = False) -> str:
        def template() -> str:
            return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=asks)

        return _guarded(template, where) if turns else ""

    text = render(turns)
    spans = []
    for index in (index for index, taught in enumerate(is_taught) if taught):
        said = (turns[index].get("content") or "").strip()
        start = render(turns[:index], asks=True)
        end = render(turns[: index + 1])
        if not start or not text.startswith(start):
            # a reasoning model's template may open a thought in the generation prompt that the answer lacks
            start = render(turns[:index]) + _answer_frame(render)[0]
        if not text.startswith(end):
            # ... and may take the thought out of an answer, or its empty frame, once another turn follows
            end = start + said + _answer_frame(render)[1]
        if not start or not text.startswith(start) or not text.startswith(end):
            raise _unclear(where, f"changes turn {index + 1} or what stands before it as others follow")
        if _squeeze(said) not in _squeeze(text[len(start) : len(end)]):
            raise _unclear(where, f"leaves out a part of turn {index + 1}, such as its thoughts")
        spans.append((len(start), len(end)))
    return text, spans


def _answer_frame(render) -> tuple[str, str]:
    """What the template puts before any answer (where its generation prompt agrees), and behind it."""
    question, answer = [{"role": "user", "content": "?"}], "\u2603"
    bare, asked = render(question), render(question, asks=True)
    answered = render([*question, {"role": "assistant", "content": answer}])
    pairs = zip(asked, answered, strict=False)
    same = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return same[len(bare) :], answered.rpartition(answer)[2]


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _guarded(render, where: str):
    import jinja2

    try:
        return render()
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        rule = "a conversation that it accepts"
        raise BadInput(where, "refused by the chat template", rule, f"It says: {said}") from None


def _unclear(where: str, why: str) -> BadInput:
    remedy = "Put {% generation %} blocks into the template, or set data.template=plain."
    rule = f"but the chat template {why}, so its answers cannot be told"
    return BadInput(where, "a conversation", rule, remedy)


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
