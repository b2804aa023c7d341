"""A conversation through the tokenizer's chat template: its text, and the parts of the assistant.

The template decides everything, the bos token included. What a row gives it and it does not show (tools, calls,
thoughts, parts of an answer) is refused, for it would be dropped without a word. Where the template ends no answer, the
end-of-sequence token is added. A template that asks for today's date gets that of `data.date`.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bft_ray.errors import BadInput

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TODAY = re.compile(r"""strftime_now\s*\(\s*(['"])(.*?)\1\s*\)""")
_MARK = "\u2603"  # is in no template
_QUESTION = {"role": "user", "content": "?"}
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names that templates have for thoughts
_OURS = (*_THOUGHTS, "weight", "tool_calls")  # of a turn: not handed to the template as they are


@dataclass(frozen=True)
class Span:
    """A supervised run of the rendered text, [start, end), and whether the end-of-sequence token is added behind it."""

    start: int
    end: int
    adds_end: bool = False
    end_token: str = ""  # with which the run ends, where it does


def uses_date(tokenizer: Any) -> bool:
    """Whether the chat template asks for today's date."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None) or "")


def with_thoughts(content: str, thoughts: str) -> str:
    """Thoughts before an answer, where no template has a place for them."""
    return f"<think>\n{thoughts.strip()}\n</think>\n\n{content}"


class Chat:
    """The chat template of a tokenizer.

    Args:
        date: what a template gets as today's.
    """

    def __init__(self, tokenizer: Any, date: datetime.date):
        self.tokenizer, self._date = tokenizer, date

    def _template(self, tools: list[dict] | None) -> str:
        """Its text, in which the date is the given one: a template is handed data alone, no clock."""

        def pinned(call: re.Match) -> str:
            return json.dumps(self._date.strftime(call[2]))

        text = _TODAY.sub(pinned, self.tokenizer.get_chat_template(tools=tools))
        if re.search(r"strftime_now\s*\(", text):
            rule = "plain, because this chat template asks for the date in a way that cannot be pinned"
            raise BadInput("data.template", "chat", rule, "Write its format as a text within strftime_now(...).")
        return text

    # --- what the template is like ------------------------------------------------------------------------

    @functools.cached_property
    def specials(self) -> list[str]:
        """Special tokens, longest first."""
        return sorted({*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}, key=len, reverse=True)

    @functools.cached_property
    def frame(self) -> tuple[str, str]:
        """The text before each answer (where the generation prompt agrees), and after it."""
        bare, asked = self._render([_QUESTION]), self._render([_QUESTION], asks=True)
        answered = self._render([_QUESTION, {"role": "assistant", "content": _MARK}])
        pairs = zip(asked, answered, strict=False)
        same = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return same[len(bare) :], answered.rpartition(_MARK)[2]

    @functools.cached_property
    def end_token(self) -> str:
        """The special token with which the template ends an answer; empty where it does not."""
        try:
            behind = self.frame[1].strip()
        except BadInput:  # it refuses the simplest conversation
            return ""
        return next((token for token in self.specials if behind.startswith(token)), "")

    @functools.cached_property
    def _thoughts_key(self) -> str | None:
        """The name under which the template shows thoughts."""
        for name in _THOUGHTS:
            probe = [_QUESTION, {"role": "assistant", "content": "!", name: _MARK}]
            try:
                if _MARK in self._render(probe):
                    return name
            except BadInput:
                continue
        return None

    @functools.cached_property
    def _prints_objects(self) -> bool:
        """Whether the template prints a call's arguments as Python does: then it wants them as JSON text."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": _MARK}}}
        try:
            return str({"a": _MARK}) in self._render(
                [_QUESTION, {"role": "assistant", "content": "", "tool_calls": [call]}]
            )
        except BadInput:
            return False

    # --- a conversation -----------------------------------------------------------------------------------

    def spans(
        self, turns: Sequence[dict], is_taught: Sequence[bool], tools: list[dict] | None, where: str
    ) -> tuple[str, list[Span]]:
        """The rendered text and its supervised spans.

        Raises:
            BadInput: a conversation that the template refuses, whose answers cannot be found, or of which it shows a
                part only.
        """
        given = [self._shown(turn) for turn in turns]
        if _GENERATION.search(self._template(tools)):
            text, found = self._marked(given, is_taught, tools, where)
        else:
            text, found = self._found(given, is_taught, tools, where)
        self._check_shown(turns, given, is_taught, tools, text, found, where)
        return text, [self._closed(text, start, end) for start, end in found]

    def _shown(self, turn: dict) -> dict:
        """A turn as the template wants it."""
        made = {name: value for name, value in turn.items() if name not in _OURS}
        if turn["role"] == "assistant":
            made["content"] = without_end(made["content"], [self.end_token, self.tokenizer.eos_token])
        if thoughts := turn.get("reasoning_content") or turn.get("reasoning"):
            if self._thoughts_key:
                made[self._thoughts_key] = thoughts
            elif "reasoning_content" not in turn:
                made["content"] = with_thoughts(made["content"], thoughts)
        if turn.get("tool_calls"):
            made["tool_calls"] = [self._call(call) for call in turn["tool_calls"]]
        return made

    def _call(self, call: dict) -> dict:
        if not self._prints_objects or isinstance(call["function"]["arguments"], str):
            return call
        arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def _closed(self, text: str, start: int, end: int) -> Span:
        """A span with its end token: within it, right behind it, or to be added."""
        said = text[start:end]
        token = next((token for token in self.specials if said.rstrip().endswith(token)), "")
        if token:  # white space behind it belongs to the template
            return Span(start, start + len(said.rstrip()), False, token)
        eos = self.tokenizer.eos_token
        if eos and text.startswith(eos, end):  # left outside of the block
            return Span(start, end + len(eos), False, eos)
        return Span(start, start + len(said.rstrip()), True)

    def _render(
        self, turns: Sequence[dict], tools: list[dict] | None = None, where: str = "chat template", asks: bool = False
    ) -> str:
        if not turns:
            return ""
        template = self._template(tools)
        with _guarded(where, template):
            return self.tokenizer.apply_chat_template(
                list(turns), tools=tools, chat_template=template, tokenize=False, add_generation_prompt=asks
            )

    def _marked(
        self, turns: list[dict], is_taught: Sequence[bool], tools: list[dict] | None, where: str
    ) -> tuple[str, list[tuple[int, int]]]:
        """By the template's own `{% generation %}` blocks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._template(tools)
        with _guarded(where, template):
            rendered: Any = render_jinja_template(
                conversations=[turns],
                tools=list(tools) if tools else None,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        [text], [spans] = rendered
        taught = [flag for flag, turn in zip(is_taught, turns, strict=True) if turn["role"] == "assistant"]
        if all(taught):
            return text, spans
        if len(spans) != len(taught):
            raise _unclear(where, "marks not one block for each assistant turn")
        return text, [span for span, flag in zip(spans, taught, strict=True) if flag]

    def _found(
        self, turns: list[dict], is_taught: Sequence[bool], tools: list[dict] | None, where: str
    ) -> tuple[str, list[tuple[int, int]]]:
        """From what the template adds turn by turn."""
        text = self._render(turns, tools, where)
        spans = []
        for index in (index for index, taught in enumerate(is_taught) if taught):
            said = turns[index]["content"].strip()
            start = self._render(turns[:index], tools, where, asks=True)
            end = self._render(turns[: index + 1], tools, where)
            if not start or not text.startswith(start):
                # a reasoning model's template may open a thought in the generation prompt that the answer lacks
                start = self._render(turns[:index], tools, where) + self.frame[0]
            if not text.startswith(end):
                # ... and may take the thought out of an answer, or its empty frame, once another turn follows
                end = start + said + self.frame[1]
            if not start or not text.startswith(start) or not text.startswith(end):
                raise _unclear(where, f"changes turn {index + 1} or earlier text when others follow")
            spans.append((len(start), len(end)))
        return text, spans

    # --- what must show -----------------------------------------------------------------------------------

    def _check_shown(
        self,
        turns: Sequence[dict],
        given: list[dict],
        is_taught: Sequence[bool],
        tools: list[dict] | None,
        text: str,
        found: list[tuple[int, int]],
        where: str,
    ) -> None:
        if tools and _same(lambda: self._render(given, None, where), lambda: self._render(given, tools, where)):
            raise _hidden(where, "tools", "the column `tools`")
        taught = [index for index, flag in enumerate(is_taught) if flag]
        own = dict(zip(taught, found, strict=True)) if len(taught) == len(found) else {}
        for index, (turn, shown) in enumerate(zip(turns, given, strict=True)):
            start, end = own.get(index, (0, len(text)))
            said = _squeeze(text[start:end])
            names = [call["function"]["name"] for call in shown.get("tool_calls", [])]
            if not all(_squeeze(name) in said for name in names):
                raise _hidden(where, f"the call in turn {index + 1}", "the turn")
            # what the generation prompt opens stands before the span: thoughts are looked for in all of the text
            if (thoughts := turn.get("reasoning_content")) and _squeeze(thoughts) not in _squeeze(text):
                raise _hidden(where, f"the thoughts in turn {index + 1}", "`reasoning_content`")
            if is_taught[index] and _squeeze(shown["content"]) not in said:
                raise _unclear(where, f"leaves out a part of turn {index + 1}, such as its thoughts")


def without_end(text: str, tokens: Sequence[str | None]) -> str:
    """A text without the end tokens that it ends with: these are added where they belong, once."""
    while token := next((token for token in tokens if token and text.rstrip().endswith(token)), None):
        text = text.rstrip().removesuffix(token)
    return text


def _same(one: Callable[[], str], other: Callable[[], str]) -> bool:
    try:
        return one() == other()
    except BadInput:  # it cannot do without
        return False


def _squeeze(text: str) -> str:
    return "".join(text.split())


@contextlib.contextmanager
def _guarded(where: str, template: str) -> Iterator[None]:
    """What rendering raises here, as BadInput. Of the error only what cannot hold text of the row is told."""
    import jinja2

    try:
        yield
    except BadInput:
        raise
    except jinja2.TemplateSyntaxError as error:  # no row could be rendered
        remedy = f"Line {error.lineno} of the template: {error.message} It is in chat_template.jinja or tokenizer_config.json."
        raise BadInput(
            "model.path", "a model whose chat template is broken", "one with a valid template", remedy
        ) from None
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        is_safe = said in template or isinstance(error, jinja2.UndefinedError | TypeError)
        told = (
            f"Its message: {said}"
            if is_safe
            else f"It raised {type(error).__name__}, with a message of its own making."
        )
        raise BadInput(where, "refused by the chat template", "a conversation that it accepts", told) from None


def _hidden(where: str, what: str, part: str) -> BadInput:
    rule = f"but the chat template shows nothing of {what}, so it would not be learned"
    remedy = f"Use a model whose template does, or remove {part} from the row."
    return BadInput(where, "a conversation", rule, remedy)


def _unclear(where: str, why: str) -> BadInput:
    remedy = "Put {% generation %} blocks into the template, or set data.template=plain."
    rule = f"but the chat template {why}, so its answers cannot be found"
    return BadInput(where, "a conversation", rule, remedy)
