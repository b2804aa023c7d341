"""What a row is once it has been read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row that passed the checks; exactly one of the three forms is filled.

    Args:
        is_wrong: whether it was given the completion of another row on purpose (`bft_ray.data.wrong`).
    """

    id: str
    where: str
    prompt: str | list[dict] | None = None
    completion: str | list[dict] | None = None
    messages: list[dict] | None = None
    text: str | None = None
    tools: list[dict] | None = None
    group: str | None = None
    is_wrong: bool = False


@dataclass(frozen=True)
class ChoiceRow:
    """One question; `where` is its file and line, `answer` the index of the right choice."""

    id: str
    where: str
    question: str
    choices: tuple[str, ...]
    answer: int
    context: str = ""
    subject: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    where: str
    reason: str


def turns_of(said: str | list[dict] | None, role: str) -> list[dict]:
    """A prompt or completion as turns: of a text the one turn of this role."""
    return [{"role": role, "content": said}] if isinstance(said, str) else said or []
