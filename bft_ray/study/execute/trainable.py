"""The actor of Ray Tune that walks one leg after the other in a process that stays warm."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ray import tune

from bft_ray.places.modes import keep_for
from bft_ray.study.records.segment import Leg, Reached

if TYPE_CHECKING:
    from bft_ray.study.execute.warm import Warm


class TrialActor(tune.Trainable):
    """Runs the leg that Tune hands it under `leg`; each `step` is one measurement. Use it with `reuse_actors`.

    There are no checkpoints for Tune to keep: `bft_ray.study.execute.work` leaves the state of a run itself.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._warm: Warm | None = None
        self._walk: Generator[Reached, None, None] | None = None
        self._take(config["leg"])

    def step(self) -> dict[str, Any]:
        """Where the leg is (`reached`; as one object, for Tune takes mappings apart), and `done` at its end."""
        if self._walk is None:
            from bft_ray.study.execute.warm import Warm  # torch and all that: here, so that an actor is there at once
            from bft_ray.study.execute.work import walk

            keep_for(self._leg.tree.get("cluster", {}).get("file_mode", "owner"))
            self._warm = self._warm or Warm()
            self._walk = walk(self._leg, self._warm)
        reached = next(self._walk)
        return {"reached": reached, "done": reached.status != "running"}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next leg, in the same process."""
        self.cleanup()
        self._take(new_config["leg"])
        return True

    def cleanup(self) -> None:
        """Stop the leg where it is."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: see above."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see above."""

    def _take(self, leg: Leg) -> None:
        self._leg, self._walk = leg, None
