"""How each kind of task is measured: one file a kind, with `prepare(task, context)`, imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from bft_ray.config.measured import VALIDATION
from bft_ray.config.tasks import HarnessTask, Task
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Context, Prepared


def prepare_task(task: Task, context: Context) -> Prepared | HarnessTask:
    """Read, check and tokenise what a task measures; a task that asks the model itself (harness) is checked and returned.

    Raises:
        BadInput: bad data, named by file and line, or a library that is not installed.
    """
    return import_module(f"bft_ray.evaluate.tasks.{task.kind}").prepare(task, context)


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
