"""What `bft-ray after-rl` runs: arms, seeds, rows, settings of GRPO; typed, from a YAML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from bft_ray.config import Config, SourceConfig, load_config
from bft_ray.config.base import MAX_SEED, Section, rule
from bft_ray.config.load import parse_override, read_yaml, set_field, validate
from bft_ray.errors import BadInput
from bft_ray.space.claims import Claim
from bft_ray.space.series import shipped

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
MIN_SEEDS, WAIVED_SEEDS = 5, 2
WARM_UP = "warm_up"  # name of its runs; no arm has it


class Arm(Section):
    """Models that GRPO starts from, one a seed."""

    overrides: dict[str, Any] = Field(default_factory=dict, description="dotted fields of its fine-tuning")
    exports: str | None = Field(
        None, description="folder of finished exports, with {seed} for the seed; null: fine-tune now"
    )

    @model_validator(mode="after")
    def _one(self) -> Arm:
        if self.exports is not None and self.overrides:
            raise rule("exports", self.exports, "left out with `overrides`: finished exports are not fine-tuned")
        if self.exports is not None and "{seed}" not in self.exports:
            raise rule("exports", self.exports, "a path with {seed} in it: each seed is a run of its own")
        return self


class Rows(Section):
    """What is asked: the prompts of fine-tuning and GRPO, and the held-out items on which arms are compared."""

    train: list[SourceConfig] = Field(default_factory=list, description="prompts with answers; empty: data.train")
    held_out: list[SourceConfig] = Field(min_length=1, description="items that no stage trains on")
    from_choices: Literal["options", "yes_no"] | None = Field(
        None,
        description="sources are multiple-choice sets; options: the prompt lists them, the answer is the text of the right "
        "one; yes_no: the prompt asks whether it is one of them, drawn by the id, half of them right",
    )
    answer: Literal["final", "yes_no_maybe", "text"] = Field(
        "text", description="what exact match compares, as in a generation task"
    )

    @model_validator(mode="after")
    def _chosen(self) -> Rows:
        wanted = {"options": "text", "yes_no": "yes_no_maybe"}.get(self.from_choices or "")
        if wanted and self.answer != wanted:
            raise rule("answer", self.answer, f"{wanted} with from_choices: {self.from_choices}")
        if wanted and not self.train:
            raise rule("train", [], "multiple-choice sets with from_choices")
        return self


class Grpo(Section):
    """The policy-gradient stage, the same for all arms: TRL's GRPO trainer."""

    steps: int = Field(40, ge=1, description="optimizer steps")
    prompts: int = Field(8, ge=1, description="prompts a step")
    generations: int = Field(
        8, ge=2, description="sampled answers a prompt; their rewards are compared with each other"
    )
    accumulation: int = Field(1, ge=1, description="micro-batches a step (memory)")
    learning_rate: float = Field(1e-5, gt=0, description="constant")
    beta: float = Field(0.0, ge=0, description="weight of the KL divergence from the starting model")
    temperature: float = Field(1.0, gt=0, description="of all sampling, in training and measurement")
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens; a longer one counts as it is cut")
    samples: int = Field(4, ge=1, description="sampled answers an item when the reward is measured")
    start_prompts: int = Field(64, ge=1, description="training prompts on which the reward at the start is measured")
    low: float = Field(0.1, ge=0, le=1, description="least reward at the start: below it GRPO has next to no signal")
    high: float = Field(0.9, ge=0, le=1, description="largest reward at the start")

    @model_validator(mode="after")
    def _fits(self) -> Grpo:
        if self.prompts * self.generations % self.accumulation:
            raise rule("accumulation", self.accumulation, "a divisor of prompts * generations")
        if self.low >= self.high:
            raise rule("low", self.low, "below `high`")
        return self


class AfterRl(Section):
    """Several starting models, several seeds, one policy-gradient stage."""

    name: str = Field(pattern=_NAME, max_length=100, description="of the study; the same name resumes it")
    question: str = Field(min_length=1, description="what it answers, in a sentence")
    config: str = Field(description="config of the fine-tuning: a recipe, or a file beside this one")
    overrides: dict[str, Any] = Field(default_factory=dict, description="dotted fields of the config, for all arms")
    warm_up: dict[str, Any] = Field(
        default_factory=dict,
        description="dotted fields of a fine-tuning, one a seed, from which all arms that are fine-tuned start: weights by "
        "probability (dft, bft) learn next to nothing from answers that a model all but rules out; empty: none",
    )
    arms: dict[str, Arm] = Field(min_length=1, description="name of an arm -> its starting models")
    seeds: list[int] = Field([101, 102, 103, 104, 105], description="of fine-tuning, GRPO and sampling; one run each")
    min_seeds_waived: bool = Field(False, description=f"{WAIVED_SEEDS} to {MIN_SEEDS - 1} seeds: a demonstration only")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="error allowed to all statements together")
    rows: Rows = Field(description="what is asked")
    grpo: Grpo = Field(Grpo(), description="the policy-gradient stage")  # type: ignore[call-arg]
    claims: list[Claim] = Field(
        default_factory=list, description="arms whose improvement and final reward are compared"
    )

    @model_validator(mode="after")
    def _rules(self) -> AfterRl:
        for name in self.arms:
            if not name.replace("_", "").isalnum() or name == WARM_UP:
                raise rule(f"arms.{name}", name, f"made of letters, digits and _, and not {WARM_UP}")
        for place, claim in enumerate(self.claims):
            for field in ("better", "than"):
                if getattr(claim, field) not in self.arms:
                    raise rule(f"claims.{place}.{field}", getattr(claim, field), f"one of {', '.join(self.arms)}")
            for field in ("by_at_most", "metric"):
                if getattr(claim, field) is not None:
                    raise rule(
                        f"claims.{place}.{field}", getattr(claim, field), "left out here: the reward is compared"
                    )
        least = WAIVED_SEEDS if self.min_seeds_waived else MIN_SEEDS
        if len(set(self.seeds)) < max(least, len(self.seeds)):
            remedy = "Add seeds" + (
                "." if self.min_seeds_waived else ", or say `min_seeds_waived: true` for a demonstration."
            )
            raise rule("seeds", self.seeds, f"at least {least} different seeds", remedy)
        if any(not 0 <= seed < MAX_SEED for seed in self.seeds):
            raise rule("seeds", self.seeds, f"seeds, none below 0 or above {MAX_SEED - 1}")
        return self

    def config_of(self, arm: str, seed: int, folder: str, rows: str | None = None, start: str | None = None) -> Config:
        """The fine-tuning of one arm under one seed.

        Args:
            arm: `warm_up` is that of all arms.
            start: model that it starts from; None: that of the config.
            folder: where its results go.
            rows: file of training rows that were made of choices; None: `rows.train`, or the config's own.

        Raises:
            BadConfig, BadInput: see `bft_ray.config.load_config`.
        """
        own: dict[str, Any] = {**self.overrides, **(self.warm_up if arm == WARM_UP else self.arms[arm].overrides)}
        if start is not None:
            own |= {"model.path": start, "model.adapter": None}
        if rows is not None:
            own["data.train"] = [{"path": rows}]
        elif self.rows.train:
            own["data.train"] = [source.model_dump() for source in self.rows.train]
        own |= {"name": f"{arm}-{seed}", "seed": seed, "cluster.storage_path": folder, "data.validation": []}
        own |= {"evaluation.tasks": [], "checkpoint.export": "last"}
        return load_config(self.config, [f"{name}={json.dumps(value)}" for name, value in own.items()])

    def base(self) -> Config:
        """The config that all arms share."""
        own = [f"{name}={json.dumps(value)}" for name, value in self.overrides.items()]
        if self.rows.train and not self.rows.from_choices:
            own.append(f"data.train={json.dumps([source.model_dump() for source in self.rows.train])}")
        return load_config(self.config, own)


def bundled() -> dict[str, Path]:
    """Studies of this kind that come with the package, by name."""
    return shipped("search_spaces/after_rl")


def load_after_rl(source: str, overrides: Sequence[str] = ()) -> AfterRl:
    """Read a study from a file, or a bundled one by its name.

    Args:
        overrides: `FIELD=VALUE` of the study (grpo.steps=80) or of the config (model.path=...).

    Raises:
        BadInput: no such study, or no YAML mapping.
        BadConfig: every unknown key, wrong type and broken rule, at once.
    """
    path = Path(source) if Path(source).is_file() else bundled().get(source.removesuffix(".yaml"))
    if path is None:
        raise BadInput("STUDY", source, f"a YAML file, or one of {', '.join(bundled())}")
    tree = read_yaml(path)
    for override in overrides:
        name, value = parse_override(override)
        if name.partition(".")[0] in AfterRl.model_fields and name != "overrides":
            set_field(tree, name, value)
        else:
            tree.setdefault("overrides", {})[name] = value
    study = validate(AfterRl, tree, str(path))
    beside = path.parent / study.config
    return study.model_copy(update={"config": str(beside)}) if beside.is_file() else study
