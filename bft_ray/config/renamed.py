"""Fields of the config that had another name in an earlier version; a config with the old name is told the new one.

The old name is not accepted: two spellings of one setting would be two in MLflow, in a study's settings and in a search
space. So a config needs no version number: an unknown field is an error in each version, and never read as another one.
"""

from __future__ import annotations

#: old dotted name -> new dotted name; a field of a list entry without its index, such as data.train.path
RENAMED: dict[str, str] = {}


def renamed(field: str) -> str | None:
    """The present name of a field; None for one that never had another name."""
    return RENAMED.get(".".join(part for part in field.split(".") if not part.isdigit()))
