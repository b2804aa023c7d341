"""Metrics that are no means of items, linearised: item i gets the metric plus its influence,

    score_i = M + n dM/dw_i     at w = 1/n, sum_i dM/dw_i = 0

so that the mean of the scores is M exactly and their spread is that of M to first order: the infinitesimal jackknife
(Jaeckel 1972; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6). One theory of means
then serves every metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bft_ray.errors import BadInput
from bft_ray.metrics import Area, Mean, MeanOfMeans, Ratio

#: how records of items make a metric, as its kind of task declares it
Made = Mean | Ratio | Area | MeanOfMeans


def columns_of(made: Made, name: str) -> tuple[str, ...]:
    """The columns of the records that a metric is made of.

    Args:
        name: of the metric, without its set.
    """
    match made:
        case Ratio(top, bottom):
            return top, bottom
        case Area(score, label):
            return score, label
        case MeanOfMeans(column, by):
            return column, by
        case Mean(column):
            return (column or name,)


def linear_scores(made: Made, name: str, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """[n] scores whose mean is the metric, from records that have all of `columns_of`.

    Raises:
        BadInput: an area, of labels of one kind alone.
    """
    first, *others = columns_of(made, name)
    values = column_of(records, first)
    match made:
        case Ratio(factor=factor):
            return linear_ratio(factor * values, column_of(records, others[0]))
        case Area(curve=curve):
            linear = linear_auroc if curve == "roc" else linear_auprc
            return linear(column_of(records, others[0]), values)
        case MeanOfMeans(by=by):
            return linear_macro_mean(values, [str(record[by]) for record in records])
        case Mean():
            return values


def column_of(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """[n] float64: a number of each record."""
    return np.array([record[name] for record in records], dtype=np.float64)


def linear_ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """[n] scores of R = sum a / sum b:  R + (a_i - R b_i) / mean(b)."""
    ratio = top.sum() / bottom.sum()
    return ratio + (top - ratio * bottom) / bottom.mean()


def linear_auroc(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """[n] scores of A = P(score of a 1 > score of a 0) + 1/2 P(equal):

        1:  A + n / n1 (V_i - A),   V_i = share of the 0s below i, ties half
        0:  A + n / n0 (V_i - A),   V_i = share of the 1s above i, ties half

    the structural components of DeLong, DeLong and Clarke-Pearson (1988).

    Raises:
        BadInput: labels of one kind alone.
    """
    _require_both(label)
    ones, zeros = np.sort(score[label == 1]), np.sort(score[label == 0])

    def share_below(values: np.ndarray, among: np.ndarray) -> np.ndarray:
        return (np.searchsorted(among, values, "left") + np.searchsorted(among, values, "right")) / (2 * len(among))

    placed = np.where(label == 1, share_below(score, zeros), 1 - share_below(score, ones))
    area = placed[label == 1].mean()
    weight = np.where(label == 1, len(label) / len(ones), len(label) / len(zeros))
    return area + weight * (placed - area)


def linear_auprc(label: np.ndarray, score: np.ndarray) -> np.ndarray:
    """[n] scores of the average precision A = sum over thresholds u of h_u P_u / H, with h_u the 1s whose score is u,
    H all 1s, and P_u = H_u / N_u the 1s among the N_u items at or above u:

        1:  A + n / H ( P_u(i) - A + sum over u <= u(i) of h_u (N_u - H_u) / N_u^2 )
        0:  A - n / H ( sum over u <= u(i) of h_u H_u / N_u^2 )

    Raises:
        BadInput: labels of one kind alone.
    """
    _require_both(label)
    values, place = np.unique(-score, return_inverse=True)  # thresholds, highest first
    hits = np.bincount(place, weights=label == 1, minlength=len(values))
    sizes = np.bincount(place, minlength=len(values))
    above, among = np.cumsum(hits), np.cumsum(sizes)
    precision, total = above / among, hits.sum()
    area = float((hits * precision).sum() / total)

    def from_here(parts: np.ndarray) -> np.ndarray:
        return np.cumsum(parts[::-1])[::-1][place]

    gain = precision[place] - area + from_here(hits * (among - above) / among**2)
    loss = -from_here(hits * above / among**2)
    return area + len(label) / total * np.where(label == 1, gain, loss)


def linear_macro_mean(values: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """[n] scores of M = mean over the G groups of the mean m_g within:  M + n / (G n_g) (v_i - m_g)."""
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / sizes
    return means.mean() + len(values) / (len(sizes) * sizes[group]) * (values - means[group])


def _require_both(label: np.ndarray) -> None:
    num_ones, num_zeros = int((label == 1).sum()), int((label == 0).sum())
    if not num_ones or not num_zeros:
        raise BadInput("label", f"{num_ones} of 1 and {num_zeros} of 0", "of both kinds")
