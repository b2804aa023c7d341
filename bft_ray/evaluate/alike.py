"""Whether two evaluations measured the same items, in the same way and units: what of them must not be compared, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bft_ray.config.tasks.base import RowsTask, TaskBase

#: what belongs to an item, whatever the model; evaluations of earlier versions have no `content`
_OWN = ("content", "answer", "label")
_PER_TOKEN = ("nll", "perplexity", "token_accuracy")
#: fields of a task that change nothing of what an item gets: where its rows come from (`content` tells them apart), and by what way
_WAYS = {*RowsTask.model_fields, "cache", "consent", "max_requests"}
_WAYS_WITHIN = {"engine", "url", "api_key_env", "concurrency", "retries", "timeout_s"}
_LENGTH = "data.max_length"  # matters where prompts are cut


def settings_of(task: TaskBase | None, max_length: int) -> dict[str, Any]:
    """How a set is measured, by the dotted field: what has to be the same where two models are compared.

    Args:
        task: None: the validation rows.
        max_length: longest sample, in tokens.
    """
    fields = task.model_dump(mode="json", exclude=_WAYS) if task is not None else {}
    return {_LENGTH: max_length} | dict(_leaves(fields))


def _leaves(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(index): each for index, each in enumerate(value)}
        if isinstance(value, dict):
            yield from _leaves(value, f"{before}{name}.")
        elif name not in _WAYS_WITHIN:
            yield f"{before}{name}", value


def measured_otherwise(name: str, before: Mapping[str, Any], after: Mapping[str, Any], is_cut: bool) -> dict[str, str]:
    """As `unlike`, by the settings of a set; nothing is said of one whose settings are not known.

    Args:
        is_cut: whether prompts were cut in one of the two.
    """
    if not before or not after:
        return {}
    fields = [each for each in dict.fromkeys([*before, *after]) if before.get(each) != after.get(each)]
    if not (fields := [each for each in fields if each != _LENGTH or is_cut]):
        return {}
    first = f"{fields[0]} was {_short(before.get(fields[0]))} and is {_short(after.get(fields[0]))}"
    more = f" (also: {', '.join(fields[1:])})" if fields[1:] else ""
    return {"*": f"{name} is not compared: {first}{more}. Measure both models with the same settings"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def unlike(name: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Metric of a set, or "*" for all of them -> why its two values are not of the same thing.

    An id is often the place of a row in a file, which stays when the row is another one. So the content and right answer of an
    id must be the same. Where the tokens of an id differ in number, means over tokens have other units.

    Args:
        before, after: records of the set.
    """
    old = {record["id"]: record for record in before}
    both = [(old[record["id"]], record) for record in after if record["id"] in old]
    if moved := _num_different(both, _OWN):
        return {
            "*": f"{name} is not compared: {moved} of {len(both)} items have another text or right answer under the same id, "
            "so they are other rows. Measure both models on the same file"
        }
    if not _num_different(both, ("num_tokens",)):
        return {}
    reason = (
        f"{', '.join(_PER_TOKEN)} of {name} are not compared: they are means over tokens, and the same items have other "
        "numbers of tokens, as with another tokenizer or template, or in rows that were changed"
    )
    return dict.fromkeys(_PER_TOKEN, reason)


def _num_different(both: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], columns: Sequence[str]) -> int:
    return sum(any(c in one and c in other and one[c] != other[c] for c in columns) for one, other in both)
