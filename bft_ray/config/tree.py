"""The typed config tree: one section a subject, every field with its unit and one line of help."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule, seed_field
from bft_ray.config.cluster import ClusterConfig, DeepSpeedConfig
from bft_ray.config.data import DataConfig, DataToMeasure
from bft_ray.config.loss import LossConfig
from bft_ray.config.profile import ProfileConfig
from bft_ray.config.tasks import Task

#: (rule, remedy) where the anchor is asked of a model that continues an adapter
ANCHORED_ADAPTER = (
    "0 where an adapter is trained on: without it the model is not the one that training starts from",
    "Merge the adapter first (checkpoint.merge_lora when it was trained), and train new ones on the result.",
)
_TAKEN = {"train", "validation", "final"}  # names that no task may have


class ModelConfig(Section):
    """The base model: any causal LM that transformers loads."""

    path: str = Field(
        "starter",
        description="folder, hub id, GGUF file, `starter` (the bundled model; `starter-step50` and `starter-step200` are from "
        "earlier in its pretraining), or `smollm2` (of a package)",
    )
    revision: str | None = Field(None, description="hub revision (commit, tag or branch)")
    dtype: Literal["bf16", "fp32"] = Field("bf16", description="dtype of the weights and of the computation")
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "sdpa", description="attention implementation of transformers"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward to save memory")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model: only if you read it")
    adapter: str | None = Field(None, description="folder of a LoRA adapter to start from")
    quantization: Literal["nf4"] | None = Field(
        None,
        description="keep base weights in 4 bits while adapters train (QLoRA; linear modules, but the head): for GPUs, where "
        "nothing of it has run yet; it runs on CPUs too, slowly. Needs `pip install 'bft-ray[4bit]'`",
    )


class LoraConfig(Section):
    """Low-rank adapters (peft). Leave `lora` null for full fine-tuning."""

    rank: int = Field(16, ge=1, description="rank of the adapters")
    alpha: float = Field(32.0, gt=0, description="scale of the adapters (times 1/rank)")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout on the adapters' input; above 0 layout-invariance ends"
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="names (suffixes) of the modules that get an adapter, or all-linear"
    )


class OptimizerConfig(Section):
    """AdamW and gradient clipping."""

    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate")
    betas: list[float] = Field([0.9, 0.95], description="decay of the moments")
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay (matrices only)")
    max_grad_norm: float | None = Field(1.0, gt=0, description="clip the global gradient norm; null: no clipping")

    @model_validator(mode="after")
    def _betas_in_range(self) -> OptimizerConfig:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise rule("betas", self.betas, "two numbers in [0, 1)")
        return self


class ScheduleConfig(Section):
    """How long, and the course of the learning rate."""

    epochs: float = Field(
        3.0, gt=0, le=1e6, description="passes over the training data; not used when `steps` is given"
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    shape: Literal["cosine", "linear", "constant"] = Field("cosine", description="course after the warm-up")
    min_ratio: float = Field(0.0, ge=0, le=1, description="final rate as a share of the peak")


class CheckpointConfig(Section):
    """When to save, and what to keep."""

    every_steps: int | None = Field(
        None, ge=1, description="save every n steps; null: at each evaluation and at the end"
    )
    metric: Literal[
        "validation/nll", "validation/perplexity", "validation/token_accuracy", "validation/bits_per_byte"
    ] = Field("validation/nll", description="metric that decides which checkpoint is best")
    keep: int = Field(1, ge=1, description="best checkpoints kept, beside the last one")
    export: Literal["best", "last"] = Field("best", description="which of them is exported")
    merge_lora: bool = Field(False, description="export the merged model instead of the adapter")


class EvaluationConfig(Section):
    """What is measured, and when."""

    every_steps: int | None = Field(None, ge=1, description="evaluate every n steps; null: ten times a run")
    tasks: list[Task] = Field(default_factory=list, description="what else is measured with the trained model")
    before: bool = Field(True, description="measure the base model on them as well")
    batch_tokens: int = Field(8192, ge=2, description="token budget of an evaluation batch")

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationConfig:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise rule("tasks", names, "tasks with different names", "Give each its own `name`.")
        for name in _TAKEN.intersection(names):
            raise rule("tasks", names, f"tasks of other names: `{name}/` is already the prefix of metrics")
        return self


class TrackingConfig(Section):
    """MLflow."""

    uri: str = Field(
        default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db",
        description="tracking server or database; left out: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db",
    )
    experiment: str | None = Field(None, description="experiment; null: bft/<domain>")
    tags: dict[str, str] = Field(default_factory=dict, description="further tags of the run")
    timeout_s: float = Field(20.0, gt=0, description="longest wait for the server before the run is refused")
    log_model: bool = Field(True, description="log the exported model as an MLflow logged model")
    system_metrics: bool = Field(False, description="log CPU, memory and GPU use")
    profile_steps: int = Field(
        0,
        ge=0,
        le=50,
        description="profile this many steps after the first two: a trace, and a table of the time by operation",
    )


class Config(Section):
    """One fine-tuning run, whole."""

    domain: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=100, description="biomedical sub-domain, e.g. gene_interaction"
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=100,
        description="run name; the same name resumes a run",
    )
    seed: int = seed_field(description="of the batch order, LoRA initialisation and dropout")
    model: ModelConfig = ModelConfig()
    lora: LoraConfig | None = None
    data: DataConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)

    @model_validator(mode="after")
    def _rules(self) -> Config:
        if self.deepspeed.preset == "zero0" and self.model.dtype == "bf16":
            raise rule(
                "deepspeed.preset",
                "zero0",
                "zero1 to zero3 with model.dtype=bf16, because zero0 keeps no fp32 master weights",
                "Use zero1 (it needs no more memory on one GPU), or model.dtype=fp32.",
            )
        if self.model.adapter and self.lora:
            raise rule("lora", "set", "null when model.adapter is given", "The adapter brings its own LoRA settings.")
        if self.loss.anchor and self.model.adapter:
            raise rule("loss.anchor", self.loss.anchor, *ANCHORED_ADAPTER)
        if self.loss.anchor and not self.lora and self.deepspeed.preset == "zero3":
            raise rule(
                "loss.anchor",
                self.loss.anchor,
                "0 where all weights train under zero3, which cuts them over the ranks before a copy could be made",
                "Train adapters (`lora`), whose anchor needs no copy, or use zero2.",
            )
        if self.evaluation.batch_tokens < self.data.max_length:
            raise rule(
                "evaluation.batch_tokens",
                self.evaluation.batch_tokens,
                f"at least data.max_length ({self.data.max_length})",
                "Raise it, or lower data.max_length.",
            )
        if self.cluster.num_workers > self.data.global_batch_size:
            raise rule(
                "cluster.num_workers",
                self.cluster.num_workers,
                f"at most data.global_batch_size ({self.data.global_batch_size}): every rank needs a sample",
                "Use fewer workers or a larger global batch.",
            )
        return self

    @model_validator(mode="after")
    def _trains_what_is_plain(self) -> Config:
        if self.model.quantization and not self.lora and not self.model.adapter:
            raise rule(
                "model.quantization",
                self.model.quantization,
                "null where all weights train: no step is as small as those between 4-bit weights",
                "Train adapters (`lora`, or model.adapter to go on with one).",
            )
        if self.model.quantization and self.deepspeed.preset == "zero3":
            raise rule(
                "deepspeed.preset",
                "zero3",
                "zero0 to zero2 with model.quantization: ZeRO-3 would cut 4-bit weights apart from their scales",
                "Use zero2; the weights that zero3 would share out take a quarter of their bf16 size.",
            )
        return self

    @model_validator(mode="after")
    def _exports_what_is_measured(self) -> Config:
        if not self.data.validation and self.checkpoint.export == "best":
            raise rule(
                "checkpoint.export",
                "best",
                f"`last` without validation data, because `{self.checkpoint.metric}` is not measured",
                "Add data.validation, or set checkpoint.export=last.",
            )
        return self

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment."""
        return self.tracking.experiment or f"bft/{self.domain}"

    def exported(self, path: str) -> ModelConfig:
        """How what a run of this config has exported is loaded: an adapter on the base that it was trained on, and a merged
        model as it is, not in 4 bits.

        Args:
            path: folder of the export, or its URI.
        """
        changed: dict[str, Any] = {"path": path, "adapter": None}
        if self.checkpoint.merge_lora:
            changed["quantization"] = None
        if self.checkpoint.merge_lora or not (self.lora or self.model.adapter):
            changed["revision"] = None  # the hub's; the base of an adapter still has it
        return self.model.model_copy(update=changed)


class ConfigToMeasure(Config):
    """A config as an evaluation needs it: without training data, and without a rule on checkpoints."""

    data: DataToMeasure = DataToMeasure()  # type: ignore[assignment]

    @model_validator(mode="after")
    def _trains_what_is_plain(self) -> ConfigToMeasure:
        return self

    @model_validator(mode="after")
    def _exports_what_is_measured(self) -> ConfigToMeasure:
        return self
