"""Which evaluator measures which kind of task; each is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from bft_ray.config.tasks import HarnessTask, Task
from bft_ray.errors import BadInput
from bft_ray.evaluate.request import Context, Prepared

#: kind -> module with `prepare(task, context) -> Prepared`
PREPARE = {
    "text": "bft_ray.evaluate.text",
    "choice": "bft_ray.evaluate.choice",
    "pairs": "bft_ray.evaluate.pairs",
    "generation": "bft_ray.evaluate.generation",
    "names": "bft_ray.evaluate.names",
    "embedding_pairs": "bft_ray.evaluate.embedding_pairs",
    "cells": "bft_ray.evaluate.cells",
    "rubric": "bft_ray.evaluate.rubric",
}
#: the name under which `data.validation` is measured
VALIDATION = "validation"


def prepare_task(task: Task, context: Context) -> Prepared | None:
    """Read, check and tokenise what a task measures; None for a task that needs the model itself (harness).

    Raises:
        BadInput: bad data, named by file and line, or a library that is not installed.
    """
    if isinstance(task, HarnessTask):
        import_module("bft_ray.evaluate.harness").check(task)
        return None
    return import_module(PREPARE[task.kind]).prepare(task, context)


def choose(tasks: Sequence[Task], names: Sequence[str] | None, has_validation: bool) -> tuple[list[Task], bool]:
    """The tasks of these names (None: all), and whether the validation data are among them.

    Raises:
        BadInput: a name that no task has.
    """
    if names is None:
        return list(tasks), has_validation
    known = [*([VALIDATION] if has_validation else []), *(task.name for task in tasks)]
    for name in names:
        if name not in known:
            raise BadInput("task", name, f"one of {', '.join(known)}" if known else "in the config, which has none")
    return [task for task in tasks if task.name in names], has_validation and VALIDATION in names
