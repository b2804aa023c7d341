"""Set-ups of a run and what each holds: that of its config, the smallest that fits a GPU, and the recommended one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bft_ray.config import Config, LoraConfig
from bft_ray.model.causal_lm import adapter_of
from bft_ray.model.check import check_length, describe
from bft_ray.model.quantized import require_plain
from bft_ray.model.safe import read_adapter_config
from bft_ray.operate.plan.states import Sizes, States, sizes_of, states
from bft_ray.operate.plan.trace import Shape, built, traced_bytes
from bft_ray.waits import waiting

GIB = 1 << 30
#: Share of a GPU's memory that tensors may take: the plan is within 15 % of what tensors take, and CUDA's context,
#: workspaces and gaps between blocks need the rest.
USABLE = 0.85
NUM_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WITHOUT_OFFLOAD = ((("zero1", "none"), ("zero2", "none"), ("zero3", "none")),)
_WITH_OFFLOAD = ((("zero2", "optimizer"),), (("zero3", "all"),))


@dataclass(frozen=True)
class Setup:
    """What of a config changes its memory."""

    lora: bool
    preset: str
    offload: str
    checkpointing: bool
    num_workers: int
    micro_batch_tokens: int

    @classmethod
    def of(cls, config: Config) -> Setup:
        """That of a config."""
        return cls(
            lora=bool(config.lora or config.model.adapter),
            preset=config.deepspeed.preset,
            offload=config.deepspeed.offload,
            checkpointing=config.model.gradient_checkpointing,
            num_workers=config.cluster.num_workers,
            micro_batch_tokens=config.data.micro_batch_tokens,
        )

    def overrides(self) -> list[str]:
        """The fields of a config that make it."""
        return [
            f"deepspeed.preset={self.preset}",
            f"deepspeed.offload={self.offload}",
            f"model.gradient_checkpointing={str(self.checkpointing).lower()}",
            f"cluster.num_workers={self.num_workers}",
            f"data.micro_batch_tokens={self.micro_batch_tokens}",
        ]


@dataclass(frozen=True)
class Need:
    """What a set-up holds at its peak, on each GPU and for each worker in the memory of its host."""

    setup: Setup
    states: States
    activations_bytes: int

    @property
    def gpu_bytes(self) -> int:
        """Most bytes of a GPU at a time."""
        return self.states.peak_bytes(self.activations_bytes)

    def fits(self, memory_bytes: float) -> bool:
        """Whether a GPU of so many bytes holds it, with room to spare."""
        return self.gpu_bytes <= USABLE * memory_bytes


@dataclass
class Planner:
    """The needs of one config in other set-ups. A pass is traced once for each shape that differs, in seconds.

    Args:
        is_gpu: whether it trains on GPUs: samples are packed there, and blocks of the head are larger.

    Attributes:
        described: the configuration of the model.
        notes: sentences on what may surprise.
    """

    config: Config
    is_gpu: bool
    described: Any = field(init=False)
    notes: list[str] = field(init=False)
    _sizes: dict[bool, Sizes] = field(default_factory=dict)
    _traced: dict[tuple[bool, bool, Shape], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.described = describe(self.config)
        require_plain(self.described, self.config.model)
        self.notes = check_length(self.config, self.described, built(self.config, self.described, None))

    def need(self, setup: Setup) -> Need:
        """Raises BadInput for a model that cannot be read, or a LoRA target that names no module."""
        shape = self._shape(setup)
        key = setup.lora, setup.checkpointing, shape
        if key not in self._traced:
            with waiting("tracing a forward and a backward pass"):
                self._traced[key] = traced_bytes(
                    self.config,
                    self.described,
                    self._adapters(setup.lora),
                    checkpointing=setup.checkpointing,
                    shape=shape,
                    is_gpu=self.is_gpu,
                )
        return Need(setup, states(self._with(setup), self.sizes(setup.lora)), self._traced[key])

    def may_be(self, lora: bool, preset: str) -> bool:
        """Whether the weights of the config may be under this ZeRO stage; without LoRA they are never in 4 bits."""
        return not (lora and self.config.model.quantization and preset == "zero3")

    def sizes(self, lora: bool) -> Sizes:
        """Elements of the model, with adapters or without."""
        if lora not in self._sizes:
            model = built(self.config, self.described, self._adapters(lora))
            is_packed = lora and self.config.model.quantization is not None
            self._sizes[lora] = sizes_of(model, self.config.deepspeed.overlay, is_packed)
        return self._sizes[lora]

    def smallest(self, lora: bool, memory_bytes: float, most_workers: int) -> Need | None:
        """The fewest GPUs, by whatever means: what `recommended` may do first, and offload last."""
        return self._first(self._candidates(lora, most_workers, (*_WITHOUT_OFFLOAD, *_WITH_OFFLOAD)), memory_bytes)

    def recommended(self, lora: bool, memory_bytes: float, most_workers: int) -> Need | None:
        """The fewest GPUs without offload, and of those what costs least time: the config's own token budget before one
        sample a micro-batch, kept activations before checkpointing, the lowest stage.
        """
        return self._first(self._candidates(lora, most_workers, _WITHOUT_OFFLOAD), memory_bytes)

    def _candidates(
        self, lora: bool, most_workers: int, stages: Sequence[Sequence[tuple[str, str]]]
    ) -> Iterator[Setup]:
        """From the fewest GPUs to the most; with each number of them, the cheapest in time first."""
        data = self.config.data
        budgets = dict.fromkeys((data.micro_batch_tokens, data.max_length))
        most = min(most_workers, data.global_batch_size)
        for workers in [number for number in NUM_WORKERS if number <= most]:
            for group in stages:
                for tokens, checkpointing, (preset, offload) in itertools.product(budgets, (False, True), group):
                    if workers == 1 and offload == "none" and preset != "zero1":
                        continue  # there is nothing to share out
                    if not self.may_be(lora, preset):
                        continue
                    yield Setup(lora, preset, offload, checkpointing, workers, tokens)

    def _first(self, candidates: Iterator[Setup], memory_bytes: float) -> Need | None:
        for setup in candidates:
            alone = states(self._with(setup), self.sizes(setup.lora)).peak_bytes(0)
            if alone <= USABLE * memory_bytes and (need := self.need(setup)).fits(memory_bytes):
                return need
        return None

    def _adapters(self, lora: bool) -> LoraConfig | None:
        return (self.config.lora or adapter_settings(self.config)) if lora else None

    def _with(self, setup: Setup) -> Config:
        config = self.config
        return config.model_copy(
            update={
                "deepspeed": config.deepspeed.model_copy(update={"preset": setup.preset, "offload": setup.offload}),
                "cluster": config.cluster.model_copy(update={"num_workers": setup.num_workers}),
            }
        )

    def _shape(self, setup: Setup) -> Shape:
        """The largest micro-batch that the budget, the batch and the workers allow, of samples of the greatest length."""
        data = self.config.data
        own = -(-data.global_batch_size // setup.num_workers)
        rows = max(1, min(setup.micro_batch_tokens // data.max_length, own, data.micro_batch_size or own))
        packing = data.packing if data.packing is not None else self.is_gpu and self.config.model.attention != "eager"
        return Shape(rows, data.max_length, packing and rows > 1)


def adapter_settings(config: Config) -> LoraConfig:
    """The adapters that a config starts from; the defaults of `lora` where it has none."""
    _, adapter = adapter_of(config.model)
    if not adapter:
        return LoraConfig()
    saved = read_adapter_config(Path(adapter), "model.adapter")
    targets = saved["target_modules"]
    return LoraConfig(rank=saved["r"], targets=targets if targets == "all-linear" else sorted(targets))
