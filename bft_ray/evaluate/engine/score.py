"""The verb `score`: log-likelihoods of continuations after a shared prompt, which is computed once.

For a continuation c_1 .. c_n after prompt q, nll = -sum_i log p(c_i | q, c_<i) in nats; sums run in fp64.

*Shared.* Prompt and all continuations of an item are in one row. Positions start again after the prompt for each
continuation, and an attention mask [B, 1, T, T] lets it see the prompt and itself alone:

    q q q a a b b b     the last token of a continuation predicts nothing and is left out: where all but one of them
    0 1 2 3 4 3 4 5     have one token (yes, no), the row is plain causal and needs no mask.

*Apart.* One row a continuation, plain causal. Taken where the mask would not be obeyed: flash attention, models that
carry a state or take no positions, and sequences longer than a sliding window, an attention chunk, or what rotary
positions allow (`bft_ray.model.rotary`). A test on a few tokens shows it, and one on the longest shared row, for windows
go by many names in configs. In fp32 both give the same numbers (1e-5).

Rows are padded at their end, where a causal model does not look back from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bft_ray.errors import BftError
from bft_ray.evaluate.engine.likelihood import cut_batches
from bft_ray.evaluate.engine.request import Score, Scores
from bft_ray.loss.fused import target_logp
from bft_ray.model.halves import Halves, causal_of, halves
from bft_ray.model.layouts import is_of_machine
from bft_ray.model.rotary import Rotary

#: Implementations of attention that take a mask [B, 1, T, T] as it is.
_MASKED = {"sdpa", "eager"}
#: Largest |difference| / largest |hidden state| of the trial.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_PAD_SEGMENT = -1
#: Fields of configs that hold how far a token sees.
_WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
#: Tokens of a batch on a CPU, at most: more are no faster there, for activations leave its caches (half the speed).
_CPU_BATCH_TOKENS = 1024


@dataclass(frozen=True)
class Row:
    """A prompt and some of its continuations, as one row of a batch.

    Args:
        item: index of the item in the request.
        first, stop: which of the request's continuations, counted over all items.
    """

    item: int
    prompt: np.ndarray
    continuations: list[np.ndarray]
    first: int

    @property
    def length(self) -> int:
        """Tokens that the row takes."""
        return len(self.prompt) + sum(len(own) - 1 for own in self.continuations)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longest of them."""
        return len(self.prompt) + max(map(len, self.continuations))

    @property
    def is_causal(self) -> bool:
        """Whether it has one continuation that takes a position, so that the usual causal mask is right."""
        return sum(len(own) > 1 for own in self.continuations) <= 1


@torch.no_grad()
def run_score(
    model: Any,
    request: Score,
    batch_tokens: int,
    device: torch.device | str,
    pad_id: int,
    *,
    share: bool = True,
) -> Scores:
    """The scores of all continuations, in order; they depend neither on batches nor on `share` (fp32: 1e-5).

    Args:
        model: causal LM of transformers, with or without a peft adapter, on `device`.
        batch_tokens: tokens a batch at most, padding included; bounds memory. A longer row is a batch of its own.
        share: compute the prompt of an item once, where the model allows it.

    Raises:
        BadInput: an architecture without a decoder and a linear head.
        BftError: log-probabilities that are not finite; names the items.
    """
    sizes = [len(own) for own in request.continuations]
    counted = request.counted or [[None] * size for size in sizes]
    flat = [mask for masks in counted for mask in masks]
    scores = Scores(np.zeros(len(flat)), np.zeros(len(flat), dtype=np.int64), np.zeros(len(flat), dtype=np.int64))
    was_training = model.training
    model.eval()
    try:
        parts, rotary = halves(model), Rotary(model)
        rows = _rows(request, _longest_shared(model, parts, rotary, device) if share else 0, batch_tokens)
        shared = max((row for row in rows if not row.is_causal), key=lambda row: row.length, default=None)
        if shared is not None and not _obeys_mask(parts, shared, device):
            rows = _rows(request, 0, batch_tokens)
        if torch.device(device).type == "cpu":
            batch_tokens = min(batch_tokens, _CPU_BATCH_TOKENS)
        for is_causal in (True, False):
            alike = [row for row in rows if row.is_causal == is_causal]
            lengths = np.array([row.length for row in alike], dtype=np.int64)
            for places in cut_batches(lengths, batch_tokens, rotary.alike(lengths) if is_causal else None):
                rotary.forget()
                _score_batch(parts, [alike[place] for place in places], flat, is_causal, device, pad_id, scores)
    finally:
        model.train(was_training)
    _check(request, scores, sizes)
    return scores


def _rows(request: Score, longest_shared: int, batch_tokens: int) -> list[Row]:
    """Rows that hold every continuation once, none longer than `batch_tokens` where that can be."""
    rows: list[Row] = []
    first = 0
    for item, (prompt, continuations) in enumerate(zip(request.prompts, request.continuations, strict=True)):
        start = 0
        for index in range(len(continuations)):
            together = Row(item, prompt, continuations[start : index + 1], first + start)
            fits = together.length <= batch_tokens and together.longest <= longest_shared
            if index > start and not fits:
                rows.append(Row(item, prompt, continuations[start:index], first + start))
                start = index
        rows.append(Row(item, prompt, continuations[start:], first + start))
        first += len(continuations)
    return rows


def _score_batch(
    parts: Halves,
    rows: Sequence[Row],
    counted: Sequence[np.ndarray | None],
    is_causal: bool,
    device: torch.device | str,
    pad_id: int,
    scores: Scores,
) -> None:
    """Fill in the scores of the continuations of some rows."""
    layout = _lay_out(rows, pad_id)
    width = layout[0].shape[1]
    places, targets, owners = [], [], []  # of every token that is predicted and counted
    for number, row in enumerate(rows):
        start = size = len(row.prompt)
        for index, own in enumerate(row.continuations):
            stop = start + len(own) - 1
            place = number * width + np.concatenate([[size - 1], np.arange(start, stop)])
            mask = counted[row.first + index]
            keep = slice(None) if mask is None else np.asarray(mask, dtype=bool)
            places.append(place[keep])
            targets.append(np.asarray(own, dtype=np.int64)[keep])
            owners.append(np.full(len(targets[-1]), row.first + index))
            start = stop
    hidden = _hidden(parts, layout, is_causal, device)
    owner = np.concatenate(owners)
    x = hidden.flatten(0, 1)[torch.from_numpy(np.concatenate(places)).to(device)]  # [N, D]
    x, weight, bias = parts.operands(x)
    target = torch.from_numpy(np.concatenate(targets)).to(device)
    logp, correct, _ = target_logp(x, weight, target, bias=bias, logit_scale=parts.scale, softcap=parts.softcap)
    np.add.at(scores.nll, owner, -logp.double().cpu().numpy())
    np.add.at(scores.num_tokens, owner, 1)
    np.add.at(scores.num_correct, owner, correct.cpu().numpy())


def _lay_out(rows: Sequence[Row], pad_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token ids, positions and segments of rows, int64 [B, T]: segment 0 is the prompt, then one for each continuation."""
    shape = len(rows), max(row.length for row in rows)
    ids, positions = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    segments = np.full(shape, _PAD_SEGMENT, dtype=np.int64)
    for number, row in enumerate(rows):
        start = size = len(row.prompt)
        ids[number, :size], positions[number, :size], segments[number, :size] = row.prompt, np.arange(size), 0
        for index, own in enumerate(row.continuations):
            stop = start + len(own) - 1
            ids[number, start:stop], segments[number, start:stop] = own[:-1], index + 1
            positions[number, start:stop] = np.arange(size, size + len(own) - 1)
            start = stop
    return ids, positions, segments


def _hidden(
    parts: Halves, layout: tuple[np.ndarray, np.ndarray, np.ndarray], is_causal: bool, device: torch.device | str
) -> Tensor:
    """Hidden states [B, T, D] of rows, given as token ids, positions and segments [B, T] (0: prompt)."""
    ids, positions, segments = (torch.from_numpy(array).to(device) for array in layout)
    if is_causal:
        return parts.hidden(ids, None, None)
    own, other = segments[:, :, None], segments[:, None, :]
    seen = ((other == 0) | (other == own)).tril()  # padding sees itself: a row of the softmax must see something
    dtype = next(parts.decoder.parameters()).dtype
    mask = torch.zeros(seen.shape, dtype=dtype, device=ids.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return parts.hidden(ids, positions, mask[:, None])


def _longest_shared(model: Any, parts: Halves, rotary: Rotary, device: torch.device | str) -> int:
    """Longest sequence (prompt and continuation) that may share its row with others; 0: none may."""
    config = causal_of(model).config.get_text_config()
    if getattr(config, "_attn_implementation", None) not in _MASKED:
        return 0
    prompt, *few = (np.array(tokens) % config.vocab_size for tokens in ([3, 1, 4], [1, 5, 9, 2, 6], [6, 5, 3, 5, 8]))
    if not _obeys_mask(parts, Row(0, prompt, few, 0), device):
        return 0
    bounds = (getattr(config, name, None) for name in _WINDOWS)
    return min([bound for bound in bounds if isinstance(bound, int)] + [rotary.longest])


def _obeys_mask(parts: Halves, row: Row, device: torch.device | str) -> bool:
    """Whether the last continuation of a row that takes positions has the same hidden states behind the others as alone."""
    index = max(index for index, own in enumerate(row.continuations) if len(own) > 1)
    ids, positions, segments = _lay_out([row], 0)
    own = segments[0] == index + 1
    try:
        together = _hidden(parts, (ids, positions, segments), False, device)[0, torch.from_numpy(own).to(device)]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        if is_of_machine(error):
            raise
        return False  # it wants another form of mask, or positions that it has not
    sequence = torch.from_numpy(ids[:, own | (segments[0] == 0)]).to(device)
    alone = parts.hidden(sequence, None, None)[0, len(row.prompt) :]
    difference = (together.float() - alone.float()).abs().max() / alone.float().abs().max()
    return bool(difference <= _TOLERANCE[alone.dtype])


def _check(request: Score, scores: Scores, sizes: Sequence[int]) -> None:
    broken = ~np.isfinite(scores.nll)
    if broken.any():
        item = np.repeat(np.arange(len(sizes)), sizes)[broken]
        names = ", ".join(request.ids[index] for index in np.unique(item)[:8])
        raise BftError(f"the model's log-probabilities are not finite for {names}; try model.dtype=fp32")
