"""A causal LM in two halves: token ids -> hidden states, and hidden states -> logits of words.

The logits of a position are `cap(scale (hidden W^T + bias))`, with `cap(a) = softcap tanh(a / softcap)` where an
architecture caps. Who has the halves need never hold the logits of all positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bft_ray.errors import BadInput

#: Tokens of the trial that compares the halves with the whole.
_TRIAL_TOKENS = 8
#: Largest |difference| / largest |logit| in that trial.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 2e-2, torch.float16: 5e-3}
_MERGE = "Merge the adapter into its base model (peft's merge_and_unload), and give the merged model as model.path."


@dataclass(frozen=True)
class Halves:
    """The halves of one model; `decoder` and `head` are modules of it, not copies.

    Args:
        decoder: ids -> last hidden states [B, T, D], after the final norm.
        head: linear, with or without a LoRA adapter of peft on it.
        scale: multiplies the logits (Cohere, Falcon-H1; the inverse of Granite's `logits_scaling`).
        softcap: bound of the logits (Gemma); None: no bound.
    """

    decoder: Any
    head: Any
    scale: float = 1.0
    softcap: float | None = None

    def hidden(self, input_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """Last hidden states [B, T, D]. Without a cache: packed neighbours would leak into each other."""
        return self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows [..., D'], weight [V, D'] and bias [V] whose product is the head's: `x' W'^T + bias`.

        A LoRA adapter on the head, `W x + s B A x`, is the product of `[x, s A x]` and `[W, B]`.
        """
        adapter = self.adapter()
        if adapter is None:
            return x, self.head.weight, self.head.bias
        base = self.head.get_base_layer()
        down, up = self.head.lora_A[adapter], self.head.lora_B[adapter]
        low = down(self.head.lora_dropout[adapter](x.to(down.weight.dtype))) * self.head.scaling[adapter]
        return (
            torch.cat([x, low.to(x.dtype)], -1),
            torch.cat([base.weight, up.weight.to(base.weight.dtype)], 1),
            base.bias,
        )

    def parameters(self) -> list[torch.nn.Parameter]:
        """What `operands` reads."""
        return list(self.head.parameters())

    def adapter(self) -> str | None:
        """Name of the active adapter on the head.

        Raises:
            BadInput: more than one, or one that adds something else than LoRA's product.
        """
        if not hasattr(self.head, "lora_A") or self.head.disable_adapters or self.head.merged:
            return None
        active = [name for name in self.head.active_adapters if name in self.head.lora_A]
        if len(active) > 1:
            raise BadInput("model.adapter", active, "one adapter on the head", "Merge the others first.")
        if not active:
            return None
        [name] = active
        more = {"DoRA": name in self.head.lora_variant, "lora_bias": self.head.lora_B[name].bias is not None}
        if found := [kind for kind, is_there in more.items() if is_there]:
            raise BadInput("model.adapter", f"{found[0]} on the head", "W x + s B A x there, plain LoRA", _MERGE)
        return name


def causal_of(model: Any) -> Any:
    """The causal LM itself, below an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def halves(model: Any) -> Halves:
    """The halves of a causal LM of transformers, with or without peft's adapters.

    Raises:
        BadInput: a model without a decoder and a linear head.
    """
    causal = causal_of(model)
    decoder, head = causal.get_decoder(), causal.get_output_embeddings()
    weight = getattr(head.get_base_layer() if hasattr(head, "get_base_layer") else head, "weight", None)
    if decoder is None or decoder is causal or weight is None:
        raise _strange(causal, "a decoder and a linear head")
    if hasattr(head, "token_adapter"):
        rule = (
            "a head without trained tokens: it shares its weight with the embeddings, of which the adapter trains some"
        )
        raise BadInput("model.adapter", "trainable_token_indices", rule, _MERGE)
    config = causal.config.get_text_config()
    scale = 1.0 / getattr(config, "logits_scaling", 1.0)
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    return Halves(decoder, head, scale, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def check_halves(model: Any, device: torch.device | str) -> None:
    """Compare the halves with the whole model on a few tokens.

    Raises:
        BadInput: the architecture makes its logits in a way that `Halves` does not know.
    """
    parts = halves(model)
    parts.adapter()  # raises where the head has one that `operands` cannot compute
    causal = causal_of(model)
    ids = torch.arange(1, 1 + _TRIAL_TOKENS, device=device)[None]
    positions = torch.arange(_TRIAL_TOKENS, device=device)[None]
    was_training = model.training
    model.eval()
    try:
        expected = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        x = parts.hidden(ids, positions, None)
        made = parts.head(x) * parts.scale
        if parts.softcap is not None:
            made = torch.tanh(made / parts.softcap) * parts.softcap
    finally:
        model.train(was_training)
    if not expected.isfinite().all():
        remedy = "Its weights hold NaN or infinity, or model.dtype is too narrow for it: try fp32."
        raise BadInput("model.path", type(causal).__name__, "a model whose logits are finite", remedy)
    worst = (made.float() - expected.float()).abs().max() / expected.float().abs().max()
    if not worst <= _TOLERANCE[x.dtype]:
        raise _strange(causal, f"logits that are its head's output, scaled and capped (they differ by {worst:.1e})")


def _strange(causal: Any, rule: str) -> BadInput:
    return BadInput(
        "model.path",
        type(causal).__name__,
        f"an architecture with {rule}",
        "Most decoders of transformers are (Llama, Qwen, Gemma, Mistral, Granite, Cohere, Phi, ...).",
    )
