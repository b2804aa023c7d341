"""The errors that a user meets: which field, what was received, the rule, the remedy."""

from __future__ import annotations

import re
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
    """The cluster has no room for the workers at the moment: others have it, or nodes are gone. It may come back."""


class DiskFull(BftError):
    """A disk has no room for what was to be written. Nothing is wrong with what ran: with room, it goes on."""


class BadConfig(BftError, ValueError):
    """All problems of one configuration at once, so that they can be mended in one go."""

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
        sample_ids: ids of the samples of the micro-batches at fault (empty where they cannot be told).
    """

    def __init__(self, step: int, what: str, sample_ids: list[str]):
        self.step, self.what, self.sample_ids = step, what, list(sample_ids)
        shown = ", ".join(self.sample_ids[:32]) + (" ..." if len(self.sample_ids) > 32 else "")
        where = f" in the micro-batch of samples {shown}" if shown else ""
        super().__init__(
            f"the {what} of step {step} is not finite{where}. No rank has moved its weights. "
            "Look at these samples, lower optimizer.learning_rate, or use model.dtype=fp32."
        )

    def __reduce__(self):
        return type(self), (self.step, self.what, self.sample_ids)


def first_line(error: BaseException, limit: int = 160) -> str:
    """What an error says, in one line without its full stop: its type where it says nothing.

    Of a text that holds a traceback (Ray's client hands over the server's), the line that ends it, which is what was raised.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    traced = any("Traceback (most recent call last)" in line for line in lines)
    return lines[-1 if traced else 0][:limit].rstrip(".: ")


def _short(value: Any, limit: int = 80) -> str:
    """No more of a value than its two ends, so that little is shown of a text; a path is shown whole, to be found again."""
    text = repr(str(value) if isinstance(value, Path) else value)
    if isinstance(value, Path) or (isinstance(value, str) and _PATH.fullmatch(value)):
        return text
    end = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[: limit - 3 - end]}...{text[-end:]}"
