"""What a study consists of, and the config of each of its trials: pure functions of space, config and records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bft_ray.config import Config
from bft_ray.config.steps import steps_if_known
from bft_ray.data.tokenise import TOKENISING
from bft_ray.places import storage
from bft_ray.space.assign import baseline_config, config_of, with_overrides
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import representatives
from bft_ray.space.parts import Asha
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import RunFiles
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH

#: field -> prefix of its value in the name of a trial
_SHORT = {
    "loss.token_weight": "",
    "loss.token_power": "a",
    "loss.token_threshold": "t",
    "loss.entropy_top_k": "k",
    "loss.sample_weight": "sample_weight=",
    "loss.window": "w",
    "loss.epsilon": "e",
    "loss.weight_cap": "c",
    "loss.gamma": "gamma",
    "loss.anchor": "anchor",
    "optimizer.learning_rate": "lr",
}


@dataclass(frozen=True)
class Study:
    """A study that a driver runs.

    Args:
        id: unique, and the same for all drivers of it.
        space, base: the search space, and the config that it varies.
        longest: supervised tokens of the longest training sample; None: trials differ in it, or it is not known. Of
            the first trial: a baseline may train on other rows, see `longest_of`.
        samples_per_source: number of training samples of each source, likewise; None: trials differ in it.
        folder: of its files, shared by all nodes.
    """

    id: str
    space: SearchSpace
    base: Config
    longest: int | None
    samples_per_source: tuple[int, ...] | None
    folder: str

    @property
    def domain(self) -> str:
        """The sub-domain of its results."""
        return self.space.domain_of(self.base)

    @property
    def num_samples(self) -> int | None:
        """Training samples; None: trials differ in it."""
        return None if self.samples_per_source is None else sum(self.samples_per_source)

    @property
    def name(self) -> str:
        """NAME/DOMAIN, its name in the database."""
        return self.space.study_of(self.base)

    @property
    def kept_seed(self) -> int:
        """The seed of the confirmation whose runs keep their weights: the first one."""
        assert self.space.confirmation is not None
        return self.space.confirmation.seeds[0]

    def folder_of(self, record: TrialRecord) -> str:
        """The folder of a trial's files."""
        return storage.join(self.folder, record.part, f"{record.number:04d}")

    def files_of(self, record: TrialRecord, seed: int) -> RunFiles:
        """The files of one run of a trial."""
        return RunFiles(self.folder_of(record), seed)

    def config(self, record: TrialRecord, seed: int, others: Mapping[str, TrialRecord] | None = None) -> Config:
        """The config of one run of a trial, with paths as they were given.

        Args:
            others: id -> record, for a trial of the confirmation: the trial that it repeats must be among them.
        """
        if record.part == CONFIRMATION:
            assert self.space.confirmation is not None and others is not None
            config = self.config(others[record.extra["of"]], seed, others)
            return with_overrides(config, self.space.confirmation.overrides, "confirmation.overrides")
        if record.part == BASELINES:
            baseline = next(one for one in self.space.baselines if one.name == record.extra["baseline"])
            return baseline_config(self.base, self.space, baseline, record.assignment, seed)
        return config_of(self.base, self.space, record.assignment, seed)

    def steps(self, config: Config) -> int | None:
        """Optimizer steps of a run; None where they are known only when it runs."""
        return steps_if_known(config, self.samples_per_source if self._has_first_rows(config) else None)

    def longest_of(self, config: Config) -> int | None:
        """Supervised tokens of the longest training sample of a run; None where it is not known."""
        return self.longest if self._has_first_rows(config) else None

    def _has_first_rows(self, config: Config) -> bool:
        return rows_key(config) == self._first_rows

    @cached_property
    def _first_rows(self) -> str:
        """Of the first trial, that `longest` and `samples_per_source` were taken from."""
        return rows_key(config_of(self.base, self.space, representatives(self.space, 1)[0]))

    def rungs(self, part: str, config: Config) -> tuple[int, ...]:
        """Steps after which a trial may be stopped: only trials of the search are."""
        steps = self.steps(config)
        if part != SEARCH or not isinstance(self.space.scheduler, Asha) or steps is None:
            return ()
        return tuple(self.space.scheduler.rungs(steps))

    @property
    def is_judged_in_place(self) -> bool:
        """Whether a trial waits in its processes for the decision at a rung. Otherwise it saves its state there and ends: a
        trial of several seeds, because these wait for each other; and a deterministic one, because it waits for others that
        need its place.
        """
        return len(self.space.seeds) == 1 and not self.space.deterministic


def rows_key(config: Config) -> str:
    """What decides the tokens of the rows that a run trains on. How many times each source is used is not among it."""
    model = config.model.model_dump(mode="json", include={"path", "revision", "adapter", "trust_remote_code"})
    data = config.data.model_dump(mode="json", include={"train", *TOKENISING})
    for source in data["train"]:
        del source["ratio"]
    return json.dumps([model, data], sort_keys=True)


def trial_name(assignment: Mapping[str, Any], first: str = "") -> str:
    """`bft_inverse w128 e0.05 c8 lr0.001`, `power a0.5 sample_weight=complement w64`: the method, then the varied settings, for
    tables and MLflow.

    Args:
        first: such as the name of a baseline, instead of the method.
    """
    words = [first] if first else [str(assignment["loss.method"])] if "loss.method" in assignment else []
    short = [field for field in _SHORT if field in assignment]
    for field in [*short, *sorted(assignment.keys() - _SHORT.keys() - {"loss.method"})]:
        value = assignment[field]
        text = f"{value:.3g}" if isinstance(value, float) else "none" if value is None else str(value)
        words.append(_SHORT[field] + text if field in _SHORT else f"{field.rpartition('.')[2]}={text}")
    return " ".join(words) or "as configured"
