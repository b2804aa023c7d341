"""What one run (an arm under a seed) measured: a small file, written whole when the run has ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from bft_ray.places import storage
from bft_ray.places.kept import read_kept, write_kept


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        start: reward on training prompts before GRPO: the mean over prompts and sampled answers.
        before, after: held-out item -> share of its sampled answers that are right; `after` is empty where GRPO did not
            run, because `start` is out of range.
        course: mean reward of each GRPO step.
        mixed: share of the prompts, over all steps, whose sampled answers differ in reward: the others have no gradient.
        seconds: what GRPO and all measurements took.
    """

    arm: str
    seed: int
    start: float
    before: Mapping[str, float]
    after: Mapping[str, float] = field(default_factory=dict)
    course: Sequence[float] = ()
    mixed: float = 0.0
    seconds: float = 0.0

    def write(self, folder: str) -> None:
        """Keep it in the folder of the study."""
        write_kept(_path(folder, self.arm, self.seed), asdict(self))


def read_run(folder: str, arm: str, seed: int) -> Run | None:
    """What `Run.write` wrote; None where the run has not ended, or its file is damaged: it is then made again."""
    names = [each.name for each in fields(Run)]
    found: dict[str, Any] | None = read_kept(_path(folder, arm, seed), names)
    return None if found is None else Run(**{name: found[name] for name in names})


def _path(folder: str, arm: str, seed: int) -> str:
    return storage.join(folder, "records", f"{arm}-{seed}.json")
