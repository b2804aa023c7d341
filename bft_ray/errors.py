"""The errors that a user sees: field, received value, rule, remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_PATH = re.compile(r"(/|~|\.{1,2}/|\w+://)[^\s?@]{0,4096}")  # an address with `?` or `@` may hold a secret


class BftError(Exception):
    """Base of all errors that bft-ray raises on purpose; the command line prints them without a traceback."""


class BadInput(BftError, ValueError):
    """Input that breaks a rule.

    The text reads "`field` is value, but must be rule. Remedy."

    Args:
        field: dotted name of the config field, or the file (with its line) at fault.
        value: what was received; shortened, so that no sample text leaks into a log.
        rule: what it must be, to follow "but must be" (or a whole clause if it begins with "but").
        remedy: what to do about it, one sentence.
    """

    def __init__(self, field: str, value: Any, rule: str, remedy: str = ""):
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy
        clause = rule if rule.startswith("but ") else f"but must be {rule}"
        super().__init__(f"`{field}` is {_short(value)}, {clause}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self):  # crosses process boundaries (Ray pickles what a worker raises)
        return type(self), (self.field, self.value, self.rule, self.remedy)


class NoRoom(BadInput):
    """The cluster has no room for the workers now: others use it, or nodes are gone. Later there may be room again."""


class DiskFull(BftError):
    """A disk has no room for what was to be written. Nothing is wrong with the run: with more room, it can be resumed."""


class BadConfig(BftError, ValueError):
    """All problems of one configuration at once, so that a user can correct them together."""

    def __init__(self, source: str, problems: list[str]):
        self.source, self.problems = source, problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"{source} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n{lines}")

    def __reduce__(self):
        return type(self), (self.source, self.problems)


class NonFinite(BftError, ArithmeticError):
    """A loss or gradient was NaN or infinite; the optimizer has not moved.

    Args:
        step: the step, counted from 0.
        what: "loss" or "gradient".
        sample_ids: ids of the samples of the micro-batches at fault (empty where they are not known).
    """

    def __init__(self, step: int, what: str, sample_ids: list[str]):
        self.step, self.what, self.sample_ids = step, what, list(sample_ids)
        shown = ", ".join(self.sample_ids[:32]) + (" ..." if len(self.sample_ids) > 32 else "")
        where = f" in the micro-batch of samples {shown}" if shown else ""
        super().__init__(
            f"the {what} of step {step} is not finite{where}. No rank has moved its weights. "
            "Check these samples, lower optimizer.learning_rate, or use model.dtype=fp32."
        )

    def __reduce__(self):
        return type(self), (self.step, self.what, self.sample_ids)


def first_line(error: BaseException, limit: int = 160) -> str:
    """The message of an error, in one line without its full stop; its type where it has no message.

    Of a text that holds a traceback (Ray's client passes on the server's), the last line, which is the error.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    traced = any("Traceback (most recent call last)" in line for line in lines)
    return lines[-1 if traced else 0][:limit].rstrip(".: ")


def did_you_mean(name: str, known: Iterable[str], places: Mapping[str, str] | None = None, cutoff: float = 0.6) -> str:
    """A sentence with the nearest of the known names; "" where none is near.

    Args:
        places: what to show for a known name; itself where there is none.
        cutoff: how near, from 0 to 1 (`difflib`).
    """
    places = places or {}
    near = difflib.get_close_matches(name, [each for each in known if places.get(each, each) != name], 1, cutoff)
    return f"Did you mean `{places.get(near[0], near[0])}`?" if near else ""


def enumerate_names(names: Iterable[str], most: int = 30) -> str:
    """Names as a list in a sentence: of a table of genes there may be thousands."""
    given = list(names)
    more = f" and {len(given) - most:,} more" if len(given) > most else ""
    return ", ".join(given[:most]) + more


def _short(value: Any, limit: int = 80) -> str:
    """The two ends of a value, so that little of a text is shown; a path is shown whole, so that it can be found."""
    text = repr(str(value) if isinstance(value, Path) else value)
    if isinstance(value, Path) or (isinstance(value, str) and _PATH.fullmatch(value)):
        return text
    end = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[: limit - 3 - end]}...{text[-end:]}"
