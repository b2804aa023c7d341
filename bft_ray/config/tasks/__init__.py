"""What can be measured on a model: one typed task for each `kind`.

A kind is two files: the one here declares its fields, its metrics with direction and item scores, and the key of its items;
`bft_ray/evaluate/tasks/KIND.py` measures it. It is added to `Task` below, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from bft_ray.config.tasks.base import Decoding, ItemKey, RowsTask, TaskBase
from bft_ray.config.tasks.cells import CellsTask
from bft_ray.config.tasks.choice import ChoiceTask
from bft_ray.config.tasks.embedding_pairs import EmbeddingPairsTask
from bft_ray.config.tasks.generation import GenerationTask
from bft_ray.config.tasks.harness import HarnessTask
from bft_ray.config.tasks.names import NamesTask
from bft_ray.config.tasks.pairs import PairsTask
from bft_ray.config.tasks.rubric import JudgeConfig, RubricTask
from bft_ray.config.tasks.text import TextTask

_Any = (
    TextTask
    | ChoiceTask
    | PairsTask
    | GenerationTask
    | NamesTask
    | EmbeddingPairsTask
    | CellsTask
    | RubricTask
    | HarnessTask
)
Task = Annotated[_Any, Field(discriminator="kind")]
KINDS: tuple[type[TaskBase], ...] = get_args(_Any)

__all__ = [
    "KINDS",
    "CellsTask",
    "ChoiceTask",
    "Decoding",
    "EmbeddingPairsTask",
    "GenerationTask",
    "HarnessTask",
    "ItemKey",
    "JudgeConfig",
    "NamesTask",
    "PairsTask",
    "RowsTask",
    "RubricTask",
    "Task",
    "TaskBase",
    "TextTask",
]
