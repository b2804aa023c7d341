"""The settings of a study that follow from rows, model and device."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bft_ray.space.draft import PUBLISHED_WINDOW

_LONGEST = 4096  # tokens a row, where the model's limit is not known
#: names of the largest number of tokens in configurations: Llama, GPT-2, MPT
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
#: of a micro-batch: beyond them little gets faster (SmolLM2 on a CPU: 2,048 are 6 % faster than 1,536, and take 16 % more)
_CPU_TOKENS, _GPU_TOKENS = 1024, 8192
#: training rows from which on -> (epochs, rows a step)
_COURSE = ((20_000, 1.0, 64), (5_000, 2.0, 32), (160, 3.0, 16))


@dataclass(frozen=True)
class Device:
    """The device that trains: a GPU or a number of cores, with or without bf16 that pays."""

    is_gpu: bool
    has_bf16: bool
    num_cores: int

    @classmethod
    def here(cls) -> Device:
        """The device of this machine."""
        import torch

        from bft_ray.model.cpu import SLOW, bf16_slowdown

        is_gpu = torch.cuda.is_available()
        has_bf16 = torch.cuda.is_bf16_supported() if is_gpu else bf16_slowdown() < SLOW
        return cls(is_gpu, has_bf16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Settings:
    """Fields of the config that are not the same for everyone."""

    dtype: str
    lora: bool
    rates: tuple[float, ...]  # ascending; the middle one is the config's
    window: int
    max_length: int
    batch: int
    epochs: float
    micro_batch_tokens: int
    cpus_per_worker: float


def max_length_for(row_tokens: Sequence[int], model: str) -> int:
    """Tokens that a row may have: a quarter more than the 99th percentile (an estimate may be low, a chat template adds
    some), but no more than the model takes.
    """
    needed = 1.25 * quantile(row_tokens, 0.99) + 32
    return min(longest_positions(model), max(256, 128 * math.ceil(needed / 128)))


def settings_for(row_tokens: Sequence[int], windows: Sequence[int], model: str, device: Device) -> Settings:
    """Settings for training rows of these estimated lengths (tokens, ascending), the model and the device.

    - the starter is trained whole, in fp32; any other model with LoRA, in bf16 where the device has it, at a rate
      that suits adapters;
    - the window is the published one where it slides at all, else the middle one of those that do;
    - the more rows, the fewer passes and the larger the batch; of few rows a batch has a tenth.
    """
    num_train, max_length = len(row_tokens), max_length_for(row_tokens, model)
    is_starter = model == "starter"
    epochs, batch = next(
        ((epochs, batch) for least, epochs, batch in _COURSE if num_train >= least), (3.0, max(1, num_train // 10))
    )
    return Settings(
        dtype="fp32" if is_starter or not device.has_bf16 else "bf16",
        lora=not is_starter,
        rates=(0.0003, 0.001, 0.003) if is_starter else (0.0001, 0.0003, 0.001),
        window=PUBLISHED_WINDOW if PUBLISHED_WINDOW in windows or not windows else windows[len(windows) // 2],
        max_length=max_length,
        batch=batch,
        epochs=epochs,
        micro_batch_tokens=max(max_length, _GPU_TOKENS if device.is_gpu else _CPU_TOKENS),
        cpus_per_worker=1.0 if is_starter or device.is_gpu else float(min(4, device.num_cores)),
    )


def longest_positions(model: str) -> int:
    """Tokens that a model takes, at most 4,096; as many where its config is not on this machine."""
    from bft_ray.model.causal_lm import resolve_model

    path = Path(resolve_model(model)) / "config.json"
    if not path.is_file():
        return _LONGEST
    whole = json.loads(path.read_text())
    described = whole | (whole.get("text_config") or {})  # of a model of text and pictures
    return min([_LONGEST, *(described[name] for name in _POSITIONS if isinstance(described.get(name), int))])


def quantile(values: Sequence[int], share: float) -> int:
    """The value of ascending ones that this share of them does not exceed."""
    return values[min(len(values) - 1, math.floor(share * len(values)))]
