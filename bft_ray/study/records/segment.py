"""Segment: what a worker is given, the part of a run between two rungs. Run: what it writes, and what it reports."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from bft_ray.places import storage
from bft_ray.places.kept import read_kept, write_kept

#: running: measured at a rung, and continues; paused: its state is in the trial's folder; pruned: it was not promoted;
#: stopped: a disk is full, and nothing is wrong with the run; saved: the driver asked, and its state is in the trial's folder
RunStatus = Literal["running", "paused", "complete", "pruned", "failed", "stopped", "saved"]


@dataclass(frozen=True)
class RunFiles:
    """The paths of the files of a run.

    Args:
        folder: of its trial, shared by all nodes.
        seed: of the run.
    """

    folder: str
    seed: int

    @property
    def result(self) -> str:
        """The file of the run (`Run`)."""
        return storage.join(self.folder, f"run-{self.seed}.json")

    @property
    def weights(self) -> str:
        """Folder of the final weights, as transformers or peft load them."""
        return storage.join(self.folder, f"weights-{self.seed}")

    @property
    def state(self) -> str:
        """Folder of the state at a rung."""
        return storage.join(self.folder, f"state-{self.seed}")


@dataclass(frozen=True)
class Segment:
    """What a worker is given: one run (a trial with one seed), from its last state to `until`.

    Args:
        study: unique id of the study: results of another study of the same name are not used.
        trial: id of the trial, such as `search/12`.
        seed: of the run.
        tree: plain config tree of the run, its seed set.
        folder: of the trial's files, shared by all nodes.
        rungs: steps, below the last, at which the run is measured.
        until: one of the rungs: save the state in the folder there, and end. None: to the last step.
        at_rungs: names of the sets that are measured at rungs (`validation`, or a task's); None: all.
        keep: save the final weights in `weights`.
        same: text that is equal for equal runs, where the tree is not: it holds paths of this machine. "": use the tree.
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
        """The identity of the run: the study, and its config as a hash."""
        text = self.same or json.dumps(self.tree, sort_keys=True)
        return f"{self.study}.{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    @property
    def files(self) -> RunFiles:
        """The paths of its files."""
        return RunFiles(self.folder, self.seed)

    @property
    def cache_dir(self) -> str | None:
        """`data.cache_dir` of the config, which need not be valid."""
        return self.tree.get("data", {}).get("cache_dir")


@dataclass
class Run:
    """All that is known of a run so far; also the file `run-SEED.json` of its trial's folder.

    Args:
        key: of its segment.
        status: only a complete run has a score.
        reason: why it failed, was stopped or saved.
        num_steps: optimizer steps that moved the weights.
        train: metrics of each step (`train/...`), from the first on.
        metrics: steps done -> what was measured then.
        records: one an item of the last measurement of a complete run: `set`, `id`, numbers, never text.
        seconds: by part, over all segments: `start` (from the call to the first step), `train`, `measure`, `report`
            (while the caller worked), `end`.
        is_lasting: whether a failed one would probably fail again.
        cards: types of the GPUs or CPUs that computed it, each once, over all segments and ranks.
        warnings: what was wrong with its files when it was resumed, as lines; the driver tells them.
    """

    key: str = ""
    status: RunStatus = "running"
    reason: str = ""
    num_steps: int = 0
    train: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    is_lasting: bool = True
    cards: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def last(self) -> dict[str, float]:
        """Metrics of its last measurement."""
        return self.metrics.get(max(self.metrics, default=0), {})

    @property
    def report(self) -> Run:
        """Its status and last measurement alone: small, because it is sent at each measurement."""
        return replace(self, train=[], records=[], seconds={}, metrics={self.num_steps: self.last})

    def at(self, step: int) -> Run:
        """The report of an earlier measurement."""
        return replace(self.report, num_steps=step, metrics={step: self.metrics[step]})

    def write(self, files: RunFiles) -> None:
        """Write it to the trial's folder, whole or not at all."""
        self.save(files.result)

    def save(self, path: str) -> None:
        """Write it to a file, whole or not at all."""
        write_kept(path, asdict(self))

    @classmethod
    def read(cls, files: RunFiles, key: str) -> Run | None:
        """What an earlier segment wrote; None where there is no file, a damaged one, or one of another run."""
        run = cls.load(files.result)
        return run if run is not None and run.key == key else None

    @classmethod
    def of(cls, study: str, files: RunFiles) -> Run | None:
        """The run in a trial's folder, if it is of this study; None otherwise."""
        run = cls.load(files.result)
        return run if run is not None and run.key.startswith(f"{study}.") else None

    @classmethod
    def load(cls, path: str) -> Run | None:
        """What `save` wrote; None where there is no file, or a damaged one."""
        tree = read_kept(path, needs=("key", "status", "num_steps", "train", "metrics"))
        if tree is None:
            return None
        known = {each.name: tree[each.name] for each in fields(cls) if each.name in tree}
        return cls(**known | {"metrics": {int(step): values for step, values in tree["metrics"].items()}})
