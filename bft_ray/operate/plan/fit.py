"""Whether what a config asks for fits: the answer of `doctor` and of a dry run, before a GPU is spent."""

from __future__ import annotations

from dataclasses import dataclass

from bft_ray.config import Config
from bft_ray.operate.finding import Status
from bft_ray.operate.machine import memory_bytes
from bft_ray.operate.plan.setups import GIB, USABLE, Need, Planner, Setup
from bft_ray.workers.address import address_of


@dataclass(frozen=True)
class Fit:
    """What a config needs, and has.

    Args:
        has_bytes: memory of the smallest GPU here; on a CPU, of the machine for each worker. None: not known here.
        remedy: a set-up that fits, as fields of a config; "" where none is known.
    """

    need: Need
    is_gpu: bool
    has_bytes: float | None
    remedy: str = ""

    @property
    def status(self) -> Status:
        """`ok`; `warn`: more than the share that is safe; `fail`: more than there is."""
        if self.has_bytes is None or self.need.fits(self.has_bytes):
            return "ok"
        return "fail" if self.need.gpu_bytes > self.has_bytes else "warn"

    def __str__(self) -> str:
        where = "on each GPU" if self.is_gpu else "for each worker"
        text = f"{size(self.need.gpu_bytes)} of tensors {where} at the peak of a step (computed)"
        if self.need.states.host_bytes:
            text += f", {size(self.need.states.host_bytes)} for each worker in the memory of its host"
        if self.has_bytes is None:
            return text
        word = {"ok": "fits", "warn": f"more than {USABLE:.0%}", "fail": "does not fit"}[self.status]
        return f"{text}, of {size(self.has_bytes)}: {word}"


def fit_of(config: Config) -> Fit:
    """Raises as `Planner.need`."""
    is_gpu = trains_on_gpus(config)
    planner = Planner(config, is_gpu)
    fit = Fit(planner.need(Setup.of(config)), is_gpu, available_bytes(config, is_gpu))
    if fit.status == "ok" or not is_gpu or fit.has_bytes is None:
        return fit
    better = planner.recommended(fit.need.setup.lora, fit.has_bytes, config.data.global_batch_size)
    return fit if better is None else Fit(fit.need, is_gpu, fit.has_bytes, " ".join(better.setup.overrides()))


def trains_on_gpus(config: Config) -> bool:
    """Whether workers get a GPU, as far as is known here: a cluster that is not asked is taken to have some."""
    import torch

    asked = config.cluster.gpus_per_worker
    if asked is not None:
        return asked > 0
    return torch.cuda.is_available() or address_of(config.cluster) is not None


def available_bytes(config: Config, is_gpu: bool) -> float | None:
    """Memory for each worker on this machine; None where the workers are elsewhere."""
    import torch

    if address_of(config.cluster) is not None:
        return None
    if not is_gpu:
        return memory_bytes() / config.cluster.num_workers
    if not torch.cuda.is_available():
        return None
    smallest = min(torch.cuda.get_device_properties(one).total_memory for one in range(torch.cuda.device_count()))
    return smallest * (config.cluster.gpus_per_worker or 1.0)


def size(count: float) -> str:
    """`19.6 GiB`, `31.0 MiB`."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 2 else f"{count / (1 << 20):.1f} MiB"
