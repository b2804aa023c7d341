"""Whether the value of a column is content, which is learned or refused, or metadata."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from bft_ray.data.form_table import CONTENT, METADATA, MISSING_WORDS
from bft_ray.data.values import is_missing, texts_in

_NUM_WORDS, _NUM_CHARACTERS = 6, 60  # of a text: more is content
_NUM_WORDS_OF_METADATA = 20  # of one whose column has a name of metadata


def looks_like_content(name: str, value: Any) -> bool:
    """Whether a value is more than an id, a number, an address, a date or a short category."""
    if is_missing(value) or isinstance(value, bool | int | float):
        return False
    if isinstance(value, str):
        words = value.split()
        if not words or value.strip() in MISSING_WORDS:
            return False
        if bare(name) in CONTENT:
            return True
        num_words = len(words) + sum("\u3040" <= letter <= "\u9fff" for letter in value) // 2  # East Asian: no blanks
        if bare(name) in METADATA:
            return num_words > _NUM_WORDS_OF_METADATA
        return num_words > _NUM_WORDS or (len(value) > _NUM_CHARACTERS and "://" not in value)
    if bare(name) in METADATA:
        return any(len(text.split()) > _NUM_WORDS_OF_METADATA for text in texts_in(value))
    if isinstance(value, Mapping):
        return bool(value)
    if isinstance(value, list | tuple):
        nested = any(isinstance(each, list | tuple | Mapping) or looks_like_content("", each) for each in value)
        return bool(value) and (nested or bare(name) in CONTENT)
    return False


@functools.lru_cache(maxsize=4096)
def bare(name: str) -> str:
    """A column's name without regard to case, white space, `-` and `_`, or how its accents are encoded."""
    joined = re.sub(r"[\s_-]+", "", name)  # first: marks that a blank parted are then in one order
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", joined).casefold())
