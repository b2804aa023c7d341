"""The parts of a search space: objective, budget, sampler, scheduler, confirmation, baselines; each with its own rules."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule, seed_field
from bft_ray.config.metrics import describe, is_judged

#: the baseline that wins all ties: the official method, as published
DEFAULT = "bft"
MIN_SEEDS = 5
#: of two, the variance is hardly known: sparse 0/1 items made a false champion in 15 to 19 % of studies
WAIVED_SEEDS = 3


def _check_metric(name: str) -> None:
    if not is_judged(name):
        known = describe(name) is not None
        must_be = "a metric with a better and a worse direction" if known else "a metric of the metrics table"
        raise rule("metric", name, must_be, "For example validation/token_accuracy or choices/probability.")


class SecondObjective(Section):
    """What must not get worse: the choice is made among the arms within the limit; the front of both metrics is shown."""

    metric: str = Field(description="for example general/bits_per_byte: what the model forgets")
    largest_loss: float = Field(
        ge=0,
        description="how much worse than the base model it may become, in its unit (mean over seeds, beyond noise)",
    )

    @model_validator(mode="after")
    def _judged(self) -> SecondObjective:
        _check_metric(self.metric)
        return self


class Objective(Section):
    """The metric that ranks trials."""

    metric: str = Field(description="name of a metric that the config measures; never the training loss")
    second: SecondObjective | None = Field(None, description="second metric and the limit that it sets; null: none")

    @model_validator(mode="after")
    def _judged(self) -> Objective:
        _check_metric(self.metric)
        if self.second and self.second.metric == self.metric:
            raise rule("second.metric", self.metric, "another metric than `metric`", "Leave `second` out.")
        return self


class Budget(Section):
    """When the search ends: whichever comes first."""

    trials: int | None = Field(None, ge=1, description="trials, duplicates included; null: the whole grid")
    steps: int | None = Field(None, ge=1, description="optimizer steps of a full trial; null: those of the config")
    time_s: float | None = Field(
        None, gt=0, description="no trial starts when trials ran for so many seconds; null: no limit"
    )
    worker_hours: float | None = Field(
        None,
        gt=0,
        description="no trial starts when baselines and search took so many hours of workers (times gpus_per_worker: "
        "GPU-hours); null: no limit. The confirmation always runs",
    )


class Sampler(Section):
    """The sampler, which proposes the next trial."""

    kind: Literal["tpe", "random", "grid"] = Field("tpe", description="sampler of Optuna")
    seed: int = seed_field(description="of its draws")
    startup_trials: int = Field(8, ge=1, description="random trials before tpe begins to learn")


class Asha(Section):
    """Stops the worse trials early: at rung k, after `grace_steps * reduction^k` steps, the best 1/reduction are promoted.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), arXiv 1810.05934.
    """

    kind: Literal["asha"] = Field("asha", description="what this is")
    grace_steps: int = Field(ge=1, description="steps of the first rung: no trial stops before")
    reduction: int = Field(3, ge=2, description="one of this many trials at a rung is promoted")
    metric: str | None = Field(None, description="metric at the rungs; null: the objective's")

    @model_validator(mode="after")
    def _judged(self) -> Asha:
        if self.metric is not None:
            _check_metric(self.metric)
        return self

    def rungs(self, num_steps: int) -> list[int]:
        """Steps after which trials may stop, below the last one."""
        found, step = [], self.grace_steps
        while step < num_steps:
            found.append(step)
            step *= self.reduction
        return found


class NoScheduler(Section):
    """Every trial runs to its end."""

    kind: Literal["none"] = Field("none", description="what this is")


class Confirmation(Section):
    """Fresh paired runs of the best trials and of the baselines, measured on data that the search has not seen.

    `overrides` and `test` only set what a trained run is measured on, never its training: otherwise the best checkpoint
    would be picked on the data that confirm it.
    """

    top_k: int = Field(
        3, ge=0, description="candidates: the best trials of the search; 0: only the baselines are compared"
    )
    seeds: list[int] = Field([101, 102, 103, 104, 105], description="one run each; not those of trials")
    min_seeds_waived: bool = Field(
        False, description=f"{WAIVED_SEEDS} or {MIN_SEEDS - 1} seeds: for a demonstration only"
    )
    alpha: float = Field(0.05, gt=0, lt=0.5, description="error allowed to all comparisons together")
    overrides: dict[str, Any] = Field(
        min_length=1, description="dotted fields of the confirmation split: what is measured there"
    )
    test: dict[str, Any] = Field(
        default_factory=dict, description="dotted fields of the test split, which is measured once; empty: no test"
    )
    register_champion: bool = Field(
        True, description="make the champion a version of the domain's model; false: an experiment, which tells it only"
    )

    @model_validator(mode="after")
    def _enough_seeds(self) -> Confirmation:
        if len(set(self.seeds)) < len(self.seeds):
            raise rule("seeds", self.seeds, "different seeds")
        if len(self.seeds) < WAIVED_SEEDS:
            raise rule("seeds", self.seeds, f"at least {MIN_SEEDS} seeds, or {WAIVED_SEEDS} for a demonstration")
        if len(self.seeds) < MIN_SEEDS and not self.min_seeds_waived:
            raise rule(
                "seeds",
                self.seeds,
                f"at least {MIN_SEEDS} seeds",
                "Add seeds, or say `min_seeds_waived: true` for a demonstration.",
            )
        return self


class Baseline(Section):
    """A published setting that the search must beat; it is tuned over the same learning rates."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="in the report")
    overrides: dict[str, Any] = Field(
        min_length=1, description="dotted fields; its loss has these and defaults, and nothing from the config"
    )


def default_baselines() -> list[Baseline]:
    """sft, dft, and bft as in the official code: window 256, which wins all ties."""
    return [
        Baseline(name="sft", overrides={"loss.method": "sft"}),
        Baseline(name="dft", overrides={"loss.method": "dft"}),
        Baseline(name=DEFAULT, overrides={"loss.method": "bft", "loss.window": 256}),
    ]
