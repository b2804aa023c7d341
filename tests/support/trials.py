"""A task that trials measure, and what of a trial's steps is a function of its config."""

from __future__ import annotations

from typing import Any

CHOICES = {"kind": "choice", "path": "starter:gene_interaction/choices_validation", "limit": 6}
MEMORY = "train/peak_memory_bytes"  # the only figure of a step that is not the trial's alone


def steps_of(result: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in step.items() if name != MEMORY} for step in result.train]
