"""A search space: which fields of the config a study varies, with what budget, and how its winner is confirmed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from bft_ray.config.base import MAX_SEED, Section, rule
from bft_ray.config.loss import LossConfig
from bft_ray.config.tree import Config
from bft_ray.space.claims import Claim
from bft_ray.space.parts import (
    DEFAULT,
    Asha,
    Baseline,
    Budget,
    Confirmation,
    NoScheduler,
    Objective,
    Sampler,
    default_baselines,
)
from bft_ray.space.ranges import Parameter, same

LEARNING_RATE = "optimizer.learning_rate"
#: fields that move the place of a step within its run: of a run's steps, or of the decay of its learning rate
_LENGTHS = ("schedule.steps", "schedule.epochs", "data.global_batch_size")
#: fields that no space varies or fixes, and what to use for them
_OWNED = {
    "seed": "`seeds` and `confirmation.seeds`",
    "domain": "`domain` of the space",
    "name": "nothing: runs are named",
}


class SearchSpace(Section):
    """One study. `bft_ray.space.load.check_space` checks it against the config that it varies."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=100, description="of the study")
    domain: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_]*$",
        max_length=100,
        description="sub-domain of the results; null: the config's",
    )
    description: str = Field("", description="what the study answers")
    config: str = Field("starter", description="config that it varies: recipe, or YAML file (beside this one)")
    parameters: dict[str, Parameter] = Field(min_length=1, description="dotted field of the config -> its values")
    fixed: dict[str, Any] = Field(default_factory=dict, description="dotted fields that all runs of the study set")
    objective: Objective = Field(description="the metric that ranks trials")
    budget: Budget = Field(description="when the search ends")
    sampler: Sampler = Field(Sampler(), description="what proposes the next trial")
    scheduler: Annotated[Asha | NoScheduler, Field(discriminator="kind")] = Field(
        NoScheduler(), description="what stops trials early"
    )
    seeds: list[int] = Field([0], min_length=1, description="a trial is one run a seed; its score is their mean")
    confirmation: Confirmation | None = Field(None, description="null: the study compares, and chooses no champion")
    baselines: list[Baseline] = Field(default_factory=default_baselines, description="what the winner must beat")
    learning_rates: list[float] | None = Field(
        None, description="values that each baseline is tuned over; null: those of optimizer.learning_rate"
    )
    claims: list[Claim] = Field(default_factory=list, description="statements about baselines that the report judges")
    deterministic: bool = Field(False, description="the same trials on every repetition; trials wait for each other")

    @field_validator("scheduler", mode="before")
    @classmethod
    def _none_is_none(cls, value: Any) -> Any:
        return (
            {"kind": "none"} if value is None else value
        )  # as if it were written: a dump of what is set keeps its kind

    @property
    def most_confirmation_runs(self) -> int:
        """Runs of a whole confirmation: candidates and baselines with all seeds; less where the search has fewer candidates."""
        if self.confirmation is None:
            return 0
        return (self.confirmation.top_k + len(self.baselines)) * len(self.confirmation.seeds)

    def domain_of(self, base: Config) -> str:
        """The sub-domain of its results, where it varies this config."""
        return self.domain or base.domain

    def study_of(self, base: Config) -> str:
        """NAME/DOMAIN: the name of its study in a database, where it varies this config."""
        return f"{self.name}/{self.domain_of(base)}"

    @model_validator(mode="before")
    @classmethod
    def _owned_fields_are_left_out(cls, tree: Any) -> Any:
        """Refuse them first: an error about their range would be misleading."""
        given = tree if isinstance(tree, dict) else {}
        for place, names in (("parameters", given.get("parameters")), ("fixed", given.get("fixed"))):
            for name in names if isinstance(names, dict) else ():
                if name in _OWNED:
                    raise rule(f"{place}.{name}", "given", "left out", f"Use {_OWNED[name]} instead.")
        return tree

    @model_validator(mode="after")
    def _rules(self) -> SearchSpace:
        self._fields_are_free()
        self._conditions_hold()
        self._sampler_can()
        self._steps_are_one_thing()
        self._seeds_are_fresh()
        self._baselines_are_fair()
        return self

    def _fields_are_free(self) -> None:
        for name in self.fixed:
            for varied in self.parameters:
                if f"{varied}.".startswith(f"{name}.") or f"{name}.".startswith(f"{varied}."):
                    it = "it" if varied == name else varied
                    raise rule(
                        f"fixed.{name}", self.fixed[name], f"left out, because `parameters` varies {it}", "Remove one."
                    )
            if isinstance(self.fixed[name], dict) and isinstance(
                getattr(Config.model_fields.get(name), "annotation", None), type
            ):
                # a mapping would replace the whole section, with defaults for all that it leaves out
                inner = next(iter(self.fixed[name]), "field")
                raise rule(
                    f"fixed.{name}", "a mapping", "dotted fields", f"For example fixed: {{{name}.{inner}: VALUE}}."
                )
        for name in self.parameters:
            if name.startswith(("data.validation", "evaluation")):
                why = "a field of how a run trains: trials that are measured in different ways cannot be compared"
                raise rule(f"parameters.{name}", "given", why, "Set it in the config or in `fixed`, for all runs.")

    def _conditions_hold(self) -> None:
        for name, parameter in self.parameters.items():
            for parent, wanted in parameter.when.items():
                field = f"parameters.{name}.when.{parent}"
                if parent not in self.parameters:
                    raise rule(
                        field, wanted, "about a parameter of this space", f"There are: {_list(self.parameters)}."
                    )
                values = self.parameters[parent].finite()
                if values is None:
                    raise rule(field, wanted, "about a parameter with finitely many values")
                for value in wanted:
                    if not any(same(value, known) for known in values):
                        raise rule(field, value, f"one of the values of {parent}: {_list(values)}")
        self.ordered()

    def ordered(self) -> list[str]:
        """Names of the parameters, each after those that its conditions name.

        Raises a rule for conditions that form a circle.
        """
        done: list[str] = []
        left = list(self.parameters)
        while left:
            ready = [name for name in left if set(self.parameters[name].when) <= set(done)]
            if not ready:
                raise rule(
                    f"parameters.{left[0]}.when",
                    list(self.parameters[left[0]].when),
                    "free of circles: a parameter depends on itself",
                    f"Look at {_list(left)}.",
                )
            done += ready
            left = [name for name in left if name not in ready]
        return done

    def _sampler_can(self) -> None:
        trials, kind = self.budget.trials, self.sampler.kind
        if kind == "grid":
            for name, parameter in self.parameters.items():
                if parameter.finite() is None:
                    raise rule(f"parameters.{name}", "continuous", "finite for a grid", "Give `values`, or a `step`.")
            return
        if trials is None:
            raise rule("budget.trials", None, f"given for the sampler {kind}", "Only a grid has an end of its own.")
        if kind == "tpe" and trials < self.sampler.startup_trials:
            raise rule(
                "budget.trials",
                trials,
                f"at least sampler.startup_trials ({self.sampler.startup_trials}): otherwise the sampler learns nothing",
                "Raise it, lower sampler.startup_trials, or use the sampler random.",
            )

    def _steps_are_one_thing(self) -> None:
        steps = self.budget.steps
        varied = [name for name in (*self.parameters, *self.fixed) if name in ("schedule.steps", "schedule.epochs")]
        if steps is not None and varied:
            raise rule("budget.steps", steps, f"left out where {_list(varied)} is set", "Remove one of them.")
        if isinstance(self.scheduler, Asha):
            for name in self.parameters:
                if name in _LENGTHS or (name.startswith("data.") and name.rpartition(".")[2] in ("limit", "ratio")):
                    raise rule(
                        f"parameters.{name}",
                        "varied",
                        "fixed where ASHA compares runs at a rung: they would be at different points of their decay",
                        "Use `scheduler: {kind: none}`, or fix it.",
                    )
        if steps is not None and isinstance(self.scheduler, Asha) and self.scheduler.grace_steps >= steps:
            raise rule(
                "scheduler.grace_steps",
                self.scheduler.grace_steps,
                f"below budget.steps ({steps}): no trial could be stopped",
                "Lower it, or use `scheduler: {kind: none}`.",
            )

    def _seeds_are_fresh(self) -> None:
        if any(not 0 <= seed < MAX_SEED for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            raise rule("seeds", self.seeds, f"different seeds, none below 0 or above {MAX_SEED - 1}")
        if self.confirmation and (again := sorted({*self.seeds} & {*self.confirmation.seeds})):
            raise rule(
                "confirmation.seeds", again, "fresh: the search has used these seeds", "Use others, such as 101 to 105."
            )
        if self.confirmation and any(not 0 <= seed < MAX_SEED for seed in self.confirmation.seeds):
            must_be = f"different seeds, none below 0 or above {MAX_SEED - 1}"
            raise rule("confirmation.seeds", self.confirmation.seeds, must_be)

    def _baselines_are_fair(self) -> None:
        names = [baseline.name for baseline in self.baselines]
        if len(set(names)) < len(names):
            raise rule("baselines", names, "baselines with different names")
        if self.confirmation and DEFAULT not in names:
            raise rule(
                "baselines",
                names,
                f"given with one named `{DEFAULT}`: it wins ties, so a winner is confirmed against it",
                "Leave `baselines` out for sft, dft and bft.",
            )
        for index, baseline in enumerate(self.baselines):
            for name in baseline.overrides:
                if not name.startswith("loss.") and name in self.parameters:
                    raise rule(
                        f"baselines.{index}.overrides.{name}", "given", "left out: every baseline is tuned over it"
                    )
            if baseline.name == DEFAULT:
                _refuse_another_default(f"baselines.{index}.overrides", baseline.overrides)
        self._claims_have_arms(names)
        if self.baselines:
            self._tuning_is_finite()

    def _claims_have_arms(self, names: list[str]) -> None:
        if self.claims and self.confirmation is None:
            remedy = "Add `confirmation`, or leave the claims out."
            raise rule("claims", "given", "left out without a confirmation: fresh seeds judge them", remedy)
        for index, claim in enumerate(self.claims):
            for field, name in (("better", claim.better), ("than", claim.than)):
                if name not in names:
                    raise rule(f"claims.{index}.{field}", name, f"the name of a baseline: {_list(names)}")

    @property
    def claimed_metrics(self) -> tuple[str, ...]:
        """Metrics beside the objective's that claims are about."""
        named = (claim.metric for claim in self.claims if claim.metric and claim.metric != self.objective.metric)
        return tuple(dict.fromkeys(named))

    def _tuning_is_finite(self) -> None:
        """Baselines are tuned over the same values outside of the loss as the method; otherwise its gain means nothing."""
        given, rate = self.learning_rates, self.parameters.get(LEARNING_RATE)
        if given is not None:
            if rate is None:
                raise rule("learning_rates", given, f"left out where {LEARNING_RATE} is no parameter")
            if not given or len(set(given)) < len(given) or not all(rate.holds(value) for value in given):
                raise rule("learning_rates", given, f"different values that {LEARNING_RATE} can take")
            if (values := rate.finite()) is not None and set(given) != set(values):
                raise rule("learning_rates", given, f"the values of {LEARNING_RATE}: {_list(values)}", "Leave it out.")
        for name, parameter in self.parameters.items():
            if name.startswith("loss."):
                continue
            if parameter.finite() is None and (name != LEARNING_RATE or given is None):
                remedy = "Give `learning_rates`." if name == LEARNING_RATE else "Give `values`, or a `step`."
                raise rule(
                    f"parameters.{name}", "continuous", "finite: baselines are tuned over its values too", remedy
                )
            if any(parent.startswith("loss.") for parent in parameter.when):
                raise rule(
                    f"parameters.{name}.when",
                    list(parameter.when),
                    "free of loss fields: baselines are tuned over it too",
                )


def _refuse_another_default(field: str, overrides: dict[str, Any]) -> None:
    """Refuse a baseline with the name of the published method and other settings: its results would have that name."""
    whole = overrides.get("loss")
    given = dict(whole) if isinstance(whole, dict) else {}
    given |= {name.removeprefix("loss."): value for name, value in overrides.items() if name.startswith("loss.")}
    try:
        loss = LossConfig(**given)
    except ValidationError:  # reported with the config that it is in
        return
    published = LossConfig(method="bft", window=256)
    for name in LossConfig.model_fields:
        must_be = getattr(published, name)
        if name not in published.unused_fields() and getattr(loss, name) != must_be:
            raise rule(
                f"{field}.loss.{name}",
                getattr(loss, name),
                f"{'null' if must_be is None else must_be}, as published: the baseline named `{DEFAULT}` wins ties",
                "Give a baseline with other settings another name.",
            )


def _list(values: Any) -> str:
    return ", ".join(map(str, values))
