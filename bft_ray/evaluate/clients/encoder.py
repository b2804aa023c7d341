"""A text encoder of the user's choice: texts -> unit vectors.

Mean pooling over the tokens of a text, as the sentence-transformers library does it, then length 1:

    e = sum_t m_t h_t / sum_t m_t      e / |e|      h: last hidden states, m: attention mask

An encoder that was trained with another pooling (its first token, its last) works less well this way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from bft_ray.errors import BadInput
from bft_ray.model.named import encoder_folder
from bft_ray.model.unreadable import reading, unreadable

_NO_LIMIT = 10**6  # tokenizers without a length limit report a huge one


def check_encoder(encoder: str, field: str) -> None:
    """Read the encoder's config and tokenizer, not its weights: for evaluators to call before a model is loaded.

    Raises:
        BadInput: neither can be read, or it is a sequence-to-sequence model.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = encoder_folder(encoder, field)
    with reading(partial(unreadable, field, encoder, folder, "encoder")):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise BadInput(field, encoder, "an encoder or a decoder, not a sequence-to-sequence model")


def encode_texts(encoder: str, texts: Sequence[str], batch_size: int = 32, field: str = "encoder") -> np.ndarray:
    """Unit vectors [n, D] float32, in order; computed in fp32, on the GPU where there is one.

    A text is cut at the encoder's longest input. An empty text has the tokens that the tokenizer puts around any text;
    one without a token at all becomes the zero vector.

    Args:
        encoder: folder or hub id of any model that `AutoModel` loads from safetensors (no code of its own is run), or
            `minilm`: all-MiniLM-L6-v2 from its package.

    Raises:
        BadInput: an encoder that cannot be read.
    """
    from transformers import AutoModel, AutoTokenizer

    check_encoder(encoder, field)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = encoder_folder(encoder, field)
    with reading(partial(unreadable, field, encoder, folder, "encoder")):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    model.to(device).eval()
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))  # little padding, whatever the order
    rows: dict[int, np.ndarray] = {}
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            vectors = _encode(model, tokenizer, [texts[index] for index in batch], device)
            rows |= dict(zip(batch, vectors.cpu().numpy(), strict=True))
    return np.stack([rows[index] for index in range(len(texts))]) if texts else np.zeros((0, 0), np.float32)


def _encode(model: Any, tokenizer: Any, texts: list[str], device: str) -> torch.Tensor:
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    limit = min((value for value in limits if value and value < _NO_LIMIT), default=None)
    inputs = tokenizer(texts, padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt")
    if not inputs["input_ids"].numel():
        inputs = tokenizer.pad({"input_ids": [[tokenizer.pad_token_id]] * len(texts)}, return_tensors="pt")
        inputs["attention_mask"] = torch.zeros_like(inputs["input_ids"])
    inputs = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
    hidden = model(**inputs).last_hidden_state.float()  # [B, T, D]
    mask = inputs["attention_mask"][..., None].bool()
    mean = hidden.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)
