"""Whether what is measured was trained on: items of a config's tasks that share text with its training rows, by id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bft_ray.config import Config
from bft_ray.config.tasks import ChoiceTask, RowsTask, Task
from bft_ray.data.overlap import SHARE, Overlap, Text, find_overlaps
from bft_ray.data.rows import BadRow, ChoiceRow, Row, read_choices, read_rows, source_of
from bft_ray.places.kept import write_text
from bft_ray.waits import waiting

FILE = "overlap.json"  # beside an evaluation
_NUM_IDS = 3  # that a note names


def overlaps(config: Config, tasks: Mapping[str, Task]) -> dict[str, Overlap]:
    """The items that share text with the rows of `data.train`, for each task with rows of text (`bft_ray.data.overlap`).

    Args:
        tasks: what each is called in the result -> task. Kinds without rows of text are left out.

    Raises:
        BadInput: a file that cannot be read.
    """
    with waiting("looking for items in the training rows"):
        sets = {name: _items(task) for name, task in tasks.items() if isinstance(task, RowsTask)}
        return find_overlaps(_trained(config), sets) if any(sets.values()) else {}


def notes(found: Mapping[str, Overlap]) -> list[str]:
    """A sentence for each task of which items were trained on."""
    return [_note(name, one) for name, one in found.items() if one.rows]


def write(found: Mapping[str, Overlap], folder: Path) -> None:
    """`overlap.json`: task -> its number of items, and the id of the row that each item shares text with."""
    tree = {name: {"num_items": one.num_items, "rows": dict(one.rows)} for name, one in found.items()}
    write_text(folder / FILE, json.dumps(tree, indent=1) + "\n")


def _note(name: str, one: Overlap) -> str:
    pairs = [f"{item} with row {row}" for item, row in list(one.rows.items())[:_NUM_IDS]]
    more = ", ..." if len(one.rows) > _NUM_IDS else ""
    return (
        f"note: {len(one.rows):,} of the {one.num_items:,} items of {name} are in training rows, {SHARE:.0%} of their words or more "
        f"({', '.join(pairs)}{more}): they may be remembered, not understood"
    )


def _trained(config: Config) -> Iterator[Text]:
    for index, source in enumerate(config.data.train):
        prefix = f"{index}/" if len(config.data.train) > 1 else ""
        for row in read_rows(source, f"data.train.{index}"):
            if not isinstance(row, BadRow):
                yield prefix + row.id, " ".join(_texts([row.prompt, row.completion, row.messages, row.text]))


def _items(task: RowsTask) -> Sequence[Text]:
    """(id, what is asked); of a text task the text. Answers play no part: short ones are the same by chance."""
    source, field = source_of(task), f"evaluation.tasks.{task.name}"
    read: Iterator[Row | ChoiceRow | BadRow] = (
        read_choices(source, field) if isinstance(task, ChoiceTask) else read_rows(source, field)  # type: ignore[assignment]
    )
    return [(row.id, _asked(row)) for row in read if not isinstance(row, BadRow)]


def _asked(row: Row | ChoiceRow) -> str:
    if isinstance(row, ChoiceRow):
        return f"{row.context} {row.question}"
    turns = [turn for turn in row.messages or [] if turn.get("role") != "assistant"]
    return " ".join(_texts([row.prompt, turns, row.text]))


def _texts(value: object) -> Iterator[str]:
    """All text in turns, and in lists of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(value.get("content"))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
