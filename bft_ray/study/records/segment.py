"""What a worker is given, and what it leaves: one run of a trial, or the stretch of it up to a rung."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from bft_ray.places import storage
from bft_ray.places.kept import read_kept, write_kept

#: running: measured at a rung, and going on; paused: its state lies in the trial's folder; stopped: a disk is full, and
#: nothing is wrong with the run
RunStatus = Literal["running", "paused", "complete", "failed", "stopped"]


@dataclass(frozen=True)
class Leg:
    """One run (a trial with one seed), from where it was left to `until`.

    Args:
        study: unique id of the study: results of another one under the same name are not taken for its own.
        trial: id of the trial, such as `search/12`.
        seed: of the run.
        tree: plain config tree of the run, its seed set.
        folder: of the trial's files, shared by all nodes.
        rungs: steps, below the last, at which the run is measured.
        until: one of the rungs: leave the state in the folder there, and end. None: to the last step.
        at_rungs: names of the sets that are measured at rungs (`validation`, or a task's); None: all.
        keep: leave the final weights in `weights`.
        same: text that is equal for equal runs, where the tree is not: it holds paths of this machine. "": the tree.
    """

    study: str
    trial: str
    seed: int
    tree: dict[str, Any]
    folder: str
    rungs: tuple[int, ...] = ()
    until: int | None = None
    at_rungs: tuple[str, ...] | None = None
    keep: bool = False
    same: str = ""

    @property
    def key(self) -> str:
        """What the run is: the study, and its config as a hash."""
        text = self.same or json.dumps(self.tree, sort_keys=True)
        return f"{self.study}.{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def file(self) -> str:
        """The file of the run, in the trial's folder."""
        return _path(self.folder, self.seed)

    @property
    def cache_dir(self) -> str | None:
        """Of the config, which may be one that cannot be read."""
        return self.tree.get("data", {}).get("cache_dir")

    @property
    def weights(self) -> str:
        """Folder of the final weights, as transformers or peft load them."""
        return storage.join(self.folder, f"weights-{self.seed}")

    @property
    def pause(self) -> str:
        """Folder of the state at a rung."""
        return storage.join(self.folder, f"state-{self.seed}")


@dataclass(frozen=True)
class Reached:
    """Where a leg has come to: small, for it travels with every report.

    Args:
        step: optimizer steps done.
        metrics: measured there.
        status: of the run.
        reason: why it failed or was stopped.
        is_lasting: whether it would fail again, as far as can be told.
    """

    step: int
    metrics: dict[str, float]
    status: RunStatus
    reason: str = ""
    is_lasting: bool = True


@dataclass
class Run:
    """All that is known of a run so far; the file `run-SEED.json` of its trial's folder.

    Args:
        key: of its leg.
        status, reason: see `Reached`.
        num_steps: optimizer steps done.
        train: metrics of each step (`train/...`), from the first on.
        metrics: steps done -> what was measured then.
        records: one an item of the last measurement of a complete run: `set`, `id`, numbers, never text.
        seconds: by part, over all legs.
    """

    key: str
    status: RunStatus = "running"
    reason: str = ""
    num_steps: int = 0
    train: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> Reached:
        """Its last measurement."""
        last = max(self.metrics, default=0)
        return Reached(self.num_steps, self.metrics.get(last, {}), self.status, self.reason)

    def write(self, leg: Leg) -> None:
        """Leave it in the trial's folder, whole or not at all."""
        write_kept(leg.file, asdict(self))

    @classmethod
    def read(cls, leg: Leg) -> Run | None:
        """What an earlier leg has left; None where there is nothing, or something damaged, or of another run."""
        run = cls._at(leg.folder, leg.seed)
        return run if run is not None and run.key == leg.key else None

    @classmethod
    def of(cls, study: str, folder: str, seed: int) -> Run | None:
        """What lies in a trial's folder, if it is of this study."""
        run = cls._at(folder, seed)
        return run if run is not None and run.key.startswith(f"{study}.") else None

    @classmethod
    def _at(cls, folder: str, seed: int) -> Run | None:
        tree = read_kept(_path(folder, seed), needs=("key", "status", "num_steps", "train", "metrics"))
        if tree is None:
            return None
        known = {each.name: tree[each.name] for each in fields(cls) if each.name in tree}
        return cls(**known | {"metrics": {int(step): values for step, values in tree["metrics"].items()}})


def _path(folder: str, seed: int) -> str:
    return storage.join(folder, f"run-{seed}.json")
