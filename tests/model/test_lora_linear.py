"""A joined adapter is peft's, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from peft.tuners.lora import Linear

from bft_ray.config import LoraConfig, ModelConfig
from bft_ray.model.causal_lm import load_model
from bft_ray.model.lora_linear import JoinedLinear, join_adapters

RANKS = (1, 3, 16)


def _module(rank: int, bias: bool, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> JoinedLinear:
    torch.manual_seed(rank)
    base = torch.nn.Sequential(torch.nn.Linear(7, 5, bias=bias, dtype=dtype))
    settings = PeftConfig(r=rank, lora_alpha=3, lora_dropout=dropout, target_modules=["0"])
    module = get_peft_model(base, settings, autocast_adapter_dtype=False).base_model.model[0]
    for part in (module.lora_A, module.lora_B):
        weight = part["default"].weight
        weight.data = torch.randn(weight.shape, dtype=dtype)
    join_adapters(module)
    return module


def _both(module: JoinedLinear, x: torch.Tensor) -> list[list[torch.Tensor]]:
    """[value, dx, dA, dB], joined and by peft."""
    found = []
    for forward in (JoinedLinear.forward, Linear.forward):
        own = x.clone().requires_grad_()
        a, b = (part["default"].weight for part in (module.lora_A, module.lora_B))
        y = forward(module, own)
        found.append([y, *torch.autograd.grad(y.square().sum(), (own, a, b))])
    return found


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 3, 7), (0, 7)])
def test_value_and_gradients_are_those_of_peft(rank, bias, shape):
    x = torch.randn(shape, dtype=torch.float64)
    module = _module(rank, bias)
    assert module._plain_adapter(x) == "default"
    for joined, separate in zip(*_both(module, x), strict=True):
        torch.testing.assert_close(joined, separate, rtol=1e-12, atol=1e-12)


def test_bf16_is_nearer_to_the_exact_value():
    exact = _module(16, False)
    low = _module(16, False, torch.bfloat16)
    for part in ("lora_A", "lora_B"):
        getattr(exact, part)["default"].weight.data = getattr(low, part)["default"].weight.data.double()
    exact.base_layer.weight.data = low.base_layer.weight.data.double()
    x = torch.randn(512, 7, dtype=torch.bfloat16)
    wanted = exact(x.double())
    joined, separate = ((found[0].double() - wanted).abs().mean() for found in _both(low, x))
    assert joined <= separate


def test_what_is_not_plain_is_peft_s_own():
    x = torch.randn(4, 7, dtype=torch.float64)
    module = _module(3, True, dropout=0.5)
    assert module._plain_adapter(x) is None and module.eval()._plain_adapter(x) == "default"
    module = _module(3, True)
    assert module._plain_adapter(x.float()) is None
    module.base_layer.weight.requires_grad_()
    assert module._plain_adapter(x) is None
    module = _module(3, True)
    module.merge()
    assert module._plain_adapter(x) is None
    merged = module(x)
    module.unmerge()
    torch.testing.assert_close(module(x), merged)
    module.enable_adapters(False)
    torch.testing.assert_close(module(x), module.base_layer(x))


def test_a_model_with_lora_is_joined(tiny_model):
    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32"), LoraConfig(rank=4))
    adapted = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(adapted) == 14 and all(type(module) is JoinedLinear for module in adapted)
