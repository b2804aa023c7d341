"""Rows that may belong together although no group is given: a column such as `patient_id` whose values repeat."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from bft_ray.config import SourceConfig
from bft_ray.data.content import bare
from bft_ray.data.rows import text_key
from bft_ray.data.tables import read_table
from bft_ray.operate.init.look import Look

_OF_ONE = re.compile(
    r"(patient|subject|donor|participant|person|individual|case|specimen|hadm|admission|encounter|visit|stay"
    r"|document|doc|article|paper|abstract|note|report|pmid|pmcid|pubmed|nct)(id|no|nr|number|key|uid)?"
)


def hint_of_groups(source: SourceConfig, look: Look) -> list[str]:
    """A line with the option to add, where there is such a column and no group; of several columns the coarsest."""
    columns = [name for name in look.unused if _OF_ONE.fullmatch(bare(name))]
    columns += [look.used["id"]] if "id" in look.used else []  # if it repeats, it is of something else than a row
    if not columns or "group" in look.used or any(row.group is not None for row in look.rows):
        return []
    seen: dict[str, dict[str, int]] = {column: {} for column in columns}
    for _, record in read_table(source.path, source.split, source.config_name, source.revision, source.limit, "DATA"):
        _count(seen, record)
    repeated = {name: counts for name, counts in seen.items() if 1 < len(counts) < sum(counts.values())}
    if not repeated:
        of_one = [name for name, counts in seen.items() if len(counts) == 1 < sum(counts.values())]
        text = (
            f"all rows are of one {' and one '.join(of_one)}: what is measured on some of them says nothing of others"
        )
        return [f"{'hint':<13}{text}"] if of_one else []
    column, counts = min(repeated.items(), key=lambda item: len(item[1]))
    text = (
        f"{len(counts):,} values of {column} are in {sum(counts.values()):,} rows, and rows of one may be on both "
        f"sides of a split. If such rows are related, add --group {shlex.quote(column)}"
    )
    return [f"{'hint':<13}{text}"]


def _count(seen: Mapping[str, dict[str, int]], record: Mapping[str, object]) -> None:
    for column, counts in seen.items():
        value = record.get(column)
        if value is not None and (key := text_key(str(value))):
            counts[key] = counts.get(key, 0) + 1
