"""An answer as tokens: the random stream that draws it, and where it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def answer_key(seed: int, item: str, sample: int) -> int:
    """63 bits that name the random stream of one answer."""
    digest = hashlib.sha256(f"{seed}\0{sample}\0{item}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def until_end(tokens: np.ndarray, eos_ids: Sequence[int]) -> np.ndarray:
    """The tokens before the first end token, int32."""
    ends = np.isin(tokens, list(eos_ids)).nonzero()[0]
    return tokens[: ends[0]].astype(np.int32) if len(ends) else tokens.astype(np.int32)
