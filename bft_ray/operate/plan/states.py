"""Bytes that weights, gradients, optimizer and DeepSpeed's buffers take on each GPU, by ZeRO stage and offload.

P parameters, T of them trained, N workers, w bytes of a weight (2: bf16, 4: fp32), s elements of weights that ZeRO-3
never partitions, B = min(reduce_bucket_size, T), G = min(P - s, stage3_max_live_parameters):

    term        zero0   zero1    zero2          zero3
    weights     w P     w P      w P            w P / N + w s
    master      0       4 T / N  4 T / N        4 T / N             the fp32 copy that AdamW updates
    moments     8 T     8 T / N  8 T / N        8 T / N             AdamW's two, in fp32
    gradients   w T     w T      4 T / N        4 T / N
    buckets     0       w B      (1 + o) w B    w B                 o: 1 with overlap_comm
    gathered    0       0        0              w G (N > 1)         weights of other workers, while they are used
    anchor      w P     w P      w P            -                   the starting weights, with `loss.anchor` and without LoRA

With `model.quantization` Q of the P parameters are in 4 bits, w P is w (P - Q) + 33/64 Q and little more, and ZeRO-3 is refused.

These live beside the activations. In the update, without them: a copy of what is reduced, zero0 to 2 w B more, zero3 the
partition and its sum, w B (1 + 1/N); or the gradient of a partition in fp32, 4 T / N, in zero1 of bf16 w T / N more. A peak
is the larger of the two.

Sources: Rajbhandari et al. (ZeRO, arXiv 1910.02054, section 3: 2, 2 and 12 bytes a parameter); Rajbhandari et al.
(ZeRO-Infinity, arXiv 2104.07857) for offload; buckets, gathered weights and copies as DeepSpeed 0.19.8 allocates them
(`runtime/zero/stage_1_and_2.py`, `stage3.py`), and as measured (`tests/operate/test_plan.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bft_ray.config import Config
from bft_ray.model.quantized import packed_bytes, packed_weights
from bft_ray.train.settings import BUCKET_ELEMENTS, deepspeed_settings

PERSISTENT_ELEMENTS = 100_000  # DeepSpeed's stage3_param_persistence_threshold
LIVE_ELEMENTS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
FETCHED_ELEMENTS = 50_000_000  # DeepSpeed's stage3_prefetch_bucket_size: gathered together, and copied apart


@dataclass(frozen=True)
class Sizes:
    """Elements of a model.

    Args:
        parameters: all, tied ones once.
        trained: that get a gradient.
        persistent: that ZeRO-3 keeps whole on each worker: tensors of few elements.
        word_bytes: of a weight.
        packed: of them in 4-bit weights (`model.quantization`).
        packed_bytes: that these take.
    """

    parameters: int
    trained: int
    persistent: int
    word_bytes: int
    packed: int = 0
    packed_bytes: int = 0

    @property
    def weights_bytes(self) -> int:
        """Of all weights."""
        return self.word_bytes * (self.parameters - self.packed) + self.packed_bytes


@dataclass(frozen=True)
class States:
    """Bytes on each worker: by term on its GPU, beside the activations; in the update; and in the memory of its host."""

    held: dict[str, int]
    beside_activations: dict[str, int]
    update_bytes: int
    host_bytes: int

    def peak_bytes(self, activations_bytes: int) -> int:
        """Most bytes at once on the GPU."""
        during = sum(self.beside_activations.values()) + activations_bytes
        return sum(self.held.values()) + max(during, self.update_bytes)


def sizes_of(model: Any, overlay: dict[str, Any], is_packed: bool = False) -> Sizes:
    """Counted on a model without data, whose linear modules are plain ones here.

    Args:
        is_packed: their weights will be in 4 bits.
    """
    limit = overlay.get("zero_optimization", {}).get("stage3_param_persistence_threshold", PERSISTENT_ELEMENTS)
    parameters = list(model.parameters())
    packed = [weight.numel() for weight in packed_weights(model)] if is_packed else []
    return Sizes(
        parameters=sum(own.numel() for own in parameters),
        trained=sum(own.numel() for own in parameters if own.requires_grad),
        persistent=sum(own.numel() for own in parameters if own.numel() <= limit),
        word_bytes=parameters[0].element_size(),
        packed=sum(packed),
        packed_bytes=sum(map(packed_bytes, packed)),
    )


def states(config: Config, sizes: Sizes) -> States:
    """What a worker of a config holds; `deepspeed.overlay` counts.

    With `deepspeed.offload` master weights, moments and the gradients of a partition are in the memory of the host, with
    `all` the partitions of the weights too.
    """
    zero = deepspeed_settings(config, sizes.trained)["zero_optimization"]
    stage, workers, word = int(zero["stage"]), config.cluster.num_workers, sizes.word_bytes
    part = -(-sizes.trained // workers) if stage else sizes.trained
    bucket = word * min(int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS)), sizes.trained)
    away = config.deepspeed.offload != "none"
    host = {}

    held = {"weights": sizes.weights_bytes, "master": 4 * part if stage else 0, "moments": 8 * part}
    held["gradients"] = word * sizes.trained if stage < 2 else 4 * part
    if config.loss.anchor and config.lora is None:
        held["anchor"] = word * sizes.parameters
    beside = {"buckets": 0 if not stage else bucket * (2 if stage == 2 and zero.get("overlap_comm") else 1)}
    update = bucket + beside["buckets"]
    if stage == 1:
        update = max(update, (4 if word == 4 else 4 + word) * part)
    elif stage == 2:
        update = max(update, 4 * part)
    elif stage == 3:
        live = min(sizes.parameters - sizes.persistent, int(zero.get("stage3_max_live_parameters", LIVE_ELEMENTS)))
        beside["gathered"] = word * live if workers > 1 or config.deepspeed.offload == "all" else 0
        shard = word * -(-sizes.parameters // workers)
        held["weights"] = shard + word * sizes.persistent * (workers > 1)
        fetched = word * min(live, int(zero.get("stage3_prefetch_bucket_size", FETCHED_ELEMENTS)))
        update = max(update + bucket // workers, beside["buckets"] + fetched) + beside["gathered"]
        if config.deepspeed.offload == "all":
            held["weights"] -= shard
            host["weights"] = shard
    if away:
        host |= {"master": held.pop("master"), "moments": held.pop("moments"), "gradients": 4 * part}
        if stage >= 2:
            held.pop("gradients")
        host["copies"] = word * part
        update = bucket + sum(beside.values())  # AdamW itself runs on the host
    return States(held, beside, update, sum(host.values()))
