"""The module that DeepSpeed wraps: a causal LM that turns a micro-batch into loss sums, never into logits."""

from __future__ import annotations

from torch import Tensor, nn

from bft_ray.config import LossConfig
from bft_ray.data.pack import MicroBatch
from bft_ray.loss import LossSums, Supervised, fused_row_sums
from bft_ray.model.halves import Halves, check_halves, halves
from bft_ray.model.packing import Layouts, measure_layouts
from bft_ray.train.profiling import phase


class LossModel(nn.Module):
    """`model`, called with a micro-batch and the loss settings."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.loss = _FusedHead(halves(model))
        self.layouts: Layouts | None = None  # what the call without a micro-batch has measured

    def forward(self, micro: MicroBatch | None, config: LossConfig | None) -> LossSums | None:
        """Loss sums of a micro-batch. Without one the model is tried (see `check_halves`, `measure_layouts`)."""
        if micro is None or config is None:
            device = next(self.parameters()).device
            check_halves(self.model, device)
            is_partitioned = any(hasattr(parameter, "ds_id") for parameter in self.parameters())
            self.layouts = measure_layouts(self.model, device, gradients=not is_partitioned)
            return None
        with phase("decoder"):
            hidden = self.loss.halves.hidden(micro.input_ids, micro.position_ids, None)
        with phase("head"):
            return self.loss(hidden, micro, config)


class _FusedHead(nn.Module):
    """The head and the loss. A module of its own, so that ZeRO-3 gathers the head once, for as long as it runs."""

    def __init__(self, parts: Halves):
        super().__init__()
        self.halves = parts  # modules within a dataclass: they stay the model's, and stand once in its state
        if any(hasattr(parameter, "ds_id") for parameter in parts.parameters()):
            from deepspeed.runtime.zero import register_external_parameter

            for parameter in parts.parameters():
                register_external_parameter(self, parameter)

    def forward(self, hidden: Tensor, micro: MicroBatch, config: LossConfig) -> LossSums:
        x, weight, bias = self.halves.operands(hidden.flatten(0, 1))
        return fused_row_sums(
            x,
            weight,
            Supervised(micro.position, micro.sample, micro.target, micro.lengths),
            micro.num_samples,
            config,
            bias=bias,
            logit_scale=self.halves.scale,
            softcap=self.halves.softcap,
        )
