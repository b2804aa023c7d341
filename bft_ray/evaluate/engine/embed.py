"""The verb `embed`: a sequence -> the mean over its positions of the model's last hidden states.

    e = 1/T sum_t h_t        h_t [D]: hidden state of position t after the final norm, in fp32

A decoder's later positions have seen more than its earlier ones; the mean over all of them is what the bundled
evaluators use, because it needs no prompt and no token that represents the whole. The bos token, where the
tokenizer has one, is a position as any other.

A text longer than `data.max_length` is cut into pieces of like length, each with its own bos token; the means
of its pieces are averaged, weighted by their lengths, so that no part of a text is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bft_ray.data.tokenise import first_tokens
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.engine.likelihood import cut_batches
from bft_ray.evaluate.engine.request import Context, Embed
from bft_ray.model.halves import halves
from bft_ray.model.rotary import Rotary


@dataclass(frozen=True)
class TextPieces:
    """Texts cut to the context: `request` is what the model is asked.

    Args:
        owner: [m] index of the text that each piece is of; a text's pieces stand side by side.
        num_texts: texts in all.
    """

    request: Embed
    owner: np.ndarray
    num_texts: int

    def join(self, answers: np.ndarray) -> np.ndarray:
        """Embeddings of the pieces [m, D] -> of the texts [n, D] float64."""
        lengths = np.array([len(sequence) for sequence in self.request.sequences], dtype=np.float64)
        sums = np.zeros((self.num_texts, answers.shape[1]))
        np.add.at(sums, self.owner, answers * lengths[:, None])
        return sums / np.bincount(self.owner, lengths, self.num_texts)[:, None]


def cut_texts(ids: Sequence[str], places: Sequence[str], texts: Sequence[str], context: Context) -> TextPieces:
    """Texts as plain token sequences (no chat template) of at most `data.max_length`.

    Args:
        ids, places: of the texts; the place names a text at fault.

    Raises:
        BadInput: a text without a token.
    """
    tokenizer = context.tokenizer
    bos = first_tokens(tokenizer)
    room = context.data.max_length - len(bos)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    names, sequences, owner = [], [], []
    for index, tokens in enumerate(encoded):
        if not tokens:
            raise BadInput(places[index], "a text without tokens", "made of text")
        pieces = np.array_split(np.array(tokens, dtype=np.int32), -(-len(tokens) // room))
        for number, piece in enumerate(pieces):
            names.append(ids[index] if len(pieces) == 1 else f"{ids[index]}/{number}")
            sequences.append(np.array([*bos, *piece], dtype=np.int32))
            owner.append(index)
    return TextPieces(Embed(names, sequences), np.array(owner, dtype=np.int64), len(texts))


def run_embed(
    model: torch.nn.Module, request: Embed, batch_tokens: int, device: torch.device | str, pad_id: int
) -> np.ndarray:
    """Embeddings [n, D] float32, in the order of the request; they do not depend on the batching (fp32: 1e-5).

    Args:
        batch_tokens: tokens a batch at most, padding included; a longer sequence is a batch of its own.

    Raises:
        BftError: embeddings that are not finite; names the sequences.
    """
    parts, rotary = halves(model), Rotary(model)
    rows: dict[int, np.ndarray] = {}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            lengths = np.array([len(s) for s in request.sequences])
            for places in cut_batches(lengths, batch_tokens, rotary.alike(lengths)):
                rotary.forget()
                means = _means(parts, [request.sequences[place] for place in places], device, pad_id)
                rows |= zip(places.tolist(), means, strict=True)
    finally:
        model.train(was_training)
    if not rows:
        return np.zeros((0, 0), dtype=np.float32)
    embeddings = np.stack([rows[place] for place in range(len(rows))])
    finite = np.isfinite(embeddings).all(1)
    if not finite.all():
        names = ", ".join(request.ids[place] for place in np.flatnonzero(~finite)[:8])
        raise BftError(f"the model's hidden states are not finite for {names}; try model.dtype=fp32")
    return embeddings


def _means(parts: Any, sequences: list[np.ndarray], device: torch.device | str, pad_id: int) -> np.ndarray:
    """Mean hidden states [B, D] float32 of sequences, padded on the right, where no token looks."""
    tensors = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id).to(device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    positions = torch.arange(ids.shape[1], device=device)
    mask = positions < lengths[:, None]  # [B, T]
    hidden = parts.hidden(ids, positions.expand_as(ids), mask.long())
    sums = torch.where(mask[..., None], hidden.float(), 0.0).sum(1, dtype=torch.float64)
    return (sums / lengths[:, None]).float().cpu().numpy()
