"""Where a model is unsure within a sample: the share of low-confidence tokens, and the longest run of them.

The same share can be spread over a sample (sparse) or stand together (dense). The third version of arXiv 2511.21075 is
reported to tell the two apart; its text was not seen, and the threshold here is `profile.low_confidence`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bft_ray.model.start_logps import StartLogps

_LEVELS = (10, 50, 90)


@dataclass(frozen=True)
class Stretches:
    """Low-confidence tokens of each of S samples.

    Args:
        below: a token is of low confidence where its probability is below this.
        share: [S] of the sample's supervised tokens, 0..1.
        longest: [S] tokens of the longest run of them.
    """

    below: float
    share: np.ndarray
    longest: np.ndarray

    def figures(self) -> dict[str, float]:
        """Quantiles over the samples: `share_p10` ... `longest_run_p90`, the longest of all, and the samples with none."""
        return {
            **{f"share_p{level}": float(np.percentile(self.share, level)) for level in _LEVELS},
            **{f"longest_run_p{level}": float(np.percentile(self.longest, level)) for level in _LEVELS},
            "longest_run": float(self.longest.max()),
            "without": float((self.longest == 0).mean()),
        }


def stretches(tokens: StartLogps, below: float) -> Stretches:
    """The stretches of tokens whose probability is below a threshold."""
    is_low = np.exp(tokens.logp) < below
    stop = np.cumsum(tokens.num_tokens)
    start = stop - tokens.num_tokens
    here = np.arange(len(is_low))
    # a run ends at the last other token, and at the beginning of its sample
    last_other = np.maximum.accumulate(np.where(is_low, -1, here))
    run = here - np.maximum(last_other, np.repeat(start - 1, tokens.num_tokens))
    num_low = np.add.reduceat(is_low.astype(np.int64), start)
    return Stretches(below, num_low / tokens.num_tokens, np.maximum.reduceat(np.where(is_low, run, 0), start))
