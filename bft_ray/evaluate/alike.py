"""Whether two evaluations measured the same items in the same units: what of them must not be compared, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: what belongs to an item, whatever the model; evaluations of earlier versions have no `content`
_OWN = ("content", "answer", "label")
_PER_TOKEN = ("nll", "perplexity", "token_accuracy")


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
