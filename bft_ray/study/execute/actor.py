"""The actor of Ray Tune that runs one segment after the other in a process that stays warm."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ray import tune

from bft_ray.places.modes import keep_for
from bft_ray.study.records.segment import Run, Segment

if TYPE_CHECKING:
    from bft_ray.study.execute.warm import Warm


class TrialActor(tune.Trainable):
    """Runs the segment that Tune gives it under `segment`; each `step` is one measurement. Use it with `reuse_actors`.

    Tune has no checkpoints to keep: `bft_ray.study.execute.segments` saves the state of a run itself.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._warm: Warm | None = None
        self._steps: Generator[Run, None, None] | None = None
        self._set(config["segment"])

    def step(self) -> dict[str, Any]:
        """The report of the run (`run`, as one object, because Tune flattens mappings), and `done`: the segment has ended."""
        if self._steps is None:
            from bft_ray.study.execute.segments import run_segment
            from bft_ray.study.execute.warm import Warm  # imports torch: here, so that the actor starts at once

            keep_for(self._segment.tree.get("cluster", {}).get("file_mode", "owner"))
            self._warm = self._warm or Warm()
            self._steps = run_segment(self._segment, self._warm)
        run = next(self._steps)
        return {"run": run, "done": run.status != "running"}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next segment, in the same process."""
        self.cleanup()
        self._set(new_config["segment"])
        return True

    def cleanup(self) -> None:
        """Stop the segment."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to do: see the class."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to do: see the class."""

    def _set(self, segment: Segment) -> None:
        self._segment, self._steps = segment, None
