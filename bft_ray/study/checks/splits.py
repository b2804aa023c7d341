"""Whether the splits of a study have rows of their own. Different files may have the same rows: a copy, in another order
or in part, confirms nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bft_ray.config.tasks import ChoiceTask, HarnessTask, ItemKey, NamesTask, RowsTask, Task, TaskBase
from bft_ray.data.dataset import TokenDataset
from bft_ray.data.rows import BadRow, question_key, read_choices, read_rows, row_key, source_of, text_key
from bft_ray.data.tables import read_table
from bft_ray.data.values import row_id
from bft_ray.errors import BadInput

#: key of a row -> its id
Rows = Mapping[str, str]
_FIELDS = {"search": "data", "confirmation": "confirmation.overrides", "test": "confirmation.test"}
_NUM_IDS = 3  # that an error or a note names
_TOLERATED = 0.01  # of a split's rows: some published test sets hold that many rows of their validation sets


def rows_of(dataset: TokenDataset) -> Rows:
    """Key -> id of tokenised samples. A key covers the whole row, except Unicode form, case and white space."""
    return dict(zip(dataset.keys, dataset.ids, strict=True))


def items_of(task: Task) -> Rows:
    """Key -> id of the rows of a task's file; empty for a task of lm-evaluation-harness, which is identified by its name."""
    if task.KEY is None or isinstance(task, HarnessTask):
        return {}
    field = f"evaluation.tasks.{task.name}"
    if isinstance(task, RowsTask | NamesTask):
        key = row_key if task.KEY.of == "row" else question_key
        read = read_choices if isinstance(task, ChoiceTask) else read_rows
        return {key(row): row.id for row in read(source_of(task), field) if not isinstance(row, BadRow)}
    table = read_table(task.path, limit=task.limit, field=field)
    return {_key(record, task, task.KEY): row_id(record.get("id"), where) for where, record in table}


def check_splits(metric: str, splits: Mapping[str, Rows], trained: Rows, line: Callable[[str], None]) -> None:
    """Refuse splits that share more than 1 % of their rows with another split or, for confirmation and test, with the
    training data. The search may share rows with the training data, but not use all of it. Other shared rows are noted.

    Args:
        metric: of the objective, which is measured on the splits.
        splits: search, and confirmation and test where they exist.
        trained: the training rows; empty where they are not of the same form.
        line: called with a note on shared rows that are no error.

    Raises:
        BadInput: names both splits, how many rows they share, and the first ids; never a row's text.
    """
    for place, (split, rows) in enumerate(splits.items()):
        for other in ["training", *list(splits)[:place]]:
            others = trained if other == "training" else splits[other]
            if not (shared := [own for key, own in rows.items() if key in others]):
                continue
            what = f"{len(shared)} of the {len(rows)} rows of the {split} data are rows of the {other} data too"
            which = ", ".join(shared[:_NUM_IDS]) + (", ..." if len(shared) > _NUM_IDS else "")
            is_search = (split, other) == ("search", "training")
            if len(shared) > (len(others) - 1 if is_search else _TOLERATED * len(rows)):
                rule = f"but {metric} must be measured on rows of its own ({what}: {which})"
                raise BadInput(_FIELDS[split], f"the data of the {split}", rule, "Take them out of one of the two.")
            line(f"note: {what} ({which})")


def _key(record: Mapping[str, Any], task: TaskBase, key: ItemKey) -> str:
    values = [record.get(column.format(**vars(task))) for column in key.columns]
    return text_key(sorted(text_key(str(value)) for value in values) if key.is_unordered else values)
