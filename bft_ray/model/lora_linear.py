"""A linear module with its low-rank adapter, as one function: `y = x W^T + b + s (x A^T) B^T`.

peft adds the adapter in four steps, and autograd keeps or makes a tensor as large as y in each: the product with B, the
product with s, the sum, and in the backward pass the gradient of each. Here the adapter is added to y, and its part of
dx to dx, within the matmul (`addmm`). With P = x A^T and G = dy:

    dx = G W + s (G B) A        dA = s (G B)^T x        dB = s G^T P

The same in exact arithmetic, with fewer roundings. docs/benchmarks.md has the times.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def join_adapters(model: torch.nn.Module) -> None:
    """Make plain adapted linear modules of a peft model compute as above. Their parameters and names stay."""
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and hasattr(module, "lora_A"):
            module.__class__ = _joined_4bit()
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
        name, base = _plain_adapter(self, x), self.base_layer
        if name is None or type(base) is not torch.nn.Linear:
            return None
        frozen = [base.weight, *([] if base.bias is None else [base.bias])]
        if any(weight.requires_grad or weight.dtype != x.dtype for weight in frozen):
            return None
        weights = [*frozen, self.lora_A[name].weight, self.lora_B[name].weight]
        return None if any(hasattr(weight, "ds_id") for weight in weights) else name


@cache
def _joined_4bit() -> type:
    """peft's adapted 4-bit module (`bft_ray.model.quantized`), with the adapter added to its product within the matmul."""
    from peft.tuners.lora.bnb import Linear4bit

    class Joined4bit(Linear4bit):
        def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
            """[..., in] -> [..., out]; peft's own where it is not plain."""
            name = None if args or kwargs else _plain_adapter(self, x)
            if name is None:
                return super().forward(x, *args, **kwargs)
            own: list[Any] = [self.lora_A[name].weight, self.lora_B[name].weight]
            a, b = own
            rows = x.reshape(-1, x.shape[-1])
            base: Any = self.base_layer
            y = torch.addmm(base(rows), rows @ a.t(), b.t(), alpha=self.scaling[name])
            return y.view(*x.shape[:-1], y.shape[-1])

    return Joined4bit


def _plain_adapter(module: Any, x: Tensor) -> str | None:
    """The adapter of a module where it is the only active one, and nothing but W x + s B A x in the dtype of x."""
    is_off = module.disable_adapters or module.merged or len(module.active_adapters) != 1
    if is_off or torch.is_autocast_enabled(x.device.type):
        return None
    (name,) = module.active_adapters
    if name not in module.lora_A or name in module.lora_variant:
        return None
    dropout, a, b = module.lora_dropout[name], module.lora_A[name], module.lora_B[name]
    if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p:
        return None
    is_plain = a.bias is None and b.bias is None and a.weight.dtype == b.weight.dtype == x.dtype
    return name if is_plain else None


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
