"""The actor of Ray Tune that walks one segment after the other in a process that stays warm."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ray import tune

from bft_ray.places.modes import keep_for
from bft_ray.study.records.segment import Run, Segment

if TYPE_CHECKING:
    from bft_ray.study.execute.warm import Warm


class TrialActor(tune.Trainable):
    """Runs the segment that Tune hands it under `segment`; each `step` is one measurement. Use it with `reuse_actors`.

    There are no checkpoints for Tune to keep: `bft_ray.study.execute.segments` leaves the state of a run itself.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._warm: Warm | None = None
        self._walk: Generator[Run, None, None] | None = None
        self._take(config["segment"])

    def step(self) -> dict[str, Any]:
        """What is known of the run (`run`; as one object, for Tune takes mappings apart), and `done` at the end of the segment."""
        if self._walk is None:
            from bft_ray.study.execute.segments import run_segment
            from bft_ray.study.execute.warm import Warm  # torch and all that: here, so that an actor is there at once

            keep_for(self._segment.tree.get("cluster", {}).get("file_mode", "owner"))
            self._warm = self._warm or Warm()
            self._walk = run_segment(self._segment, self._warm)
        run = next(self._walk)
        return {"run": run, "done": run.status != "running"}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next segment, in the same process."""
        self.cleanup()
        self._take(new_config["segment"])
        return True

    def cleanup(self) -> None:
        """Stop the segment where it is."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: see above."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see above."""

    def _take(self, segment: Segment) -> None:
        self._segment, self._walk = segment, None
