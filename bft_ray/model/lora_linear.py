"""A linear module with its low-rank adapter, as one function: `y = x W^T + b + s (x A^T) B^T`.

peft adds the adapter in four steps, and autograd keeps or makes a tensor as large as y in each: the product with B, the
product with s, the sum, and in the backward pass the gradient of each. Here the adapter is added to y, and its part of
dx to dx, within the matmul (`addmm`). With P = x A^T and G = dy:

    dx = G W + s (G B) A        dA = s (G B)^T x        dB = s G^T P

The same in exact arithmetic, with fewer roundings. docs/benchmarks.md has the times.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def join_adapters(model: torch.nn.Module) -> None:
    """Make plain adapted linear modules of a peft model compute as above. Their parameters and names stay."""
    from bft_ray.model.quantized import joined_class

    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "lora_A"):
            module.__class__ = joined_class()
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear:
            module.__class__ = JoinedLinear


class JoinedLinear(Linear):
    """peft's adapted linear module, in one step where it is plain: one active adapter, without dropout, frozen W and b,
    all of one dtype, none of it partitioned (ZeRO-3 gathers weights module by module). Otherwise peft's own forward pass.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        name = self._plain_adapter(x) if not (args or kwargs) else None
        if name is None:
            return super().forward(x, *args, **kwargs)
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return _Joined.apply(x, base.weight, base.bias, a, b, self.scaling[name])

    def _plain_adapter(self, x: Tensor) -> str | None:
        if (
            self.disable_adapters
            or self.merged
            or len(self.active_adapters) != 1
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        (name,) = self.active_adapters
        if name not in self.lora_A or name in self.lora_variant:
            return None
        dropout, a, b, base = self.lora_dropout[name], self.lora_A[name], self.lora_B[name], self.base_layer
        if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p:
            return None
        if a.bias is not None or b.bias is not None or type(base) is not torch.nn.Linear:
            return None
        frozen = [base.weight, *([] if base.bias is None else [base.bias])]
        weights = [*frozen, a.weight, b.weight]
        if any(weight.requires_grad for weight in frozen) or any(hasattr(weight, "ds_id") for weight in weights):
            return None
        return name if all(weight.dtype == x.dtype for weight in weights) else None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        y, inner = F.linear(rows, weight, bias), rows @ a.t()
        y.addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale = scale
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, inner, weight, a, b = ctx.saved_tensors
        of_y = gradients[0].reshape(-1, len(weight))
        of_inner = of_y @ b
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_y @ weight).addmm_(of_inner, a, alpha=ctx.scale)
            of_x = of_x.view(*gradients[0].shape[:-1], weight.shape[1])
        of_a = (of_inner.t() @ rows).mul_(ctx.scale) if ctx.needs_input_grad[3] else None
        of_b = (of_y.t() @ inner).mul_(ctx.scale) if ctx.needs_input_grad[4] else None
        return of_x, None, None, of_a, of_b, None
