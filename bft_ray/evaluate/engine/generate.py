"""The verb `generate`: prompts in, continuations out, as tokens; batched by length with the key-value cache.

Greedy: the likeliest token. Sampled, after Gumbel: with logits z at temperature T, the token that maximises

    z / T - log E        E: one exponential draw a token of the vocabulary

is one drawn from softmax(z / T); only tokens of the nucleus `top_p` (Holtzman et al., arXiv 1904.09751) take part. The
draws come from a stream of each answer's own, keyed by (seed, item id, number of the sample), so that neither batches
nor workers change an answer (CPU and GPU have different streams).

Padding and batching change logits by rounding, and where two tokens are as good as equal that changes the answer. In
fp32 such a close call is decided by a forward pass over that row alone: answers are then the same for every batch. In
bf16 rounding is too coarse for that, and close calls too many.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bft_ray.config.tasks import Decoding
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.engine.answers import answer_key, until_end
from bft_ray.evaluate.engine.likelihood import cut_batches
from bft_ray.evaluate.engine.request import Generate
from bft_ray.model.halves import causal_of
from bft_ray.model.rotary import Rotary

_CLOSE = 1e-3  # logits: nearer than this is a close call; rounding in fp32 is 1e-5 or so
_CLOSE_SHARE = 1e-4  # the same for the edge of the nucleus


def run_generate(
    model: Any,
    request: Generate,
    batch_tokens: int,
    device: torch.device | str,
    pad_id: int,
    eos_ids: Sequence[int],
) -> list[list[np.ndarray]]:
    """For each prompt `num_samples` continuations, int32 [n], n from 0 to `max_new_tokens`, end token left out.

    The model's own generation config (penalties, temperature) plays no part. An answer ends at an end token, after
    `max_new_tokens`, or where the model's context ends.

    Args:
        model: causal LM of transformers, with or without a peft adapter, on `device`.
        batch_tokens: prompt and new tokens of a batch at most, padding included; a longer row is a batch of its own.
        eos_ids: tokens that end an answer; see `bft_ray.model.ends`.

    Raises:
        BadInput: a prompt that fills the model's context, or vLLM asked for and not installed.
        BftError: logits that are not numbers; names the items.
    """
    check_engine(request.decoding, "decoding.engine")
    causal = causal_of(model)
    room = _room(causal, request)
    if request.decoding.engine == "vllm":
        from bft_ray.evaluate.engine.vllm_engine import generate_vllm

        return generate_vllm(model, request, room, eos_ids)
    answers: list[list[np.ndarray]] = [[np.zeros(0, np.int32)] * request.decoding.num_samples for _ in request.ids]
    rows = [(item, sample) for item in range(len(request.ids)) for sample in range(request.decoding.num_samples)]
    was_training, own_config = causal.training, causal.generation_config
    model.eval()
    causal.generation_config = GenerationConfig()  # else it would fill what is not set here
    try:
        rotary = Rotary(model)
        for batch in _batches(request, rows, room, batch_tokens, rotary):
            rotary.forget()
            chosen = [rows[place] for place in batch]
            made = _generate_batch(causal, request, chosen, room[chosen[0][0]], device, pad_id, eos_ids)
            for (item, sample), tokens in zip(chosen, made, strict=True):
                answers[item][sample] = tokens
    finally:
        causal.generation_config = own_config
        model.train(was_training)
    return answers


def check_engine(decoding: Decoding, field: str) -> None:
    """Raises BadInput where vLLM is asked for and not installed; for evaluators to call before a model is loaded."""
    if decoding.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise BadInput(
            field,
            "vllm",
            "transformers where vLLM is not installed",
            "Install it (`pip install vllm`), or change this.",
        )


# --- batches ------------------------------------------------------------------------------------------------


def _room(causal: Any, request: Generate) -> list[int]:
    """Most new tokens of each prompt."""
    context = getattr(causal.config.get_text_config(), "max_position_embeddings", None)
    room = []
    for name, prompt in zip(request.ids, request.prompts, strict=True):
        left = request.decoding.max_new_tokens if context is None else context - len(prompt)
        if left < 1:
            raise BadInput(
                f"prompt of {name}", f"{len(prompt)} tokens", f"shorter than the model's context ({context} tokens)"
            )
        room.append(min(request.decoding.max_new_tokens, left))
    return room


def _batches(
    request: Generate, rows: list[tuple[int, int]], room: list[int], batch_tokens: int, rotary: Rotary
) -> list[list[int]]:
    """Places in `rows`; in a batch all have equal room, so that none is driven over the end of the context."""
    whole = [place for place, (item, _) in enumerate(rows) if room[item] == request.decoding.max_new_tokens]
    lengths = np.array([len(request.prompts[rows[place][0]]) + room[rows[place][0]] for place in whole], dtype=np.int64)
    batches = [
        [whole[index] for index in batch]
        for batch in cut_batches(lengths, batch_tokens, rotary.alike(lengths, grows=True))
    ]
    return batches + [[place] for place in sorted(set(range(len(rows))) - set(whole))]


def _generate_batch(
    causal: Any,
    request: Generate,
    chosen: list[tuple[int, int]],
    max_new_tokens: int,
    device: torch.device | str,
    pad_id: int,
    eos_ids: Sequence[int],
) -> list[np.ndarray]:
    """The answers of some (item, sample): int32 [n] each."""
    prompts = [np.asarray(request.prompts[item]) for item, _ in chosen]
    width = max(map(len, prompts))
    input_ids = torch.full((len(chosen), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, width - len(prompt) :] = 1
    keys = [answer_key(request.seed, request.ids[item], sample) for item, sample in chosen]
    chooser = _Chooser(causal, request.decoding, [width - len(p) for p in prompts], keys, width, eos_ids, device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=list(eos_ids),
        pad_token_id=pad_id,
    )
    with torch.no_grad():
        made = causal.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([chooser]),
        )
    if chooser.broken.any():
        names = [request.ids[chosen[row][0]] for row in chooser.broken.nonzero().flatten().tolist()[:8]]
        raise BftError(f"the model's logits are not numbers for {', '.join(names)}; try model.dtype=fp32")
    return [until_end(tokens, eos_ids) for tokens in made[:, width:].cpu().numpy()]


# --- the choice of a token ----------------------------------------------------------------------------------


class _Chooser(LogitsProcessor):
    """Chooses the next token of each row, and leaves the others no chance.

    Args:
        num_padding: of each row, at its left.
        keys: of each row's stream of draws.
        width: positions of the prompts.
    """

    def __init__(
        self,
        causal: Any,
        decoding: Decoding,
        num_padding: list[int],
        keys: list[int],
        width: int,
        eos_ids: Sequence[int],
        device: torch.device | str,
    ):
        self.causal, self.decoding, self.num_padding, self.width = causal, decoding, num_padding, width
        self.streams = [torch.Generator(device=device).manual_seed(key) for key in keys]
        self.eos = torch.tensor(list(eos_ids), device=device)
        self.done = torch.zeros(len(keys), dtype=torch.bool, device=device)
        self.broken = torch.zeros_like(self.done)
        self.is_exact = next(causal.parameters()).dtype == torch.float32

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """ids [B, T] and logits [B, V] -> scores [B, V], finite for one token a row."""
        if input_ids.shape[1] > self.width:
            self.done |= torch.isin(input_ids[:, -1], self.eos)
        self.broken |= scores.isnan().any(-1) & ~self.done
        noise = self._noise(scores)
        tokens, is_close = choose(scores, noise, self.decoding)
        if self.is_exact:
            for row in (is_close & ~self.done).nonzero().flatten().tolist():
                alone = self._alone(input_ids[row : row + 1, self.num_padding[row] :])
                tokens[row] = choose(alone, noise[row : row + 1], self.decoding)[0][0]
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)

    def _noise(self, scores: torch.Tensor) -> torch.Tensor:
        """-log E [B, V], each row from its own stream; zeros for greedy decoding."""
        noise = torch.zeros_like(scores)
        if self.decoding.temperature > 0:
            for row, stream in zip(noise, self.streams, strict=True):
                row.exponential_(generator=stream)
            noise = -noise.log()
        return noise

    def _alone(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, V] after one row without padding or cache."""
        only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.causal.forward).parameters else {}
        return self.causal(input_ids=input_ids, use_cache=False, **only).logits[:, -1].float()


def choose(logits: torch.Tensor, noise: torch.Tensor, decoding: Decoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [B] from logits and noise [B, V], and whether rounding could have changed them [B] (bool)."""
    if decoding.temperature == 0:
        return _best(logits, _CLOSE)
    z = logits / decoding.temperature
    if decoding.top_p >= 1:
        return _best(z + noise, _CLOSE / decoding.temperature)
    likelier, z = _likelier(z), z + noise
    tokens, is_close = _best(z.masked_fill(likelier >= decoding.top_p, -torch.inf), _CLOSE / decoding.temperature)
    for top_p in (max(decoding.top_p - _CLOSE_SHARE, _CLOSE_SHARE), decoding.top_p + _CLOSE_SHARE):
        is_close |= z.masked_fill(likelier >= top_p, -torch.inf).argmax(-1) != tokens
    return tokens, is_close


def _best(scores: torch.Tensor, close: float) -> tuple[torch.Tensor, torch.Tensor]:
    top = scores.topk(2, -1)
    return top.indices[:, 0].clone(), top.values[:, 0] - top.values[:, 1] < close


def _likelier(z: torch.Tensor) -> torch.Tensor:
    """Probability of all tokens that are likelier than each, [B, V]: the nucleus is where this is less than `top_p`."""
    probabilities, order = torch.sort(z.softmax(-1), dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    return torch.zeros_like(before).scatter(1, order, before)
