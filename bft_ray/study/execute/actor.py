"""The actor of Ray Tune that runs one segment after the other, in its own process or on a group of ranks, which stay warm."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.util import get_current_placement_group

from bft_ray.config import ClusterConfig
from bft_ray.errors import BftError
from bft_ray.places.modes import keep_for
from bft_ray.study.records.segment import Run, Segment

if TYPE_CHECKING:
    from bft_ray.study.execute.group import Group
    from bft_ray.study.execute.warm import Warm


class Left(BftError):
    """The actor has ended after a run that was saved. Its report came before."""


class TrialActor(tune.Trainable):
    """Runs the segment that Tune gives it under `segment`; each `step` is one measurement. Use it with `reuse_actors`.

    Several bundles of its placement group are the places of the ranks of a group; one is that of this process.

    After a run that was saved (`moving`, `asked`) it ends: its place may be on a node that will be taken away, or too small.

    Tune has no checkpoints to keep: `bft_ray.study.execute.segments` saves the state of a run itself.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first segment; the models are loaded in the first `step`."""
        self._warm: Warm | None = None
        self._group: Group | None = None
        self._steps: Generator[Run, None, None] | None = None
        self._is_left = False
        self._segment: Segment = config["segment"]

    def step(self) -> dict[str, Any]:
        """The report of the run (`run`, as one object, because Tune flattens mappings), and `done`: the segment has ended.

        Raises:
            Left: the run was saved. Tune keeps an actor whose segment is done, and one that fails it gives up, with its places.
        """
        if self._is_left:
            raise Left("the run is saved, and goes on elsewhere")
        if self._steps is None:
            keep_for(self._segment.tree.get("cluster", {}).get("file_mode", "owner"))
            places = get_current_placement_group()
            self._steps = self._alone() if places is None or places.bundle_count == 1 else self._together(places)
        run = next(self._steps)
        self._is_left = run.status == "saved"
        return {"run": run, "done": run.status not in ("running", "saved")}

    def _alone(self) -> Generator[Run, None, None]:
        from bft_ray.study.execute.segments import run_segment
        from bft_ray.study.execute.warm import Warm  # imports torch: here, so that the actor starts at once

        self._warm = self._warm or Warm()
        return run_segment(self._segment, self._warm)

    def _together(self, places: Any) -> Generator[Run, None, None]:
        from bft_ray.study.execute.group import Group

        if self._group is not None and not self._group.is_good:
            self._group.close()
            self._group = None
        self._group = self._group or Group(ClusterConfig(**self._segment.tree["cluster"]), places)
        return self._group.run(self._segment)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """The next segment, in the same process."""
        self.cleanup()
        self._segment = new_config["segment"]
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
