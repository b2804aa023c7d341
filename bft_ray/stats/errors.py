"""Standard errors of means over items, which may share groups: genes, patients, documents.

Independent items:  se^2 = var(x) / n, on n - 1 degrees of freedom.

Items that share a group are not independent. With e_i = x_i - mean(x), the cluster-robust form sums all products of items
that share one,

    se^2 = q / n^2 sum over i, j that share a group of e_i e_j

For one group an item this is Liang and Zeger (1986); for two (a pair of genes) the dyadic form of Fafchamps and Gubert (2007)
and Aronow, Samii and Assenova (2015), taken by inclusion and exclusion: sums over each group, less sums over each set of
two, which those count twice (Cameron, Gelbach and Miller 2011). It may come out below the form for independent items
by chance, and then that one is taken.

Few groups make the e_i too small, and unequal ones tell less than as many of one size. Under effects of groups alone,
x = B' g with B [G, n] who is of which group and var(g) = 1, the sum without q is the quadratic form g' A g, with A = B H M H B',
H taking the mean off and M the pairs that share a group. So q = sum n_g^2 / tr A makes it unbiased, and f = (tr A)^2 / ||A||^2 are
its degrees of freedom (Bell and McCaffrey 2002; Imbens and Kolesar 2016). For G groups of one size that is q = G / (G - 1)
and f = G - 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from bft_ray.stats.power import detectable

_FEW = 2000  # groups: of more, the small-sample correction is none
#: the groups of an item: none, one or two
Names = Sequence[str]


@dataclass(frozen=True)
class Groups:
    """Which items share a group.

    Args:
        names: the groups of each item; an item with none is one of its own.
    """

    names: tuple[tuple[str, ...], ...]

    @cached_property
    def members(self) -> sparse.csr_matrix:
        """[G, n]: 1 where the item is of the group."""
        return _incidence([set(own) or {f"\0{place}"} for place, own in enumerate(self.names)])

    @cached_property
    def _twice(self) -> sparse.csr_matrix:
        """[P, n]: items by the pair of their two groups; a row of zeros for those of one group."""
        return _incidence([{"\0".join(sorted(set(own)))} if len(set(own)) > 1 else set() for own in self.names])

    @property
    def num(self) -> int:
        """Number of groups."""
        return int(self.members.shape[0])

    @property
    def is_trivial(self) -> bool:
        """Whether no two items share a group."""
        return int(self.members.sum(1).max()) < 2

    @cached_property
    def small(self) -> tuple[float, float]:
        """q and f; see the head of the file. Of more than 2,000 groups, q of one size and f by the groups' squares."""
        sizes = np.asarray(self.members.sum(1), dtype=np.float64).ravel()
        squares = sizes**2
        if self.num > _FEW:
            return self.num / (self.num - 1), max(1.0, float(squares.sum() ** 2 / (squares**2).sum()) - 1)
        if self.num < 2:
            return 1.0, 1.0

        def without_mean(other: sparse.csr_matrix) -> np.ndarray:
            counts = np.asarray(other.sum(1), dtype=np.float64).ravel()
            return (self.members @ other.T).toarray() - np.outer(sizes, counts) / len(self.names)

        by_group, by_two = without_mean(self.members), without_mean(self._twice)
        form = by_group @ by_group.T - by_two @ by_two.T
        trace = float(np.trace(form))
        if trace <= 0:
            return self.num / (self.num - 1), 1.0
        return max(self.num / (self.num - 1), float(squares.sum()) / trace), max(1.0, trace**2 / float((form**2).sum()))

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error; see the head of the file."""
        return self.small[1]

    def covariance(self, rows: np.ndarray) -> np.ndarray:
        """Covariance [K, K] of the means of `rows` [K, n], centred; see the head of the file."""
        by_group, by_two = rows @ self.members.T, rows @ self._twice.T
        products = by_group @ by_group.T - by_two @ by_two.T
        return self.small[0] * products / rows.shape[1] ** 2


def as_groups(names: Sequence[Names] | None) -> Groups | None:
    """None where no two items share a group: they are independent."""
    if names is None:
        return None
    groups = Groups(tuple(tuple(map(str, own)) for own in names))
    return None if groups.is_trivial else groups


def names_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The groups of an item's record: `groups`, several, or `group`, one; none where it has neither."""
    given = record.get("groups")
    if given is None:
        given = () if record.get("group") is None else (record["group"],)
    return tuple(map(str, given))


def mean_covariance(rows: np.ndarray, groups: Groups | None = None) -> np.ndarray:
    """Covariance [K, K] of the means of K columns of the same items, `rows` [K, n], n > 1."""
    centred = rows - rows.mean(1, keepdims=True)
    num_items = rows.shape[1]
    independent = centred @ centred.T / (num_items * (num_items - 1))
    if groups is None:
        return independent
    shared = groups.covariance(centred)
    scale = np.sqrt(np.maximum(1.0, np.divide(np.diag(independent), np.diag(shared), out=np.ones(len(rows)),
                                              where=np.diag(shared) > 0)))  # fmt: skip
    shared = shared * np.outer(scale, scale)
    poor = np.diag(shared) <= 0
    shared[poor], shared[:, poor] = independent[poor], independent[:, poor]
    return shared


def freedom_of(num_items: int, groups: Groups | None = None) -> float:
    """Degrees of freedom of the error of a mean over items."""
    return float(num_items - 1) if groups is None else min(groups.freedom, num_items - 1.0)


def mean_error(values: np.ndarray, groups: Groups | None = None) -> float:
    """Standard error of the mean of `values` [n], n > 1; 0 where it is rounding alone."""
    error = math.sqrt(max(0.0, float(mean_covariance(values[None], groups)[0, 0])))
    return error if error > 1e-12 * float(np.abs(values).max()) else 0.0


def ratio_error(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """Standard error of sum(numerator) / sum(denominator) over n > 1 items: the linearised one of a ratio estimator.

    R = sum a / sum b;  se = sqrt( n / (n - 1) sum (a_i - R b_i)^2 ) / sum b      (Cochran 1977, Sampling Techniques, 6.4)
    """
    ratio = numerator.sum() / denominator.sum()
    spread = float(((numerator - ratio * denominator) ** 2).sum())
    return math.sqrt(len(numerator) / (len(numerator) - 1) * spread) / float(denominator.sum())


def with_error(name: str, value: float, error: float, num_items: int | None = None) -> dict[str, float]:
    """The value, its standard error `_se`, and `_detectable`: the smallest difference of two such values, measured on
    items of their own, that 8 of 10 comparisons show (`bft_ray.stats.power`, with sqrt(2) se on 2 (n - 1) degrees of
    freedom; as for many where n is not known). Pairing by item shows smaller ones.

    An error of 0 (all resamples alike) is left out: it would promise that any effect is detectable.
    """
    if not error > 0:
        return {name: float(value)}
    freedom = math.inf if num_items is None else 2.0 * (num_items - 1)
    least = detectable(math.sqrt(2) * float(error), freedom)
    return {name: float(value), f"{name}_se": float(error), f"{name}_detectable": least}


def mean_metrics(name: str, values: np.ndarray) -> dict[str, float]:
    """`name`: the mean of `values` [n], with its error (see `with_error`), which is left out for a single item."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {name: mean}
    return with_error(name, mean, float(np.std(values, ddof=1)) / math.sqrt(len(values)), len(values))


def _incidence(sets: Sequence[set[str]]) -> sparse.csr_matrix:
    order = {name: place for place, name in enumerate(sorted(set().union(*sets)))}
    rows = [order[name] for own in sets for name in own]
    columns = [place for place, own in enumerate(sets) for _ in own]
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(max(1, len(order)), len(sets)))
