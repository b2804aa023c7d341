"""The module that DeepSpeed wraps: a causal LM that turns a micro-batch into loss sums, never into logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bft_ray.config import LossConfig
from bft_ray.data.pack import MicroBatch
from bft_ray.loss import LossSums, Supervised, fused_row_sums, target_logp
from bft_ray.model.halves import Halves, check_halves, halves
from bft_ray.model.layouts import Layouts, measure_layouts
from bft_ray.model.start_logps import TOP_K
from bft_ray.train.anchor import StartingWeights
from bft_ray.train.profiling import phase


class LossModel(nn.Module):
    """`model`, called with a micro-batch and the loss settings.

    Args:
        start: the starting weights, which an anchor reads.
    """

    def __init__(self, model: nn.Module, start: StartingWeights | None = None):
        super().__init__()
        self.model = model
        self.loss = _FusedHead(halves(model), start)
        self.layouts: Layouts | None = None  # what the call without a micro-batch has measured
        self._start = start  # no module: a copy is neither trained nor saved

    def forward(
        self, micro: MicroBatch | None, config: LossConfig | None
    ) -> LossSums | tuple[Tensor, Tensor | None] | None:
        """Loss sums of a micro-batch; without settings its log-probabilities and relative entropies [N]. Without a
        micro-batch the model is tried (see `check_halves`, `measure_layouts`).
        """
        if micro is None:
            device = next(self.parameters()).device
            check_halves(self.model, device)
            is_partitioned = any(hasattr(parameter, "ds_id") for parameter in self.parameters())
            self.layouts = measure_layouts(self.model, device, gradients=not is_partitioned)
            return None
        before = None
        if self._start is not None and config is not None and config.anchor:
            with phase("start"):
                before = self._start.hidden(micro)
        with phase("decoder"):
            hidden = self.loss.halves.hidden(micro.input_ids, micro.position_ids, None)
        with phase("head"):
            return self.loss(hidden, micro, config, before)


class _FusedHead(nn.Module):
    """The head and the loss. A module of its own, so that ZeRO-3 gathers the head once, for as long as it runs."""

    def __init__(self, parts: Halves, start: StartingWeights | None):
        super().__init__()
        self.halves = parts  # modules within a dataclass: they stay the model's, and stand once in its state
        self._start = start
        if any(hasattr(parameter, "ds_id") for parameter in parts.parameters()):
            from deepspeed.runtime.zero import register_external_parameter

            for parameter in parts.parameters():
                register_external_parameter(self, parameter)

    def forward(
        self, hidden: Tensor, micro: MicroBatch, config: LossConfig | None, before: Tensor | None
    ) -> LossSums | tuple[Tensor, Tensor | None]:
        """
        Args:
            before: [B, T, D] hidden states under the starting weights; None without an anchor.
        """
        x, weight, bias = self.halves.operands(hidden.flatten(0, 1))
        head: dict[str, Any] = {"bias": bias, "logit_scale": self.halves.scale, "softcap": self.halves.softcap}
        if config is None:
            x = x.index_select(0, micro.position - 1)
            logp, _, entropy = target_logp(x, weight, micro.target, entropy_top_k=TOP_K, **head)
            return logp, entropy
        supervised = Supervised(micro.position, micro.sample, micro.target, micro.lengths, micro.start_logp)
        start = None if before is None or self._start is None else self._start.operands(before)
        return fused_row_sums(x, weight, supervised, micro.num_samples, config, start=start, **head)
