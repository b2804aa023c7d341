"""The machines of a run: Ray's workers, where results go, and the DeepSpeed engine that shares memory among them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule


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
