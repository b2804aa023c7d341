"""Values of the columns of a form -> a canonical record. Pure functions; `bft_ray.data.forms` calls them by form.

A turn of a conversation has `role` (system, user, assistant, tool, developer) and `content`, and where given

- `tool_calls` [{type: function, function: {name, arguments}}], `tool_call_id`, `name`,
- `reasoning_content`: thoughts that the chat template must show (`thinking` is the same),
- `reasoning`: thoughts that go before the answer in the template's own way where it has one, else in <think> tags,
- `weight`: 0 leaves an assistant's turn out of what is taught.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bft_ray.data.tables import is_missing, kind_of

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


def _as_json(value: Any) -> Any:
    """A list or an object that a table holds as JSON text; other values as they are."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _text(values: Mapping[str, Any], part: str) -> str:
    value = values.get(part)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise Fault(part, kind_of(value), "text")


def _body(values: Mapping[str, Any], part: str) -> str:
    """Text of a context: plain, a list of paragraphs, or an object of them; also as JSON text."""
    given = values.get(part)
    made = as_text(_as_json(given)) if given is not None else ""
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
    instruction = _text(values, "instruction")
    extra = _text(values, "input") or _body(values, "context")
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return {"prompt": prompt, "completion": _text(values, "output")}


def with_context(values: dict[str, Any]) -> dict[str, Any]:
    """Context, an empty line, question; then the answer. The paragraphs of a context stand on lines of their own."""
    question, context = _text(values, "question"), _body(values, "context")
    prompt = f"{context}\n\n{question}" if context.strip() else question
    return {"prompt": prompt, "completion": _text(values, "answer")}


def reasoned(values: dict[str, Any]) -> dict[str, Any]:
    """A question, and one turn of the assistant that thinks before it answers."""
    answer = {"role": "assistant", "content": _text(values, "completion")}
    thoughts = _text(values, "reasoning")
    return {
        "prompt": _text(values, "prompt"),
        "completion": [answer | ({"reasoning": thoughts} if thoughts.strip() else {})],
    }


def text(values: dict[str, Any]) -> dict[str, Any]:
    """A text."""
    return {"text": _text(values, "text")}


# --- conversations ----------------------------------------------------------------------------------------


def conversation(values: dict[str, Any]) -> dict[str, Any]:
    """System, earlier turns (pairs of a question and its answer), the question with its input, the output.

    The answers of earlier turns are taught as well, as they are where this form comes from.
    """
    turns = _system(values)
    history = _as_json(values.get("history")) or []
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
    given = _as_json(values["messages"])
    if not isinstance(given, list):
        raise Fault("messages", kind_of(given), "a list of messages")
    turns = [turn_of(turn, "messages", f".{index}") for index, turn in enumerate(given)]
    system = _system(values)
    if system and turns and turns[0]["role"] == "system":
        raise Fault("system", "given beside a first turn of the system", "in one of the two places")
    return {"messages": system + turns} | _tools(values)


def _system(values: Mapping[str, Any]) -> list[dict]:
    said = _text(values, "system")
    return [{"role": "system", "content": said}] if said.strip() else []


def _tools(values: Mapping[str, Any]) -> dict[str, Any]:
    """`tools` as a list of {type: function, function}, from a list or its JSON text."""
    given = _as_json(values.get("tools"))
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
    said = _content(turn, part, inner)
    made: dict[str, Any] = {"role": role}
    if who in _CALLS:
        made |= {"content": "", "tool_calls": _calls(_as_json(said), part, inner)}
    else:
        made["content"] = said
    if "thinking" in turn and "reasoning_content" not in turn:
        turn["reasoning_content"] = turn.pop("thinking")
    for flag in ("train", "loss"):  # further names of the weight
        if isinstance(turn.get(flag), bool) and "weight" not in turn:
            turn["weight"] = int(turn.pop(flag))
    if turn.get("tool_calls"):
        turn["tool_calls"] = _calls(_as_json(turn["tool_calls"]), part, f"{inner}.tool_calls")
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
        arguments = _without_missing(_as_json(function.get("arguments", {})))
        kept = {name: call[name] for name in ("id",) if isinstance(call.get(name), str)}
        made.append({"type": "function", **kept, "function": {"name": function["name"], "arguments": arguments}})
    return made


def _without_missing(value: Any) -> Any:
    """Without the nulls that a columnar table puts where another row has a field."""
    if isinstance(value, Mapping):
        return {name: _without_missing(each) for name, each in value.items() if each is not None}
    return [_without_missing(each) for each in value] if isinstance(value, list) else value


# --- choices ----------------------------------------------------------------------------------------------


def index_base(value: Any) -> int | None:
    """The first index of four options, as far as one answer shows it: 0 by a 0, 1 by a 4; letters count as 0."""
    if (number := _number(value)) is None or number <= 0:
        return 0
    return 1 if number >= 4 else None


def choice_by_columns(values: dict[str, Any], base: int) -> dict[str, Any]:
    """Four options in columns of their own; the answer an index from `base`, or a letter."""
    options = [_text(values, f"option_{letter}") for letter in "abcd"]
    answer = _number(values["answer"])
    if answer == -1:
        remedy = "A public test split has no answers: use the validation split."
        raise Fault("answer", -1, "the right option; -1 means that it is not given", remedy)
    at = answer - base if answer is not None else _letter(values["answer"], 4)
    return _choice(values, options, at)


def choice(values: dict[str, Any]) -> dict[str, Any]:
    """Options as a list, by label ({A: ...}, or {text: [...], label: [...]}, or [{label, text}]); the answer as a label,
    an index from 0, or the text of the option.
    """
    options, labels = _options(_as_json(values["choices"]))
    given = values["answer"]
    said = given.strip() if isinstance(given, str) else given
    by_label = [index for index, label in enumerate(labels) if str(said).casefold() == label.casefold()]
    by_text = [index for index, option in enumerate(options) if isinstance(said, str) and option.strip() == said]
    found = by_label or by_text
    if not labels:
        number, letter = _number(said), _letter(said, len(options))
        found = by_text or [index for index in (number, letter) if index is not None]
        if by_text and letter is not None and letter not in by_text:
            raise Fault("answer", "a letter and the text of another option", "one of the two", "Give the index.")
        if by_text and number is not None and 0 <= number < len(options) and number not in by_text:
            remedy = "Give the letter of the right option: A for the first."
            raise Fault("answer", "an index and the text of another option", "one of the two", remedy)
    if not found and isinstance(said, str) and said and _number(said) is None and len(said) > 1:
        rule = "the right option: its letter or label, its index from 0, or its text, the same as in the options"
        remedy = "Compare the two letter by letter, or give the index."
        raise Fault("answer", f"a text that is none of the {len(options)} options", rule, remedy)
    made = _choice(values, options, found[0] if found else None)
    stated = values.get("stated")
    if isinstance(stated, str) and stated.strip() not in ("", options[made["answer"]].strip(), str(said)):
        remedy = "Correct the one that is wrong, or remove the column."
        raise Fault("stated", "another text than the option that the answer names", "the text of that option", remedy)
    return made


def arc(values: dict[str, Any]) -> dict[str, Any]:
    """The same, where the question may be {stem, choices}."""
    question = _as_json(values["question"])
    if isinstance(question, Mapping):
        values = {**values, "question": question.get("stem"), "choices": question.get("choices", values.get("choices"))}
    return choice({"choices": None, **values})


def _options(given: Any) -> tuple[list[str], list[str]]:
    """(texts, labels); no labels where the options are a plain list."""
    if isinstance(given, Mapping) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):
        given = [{"label": a, "text": b} for a, b in zip(given["label"], given["text"], strict=False)]
    elif isinstance(given, Mapping):
        given = [{"label": name, "text": value} for name, value in given.items() if value is not None]
    if not isinstance(given, list) or len(given) < 2:
        value = f"a list of {len(given)}" if isinstance(given, list) else kind_of(given)
        raise Fault("choices", value, "a list of at least 2 options")
    labels = [_first(option, "label", "key", "id") for option in given if isinstance(option, Mapping)]
    texts = [_first(option, "text", "value", "content") if isinstance(option, Mapping) else option for option in given]
    for index, option in enumerate(texts):
        if not isinstance(option, str) or not option.strip():
            raise Fault("choices", _kind(option), "text that is not empty", inner=f".{index}")
    return texts, [str(label) for label in labels] if len(labels) == len(texts) else []


def _first(option: Mapping[str, Any], *names: str) -> Any:
    return next((option[name] for name in names if name in option), None)


def _choice(values: Mapping[str, Any], options: list[str], answer: int | None) -> dict[str, Any]:
    question = values["question"]
    if not isinstance(question, str) or not question.strip():
        raise Fault("question", _kind(question), "text that is not empty")
    for index, option in enumerate(options):
        if not option.strip():
            raise Fault("choices", "empty", "text that is not empty", inner=f".{index}")
    if answer is None or not 0 <= answer < len(options):
        given = values["answer"]
        raise Fault(
            "answer",
            given if isinstance(given, int) else _kind(given),
            f"the index of the right option, 0 to {len(options) - 1}",
            "Indices count from 0: write 0 for option A, 1 for B. A letter or the option's text will do as well.",
        )
    made: dict[str, Any] = {"question": question, "choices": options, "answer": answer}
    if context := _body(values, "context"):
        made["context"] = context
    if subject := values.get("subject"):
        if not isinstance(subject, str):
            raise Fault("subject", _kind(subject), "text, or left out")
        made["subject"] = subject
    return made


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        return int(value) if value.strip().lstrip("-").isdigit() else None
    return int(value) if isinstance(value, int | float) and value == int(value) else None


def _letter(value: Any, num: int) -> int | None:
    said = value.strip().strip("().").upper() if isinstance(value, str) else ""
    return ord(said) - ord("A") if len(said) == 1 and "A" <= said < chr(ord("A") + num) else None


def _kind(value: Any) -> str:
    """What a value is, without quoting it."""
    if value is None:
        return "missing"
    return "empty" if isinstance(value, str) and not value.strip() else kind_of(value)
