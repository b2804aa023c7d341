"""The typed config tree: one section a subject, every field with its unit and one line of help."""

from __future__ import annotations

import datetime
import os
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from bft_ray.config.base import Section, file_field, rule
from bft_ray.config.loss import LossConfig
from bft_ray.config.profile import ProfileConfig
from bft_ray.config.tasks import Task
from bft_ray.config.wrong import WrongConfig

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


class SourceConfig(Section):
    """One source of rows."""

    path: str = file_field(
        description="JSONL, JSON, CSV or Parquet file, saved datasets folder, hub id, or starter:DOMAIN/SPLIT"
    )
    split: str | None = Field(None, description="split of a hub dataset or saved DatasetDict")
    config_name: str | None = Field(None, description="configuration name of a hub dataset")
    revision: str | None = Field(None, description="hub revision of the dataset")
    ratio: float = Field(
        1.0, gt=0, description="times that this source is seen in one epoch of the mixture (0.5: half of it)"
    )
    form: str = Field(
        "auto", description="form of the rows, such as alpaca or sharegpt; auto: recognised by the columns"
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="canonical field (id, group, prompt, completion, messages, tools, text, ...) -> column of the file, "
        'or a template such as "{Question}\\n\\nContext: {context}"',
    )
    limit: int | None = Field(None, ge=1, description="read at most this many rows")
    wrong: WrongConfig = Field(WrongConfig(), description="wrong answers on purpose, for studies of noise")


class DataConfig(Section):
    """The rows, how they become tokens, and how a global batch is cut into micro-batches."""

    train: list[SourceConfig] = Field(min_length=1, description="training sources")
    validation: list[SourceConfig] = Field(default_factory=list, description="sources of the validation NLL")
    template: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="chat: the tokenizer's template; plain: prompt, newline, completion; auto: chat if there is one",
    )
    max_length: int = Field(2048, ge=2, description="longest sample, in tokens")
    too_long: Literal["truncate", "drop", "error"] = Field("truncate", description="what to do with longer samples")
    global_batch_size: int = Field(16, ge=1, description="samples a step, over all workers")
    micro_batch_tokens: int = Field(
        8192, ge=2, description="token budget of a micro-batch (memory); results do not depend on it"
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="at most this many samples a micro-batch; null: no limit"
    )
    packing: bool | None = Field(
        None,
        description="lay samples end to end in one row without padding; null: where that is exact for this model, and "
        "faster (on a GPU); the choice is kept with the run or study",
    )
    shuffle: bool = Field(True, description="draw a new order each epoch, from `seed`")
    date: str | None = Field(
        None,
        description="today's date for a chat template that shows it, YYYY-MM-DD; null: that of the first start",
    )
    cache_dir: str | None = Field(None, description="folder of the tokenised data; null: ~/.cache/bft_ray")
    keep_tokens: bool = Field(
        True,
        description="keep the tokenised data there for later commands; false: nothing of the rows stays: they are in a "
        "temporary folder (in cache_dir, or else in TMPDIR) until the command ends; each command tokenises them again, and "
        "each process of another machine for itself",
    )

    @field_validator("date", mode="before")
    @classmethod
    def _date_as_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime.date) else value  # as YAML reads it

    @model_validator(mode="after")
    def _date_is_one(self) -> DataConfig:
        try:
            is_one = self.date is None or datetime.date.fromisoformat(self.date).isoformat() == self.date
        except ValueError:
            is_one = False
        if not is_one:
            raise rule("date", self.date, "a day of the calendar, as YYYY-MM-DD")
        return self

    @model_validator(mode="after")
    def _budget_holds_a_sample(self) -> DataConfig:
        if self.micro_batch_tokens < self.max_length:
            raise rule(
                "micro_batch_tokens",
                self.micro_batch_tokens,
                f"at least data.max_length ({self.max_length}), so that the longest sample fits into a micro-batch",
                "Raise it, or lower data.max_length.",
            )
        return self


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

    epochs: float = Field(3.0, gt=0, description="passes over the training data; not used when `steps` is given")
    steps: int | None = Field(None, ge=1, description="optimizer steps")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    shape: Literal["cosine", "linear", "constant"] = Field("cosine", description="course after the warm-up")
    min_ratio: float = Field(0.0, ge=0, le=1, description="final rate as a share of the peak")


class DeepSpeedConfig(Section):
    """The DeepSpeed engine: a named preset and, where you must, raw settings on top."""

    preset: Literal["zero0", "zero1", "zero2", "zero3"] = Field("zero2", description="ZeRO stage")
    offload: Literal["none", "optimizer", "all"] = Field(
        "none", description="keep optimizer states (zero1-3) or also parameters (zero3) in CPU memory"
    )
    overlay: dict[str, Any] = Field(default_factory=dict, description="raw DeepSpeed settings merged over the preset")

    @model_validator(mode="after")
    def _rules(self) -> DeepSpeedConfig:
        if self.offload == "optimizer" and self.preset == "zero0":
            raise rule("offload", self.offload, "none with zero0", "Use preset zero2 or zero3.")
        if self.offload == "all" and self.preset != "zero3":
            raise rule("offload", self.offload, "none or optimizer below zero3", "Use preset zero3.")
        owned = {
            "train_batch_size": "data.global_batch_size",
            "train_micro_batch_size_per_gpu": "data.micro_batch_tokens",
            "gradient_accumulation_steps": "data.micro_batch_tokens",
            "gradient_clipping": "optimizer.max_grad_norm",
            "optimizer": "the optimizer section",
            "scheduler": "the schedule section",
            "bf16": "model.dtype",
            "fp16": "model.dtype",
            "torch_autocast": "model.dtype",
        }
        for key in self.overlay:
            if key in owned:
                raise rule(
                    f"overlay.{key}", self.overlay[key], "left out: bft-ray sets it", f"Use {owned[key]} instead."
                )
        if isinstance(zero := self.overlay.get("zero_optimization"), dict) and "stage" in zero:
            raise rule(
                "overlay.zero_optimization.stage",
                zero["stage"],
                "left out: the preset sets it",
                "Use deepspeed.preset.",
            )
        return self


class ClusterConfig(Section):
    """Ray: where, how many workers, what each gets, where results go, and what happens on failure."""

    address: str | None = Field(None, description="Ray address (auto, host:port, ray://host:port); null: a local Ray")
    num_workers: int = Field(
        1,
        ge=1,
        description="training workers (ranks); [least, most]: as many of them as there is room for, see min_workers",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="least training workers: training goes on with as few after a loss, and grows again up to num_workers; "
        "null: always num_workers",
    )
    resize_interval_s: float = Field(
        60.0, ge=0, description="how often to look whether there is room for more workers, where min_workers is given"
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="CPU cores reserved for each worker; also its threads on CPU")
    gpus_per_worker: float | None = Field(
        None, ge=0, le=1, description="GPUs a worker; null: 1 where the cluster has GPUs, else 0"
    )
    resources_per_worker: dict[str, float] = Field(default_factory=dict, description="further Ray resources a worker")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray placement strategy"
    )
    priority: float = Field(
        1.0,
        gt=0,
        description="weight of a study among those that run on the cluster at the same time: twice, twice the places",
    )
    storage_path: str = Field(
        "bft_results", description="folder or URI (s3://, gs://) of results; shared by all nodes of a cluster"
    )
    file_mode: Literal["owner", "group"] = Field(
        "owner",
        description="who may read and write what is left: its user alone (0700, 0600), or the group (0770, 0660)",
    )
    worker_logs: bool = Field(False, description="show what workers print; it is in Ray's log folder in any case")
    max_failures: int = Field(3, ge=0, description="restarts from the last checkpoint before the run fails")
    start_timeout_s: float = Field(300.0, gt=0, description="longest wait for resources and for workers to start")
    collective_timeout_s: float = Field(600.0, gt=0, description="longest wait of a rank for the others")

    @model_validator(mode="after")
    def _address_is_plain(self) -> ClusterConfig:
        scheme, is_uri, place = self.storage_path.partition("://")
        if is_uri and not place.strip("/"):
            raise rule("storage_path", self.storage_path, f"{scheme}://BUCKET/FOLDER", "Name the bucket.")
        if is_uri and ("?" in place or (":" in place.partition("/")[0].partition("@")[0] and "@" in place)):
            raise rule(
                "storage_path",
                f"{scheme}://...",  # a secret in it would be shown
                f"{scheme}://BUCKET/FOLDER, without keys and ?options: it is kept in records, checkpoints and MLflow",
                "Give keys and endpoint in the environment of the command and of every node: AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL.",
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _split_range(cls, given: Any) -> Any:
        """`num_workers: [least, most]`, as Ray Train writes it, sets both fields."""
        if not isinstance(given, dict) or not isinstance(given.get("num_workers"), list | tuple):
            return given
        if len(given["num_workers"]) != 2 or given.get("min_workers") is not None:
            rest = "" if given.get("min_workers") is None else ", and cluster.min_workers left out"
            raise rule("num_workers", given["num_workers"], f"a number, or [least, most]{rest}")
        least, most = given["num_workers"]
        return given | {"min_workers": least, "num_workers": most}

    @model_validator(mode="after")
    def _least_is_least(self) -> ClusterConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise rule("min_workers", self.min_workers, f"at most cluster.num_workers ({self.num_workers})")
        return self

    @property
    def least_workers(self) -> int:
        """Fewest workers that training runs with."""
        return self.num_workers if self.min_workers is None else self.min_workers


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
    seed: int = Field(0, ge=0, description="of the batch order, LoRA initialisation and dropout")
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


class DataToMeasure(DataConfig):
    """The rows of an evaluation: nothing is trained on."""

    train: list[SourceConfig] = Field(default_factory=list, description="training sources; not read")


class ConfigToMeasure(Config):
    """A config as an evaluation needs it: without training data, and without a rule on checkpoints."""

    data: DataToMeasure = DataToMeasure()  # type: ignore[assignment]

    @model_validator(mode="after")
    def _exports_what_is_measured(self) -> ConfigToMeasure:
        return self
