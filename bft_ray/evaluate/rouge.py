"""How far a text overlaps with a gold one: ROUGE-1 and ROUGE-L (Lin, 2004, "ROUGE: a package for automatic evaluation
of summaries"), token F1 (Rajpurkar et al., arXiv 1606.05250). All in [0, 1], 1 for equal texts.

    precision = shared / tokens of the text      recall = shared / tokens of the gold text      F1 = 2 P R / (P + R)

Tokens of ROUGE are runs of a-z and 0-9 in the lowercase text, not stemmed: what the package `rouge-score` does, which
stays a tool of the tests, for it brings nltk along for a stemmer that is not used here.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_tokens(text: str) -> list[str]:
    """Runs of a-z and 0-9 in lowercase; none in a text of another script."""
    return re.findall(r"[a-z0-9]+", text.lower())


def rouge_1(text: str, gold: str) -> float:
    """F1 of the shared tokens, each as often as it is in both; 0 where either has no token."""
    return _bag_f1(rouge_tokens(text), rouge_tokens(gold))


def rouge_l(text: str, gold: str) -> float:
    """F1 of the longest common subsequence of tokens; 0 where either has no token."""
    ours, theirs = rouge_tokens(text), rouge_tokens(gold)
    return _f1(common_subsequence(ours, theirs), len(ours), len(theirs))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table of dynamic programming at a time, one bit a cell
    (Hyyro, 2004, "Bit-parallel LCS-length computation revisited").
    """
    places: dict[str, int] = {}
    for index, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full  # a bit is 0 where the length grows by one
    for token in b:
        matches = row & places.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def normalise(text: str) -> str:
    """Lowercase, without ASCII punctuation, English articles and repeated space: the rule of SQuAD."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(text: str, gold: str) -> float:
    """F1 of the shared words of the normalised texts; where either has none, 1 if both have none, else 0."""
    ours, theirs = normalise(text).split(), normalise(gold).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return _bag_f1(ours, theirs)


def _bag_f1(ours: list[str], theirs: list[str]) -> float:
    return _f1((Counter(ours) & Counter(theirs)).total(), len(ours), len(theirs))


def _f1(shared: int, num_ours: int, num_theirs: int) -> float:
    return 2 * shared / (num_ours + num_theirs) if shared else 0.0
