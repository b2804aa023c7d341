"""Values of the columns of a form -> a canonical record. Pure functions; `bft_ray.data.forms` calls them by form.

A turn of a conversation has `role` (system, user, assistant, tool, developer) and `content`, and where given

- `tool_calls` [{type: function, function: {name, arguments}}], `tool_call_id`, `name`,
- `reasoning_content`: thoughts that the chat template must show (`thinking` is the same),
- `reasoning`: thoughts that go before the answer in the template's own way where it has one, else in <think> tags,
- `weight`: 0 leaves an assistant's turn out of what is taught.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from bft_ray.data.values import is_missing, kind_of

_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "question": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "answer": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALLS = ("function_call", "tool_call")  # roles whose text is a call
_ROLE_NAME = re.compile(r"[\w-]{1,30}")  # templates know more than those above
_ROLE, _SAID = ("role", "from", "speaker"), ("content", "value", "text")
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "reasoning", "weight")
_ABOUT = ("id", "timestamp", "time", "date", "model", "language", "lang", "index", "turn", "masked", "score", "hash")


class Fault(Exception):
    """What is wrong with a part of a row; `inner` is the place within it (`.0.content`)."""

    def __init__(self, part: str, received: Any, rule: str, remedy: str = "", inner: str = ""):
        self.part, self.received, self.rule, self.remedy, self.inner = part, received, rule, remedy, inner
        super().__init__(part)


def as_text(value: Any) -> str | None:
    """Text of a text, a number, a list of text, or an object that holds such a list (`contexts`); None of others."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping):
        inside = [value[name] for name in ("contexts", "text", "context") if name in value]
        return as_text(inside[0]) if inside else None
    if isinstance(value, list | tuple):
        parts = [as_text(each) for each in value]
        return None if None in parts else "\n".join(parts)  # type: ignore[arg-type]
    return None


def from_json(value: Any) -> Any:
    """A list or an object that a table holds as JSON text; other values as they are."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def text_of(values: Mapping[str, Any], part: str) -> str:
    """The text of a part, "" where there is none. Raises Fault for anything else."""
    value = values.get(part)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise Fault(part, kind_of(value), "text")


def body_of(values: Mapping[str, Any], part: str) -> str:
    """Text of a context: plain, a list of paragraphs, or an object of them; also as JSON text."""
    given = values.get(part)
    made = as_text(from_json(given)) if given is not None else ""
    if made is None and isinstance(given, str):
        return given
    if made is None:
        raise Fault(part, kind_of(given), "text, a list of text, or an object with a list `contexts`")
    return made


# --- prompt and completion --------------------------------------------------------------------------------


def pair(values: dict[str, Any]) -> dict[str, Any]:
    """Prompt and completion, each a text or a list of messages."""
    made: dict[str, Any] = {}
    for part in ("prompt", "completion"):
        value = values[part]
        if isinstance(value, list):
            made[part] = [turn_of(turn, part, f".{index}") for index, turn in enumerate(value)]
        elif isinstance(value, str):
            made[part] = value
        else:
            raise Fault(part, kind_of(value), "text or a list of messages")
    return made | _tools(values)


def instructed(values: dict[str, Any]) -> dict[str, Any]:
    """Instruction, an empty line, and its input or context where there is one; then the output."""
    instruction = text_of(values, "instruction")
    extra = text_of(values, "input") or body_of(values, "context")
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return {"prompt": prompt, "completion": text_of(values, "output")}


def with_context(values: dict[str, Any]) -> dict[str, Any]:
    """Context, an empty line, question; then the answer. The paragraphs of a context stand on lines of their own."""
    question, context = text_of(values, "question"), body_of(values, "context")
    prompt = f"{context}\n\n{question}" if context.strip() else question
    return {"prompt": prompt, "completion": text_of(values, "answer")}


def reasoned(values: dict[str, Any]) -> dict[str, Any]:
    """A question, and one turn of the assistant that thinks before it answers."""
    answer = {"role": "assistant", "content": text_of(values, "completion")}
    thoughts = text_of(values, "reasoning")
    return {
        "prompt": text_of(values, "prompt"),
        "completion": [answer | ({"reasoning": thoughts} if thoughts.strip() else {})],
    }


def text(values: dict[str, Any]) -> dict[str, Any]:
    """A text."""
    return {"text": text_of(values, "text")}


# --- conversations ----------------------------------------------------------------------------------------


def conversation(values: dict[str, Any]) -> dict[str, Any]:
    """System, earlier turns (pairs of a question and its answer), the question with its input, the output.

    The answers of earlier turns are taught as well, as they are where this form comes from.
    """
    turns = _system(values)
    history = from_json(values.get("history")) or []
    if not isinstance(history, list):
        raise Fault("history", kind_of(history), "a list of pairs of a question and its answer")
    for index, earlier in enumerate(history):
        if not isinstance(earlier, list | tuple) or len(earlier) != 2 or not all(isinstance(e, str) for e in earlier):
            raise Fault("history", kind_of(earlier), "a pair of a question and its answer", inner=f".{index}")
        turns += [{"role": "user", "content": earlier[0]}, {"role": "assistant", "content": earlier[1]}]
    asked = instructed(values)
    turns += [{"role": "user", "content": asked["prompt"]}, {"role": "assistant", "content": asked["completion"]}]
    return {"messages": turns}


def messages(values: dict[str, Any]) -> dict[str, Any]:
    """Turns of any common spelling, after a system column where there is one; and the tools."""
    given = from_json(values["messages"])
    if not isinstance(given, list):
        raise Fault("messages", kind_of(given), "a list of messages")
    turns = [turn_of(turn, "messages", f".{index}") for index, turn in enumerate(given)]
    system = _system(values)
    if system and turns and turns[0]["role"] == "system":
        raise Fault("system", "given beside a first turn of the system", "in one of the two places")
    return {"messages": system + turns} | _tools(values)


def _system(values: Mapping[str, Any]) -> list[dict]:
    said = text_of(values, "system")
    return [{"role": "system", "content": said}] if said.strip() else []


def _tools(values: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` as a list of {type: function, function}, from a list or its JSON text."""
    given = from_json(values.get("tools"))
    if given is None or given == [] or (isinstance(given, str) and not given.strip()):
        return {}
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise Fault("tools", kind_of(given), "a list of tools, each an object")
    wrapped = [
        tool if "function" in tool or "type" in tool else {"type": "function", "function": tool} for tool in given
    ]
    return {"tools": [_without_missing(tool) for tool in wrapped]}


def turn_of(turn: Any, part: str, inner: str) -> dict[str, Any]:
    """One turn in canonical spelling."""
    if not isinstance(turn, Mapping):
        raise Fault(part, kind_of(turn), "an object of role and content", inner=inner)
    turn = {name: value for name, value in turn.items() if not is_missing(value)}
    who = next((turn[name] for name in _ROLE if isinstance(turn.get(name), str)), None)
    if who is None:
        raise Fault(part, kind_of(turn), "an object of role and content", inner=inner)
    role = _ROLES.get(who.strip().lower(), who)
    if not _ROLE_NAME.fullmatch(role):
        raise Fault(part, "no name of a role", "one word, such as user or assistant", inner=f"{inner}.role")
    said = _content(turn, part, inner)
    made: dict[str, Any] = {"role": role}
    if who in _CALLS:
        made |= {"content": "", "tool_calls": _calls(from_json(said), part, inner)}
    else:
        made["content"] = said
    if "thinking" in turn and "reasoning_content" not in turn:
        turn["reasoning_content"] = turn.pop("thinking")
    for flag in ("train", "loss"):  # further names of the weight
        if isinstance(turn.get(flag), bool) and "weight" not in turn:
            turn["weight"] = int(turn.pop(flag))
    if turn.get("tool_calls"):
        turn["tool_calls"] = _calls(from_json(turn["tool_calls"]), part, f"{inner}.tool_calls")
    if turn.get("weight", 1) not in (0, 1):
        raise Fault(part, kind_of(turn["weight"]), "0 (not taught) or 1", inner=f"{inner}.weight")
    for name, value in turn.items():
        if name in _KEPT and value not in ("", []):
            made[name] = value
        elif name not in (*_ROLE, *_SAID, *_KEPT, *_ABOUT) and value not in ("", [], {}):
            remedy = "Take it out of the turn, or put it into the content."
            raise Fault(part, "a field that no chat template knows", "left out", remedy, f"{inner}.{name}")
    return made


def _content(turn: Mapping[str, Any], part: str, inner: str) -> str:
    name = next((name for name in _SAID if name in turn), None)
    if name is None:
        if turn.get("tool_calls"):
            return ""
        raise Fault(part, "missing", "text", inner=f"{inner}.content")
    said = turn[name]
    if isinstance(said, list):  # parts, of which a text model reads those of text
        if all(isinstance(piece, Mapping) and isinstance(piece.get("text"), str) for piece in said):
            return "".join(piece["text"] for piece in said)
        raise Fault(part, "a list with other parts than text", "text", inner=f"{inner}.{name}")
    if not isinstance(said, str):
        raise Fault(part, kind_of(said), "text", inner=f"{inner}.{name}")
    return said


def _calls(given: Any, part: str, inner: str) -> list[dict]:
    """Calls as {type: function, function: {name, arguments}}, the arguments as an object where their text is JSON."""
    calls = given if isinstance(given, list) else [given]
    made = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Fault(part, kind_of(call), "a call: an object of name and arguments", inner=inner)
        arguments = _without_missing(from_json(function.get("arguments", {})))
        kept = {name: call[name] for name in ("id",) if isinstance(call.get(name), str)}
        made.append({"type": "function", **kept, "function": {"name": function["name"], "arguments": arguments}})
    return made


def _without_missing(value: Any) -> Any:
    """Without the nulls that a columnar table puts where another row has a field."""
    if isinstance(value, Mapping):
        return {name: _without_missing(each) for name, each in value.items() if each is not None}
    return [_without_missing(each) for each in value] if isinstance(value, list) else value
