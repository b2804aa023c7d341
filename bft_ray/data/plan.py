"""Which samples make up global batch k, and how ranks and micro-batches share them out.

Both are pure functions. `BatchPlan.batch(k)` depends on (number of samples, sources and ratios, seed, k): a
run resumes at step k at no cost, and the number of workers may change in between. `layout` depends on the
lengths alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from bft_ray.config.steps import shares
from bft_ray.errors import BadInput


class BatchPlan:
    """Global batches over an endless stream of epochs: nothing is dropped, a batch may span an epoch's end.

    A source of n samples with ratio r gives round(r n) samples (at least one) to an epoch. It goes round and
    round through one drawn order of its own, so a ratio of 0.5 takes the other half in the next epoch. An
    epoch consists of ceil(largest ratio) *rounds* in which every source has an equal share; a sample is
    at most once in a round, and the order within a round is drawn anew. No sample is twice in a batch,
    unless a round is smaller than a batch (with ratios up to 1, a round is an epoch).

    Random numbers are Philox bits, keyed by the seed and the round: the same with every version of numpy.

    Args:
        num_samples: samples of the dataset.
        global_batch_size: samples a batch.
        seed: of the order.
        shuffle: False keeps the order of the dataset.
        source_index: source of each sample, int [num_samples]; None: one source.
        ratios: ratio of each source; None: 1 each.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        seed: int,
        shuffle: bool = True,
        source_index: np.ndarray | None = None,
        ratios: list[float] | None = None,
    ):
        if num_samples < 1:
            raise BadInput("num_samples", num_samples, "at least 1")
        source_index = np.zeros(num_samples, np.int64) if source_index is None else np.asarray(source_index)
        ratios = [1.0] * (int(source_index.max()) + 1) if ratios is None else ratios
        members = [np.flatnonzero(source_index == source) for source in range(len(ratios))]
        for source, own in enumerate(members):
            if not len(own):
                rule = "left out, because the source has no sample"
                raise BadInput(f"ratios.{source}", ratios[source], rule)
        self.global_batch_size, self.seed, self.shuffle = global_batch_size, seed % 2**64, shuffle
        self._rounds_an_epoch = max(1, int(np.ceil(max(ratios))))
        self._shares = shares(ratios, [len(own) for own in members])
        self._sources = [own[self._permutation(len(own), s, stream=1)] for s, own in enumerate(members)]
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    @property
    def samples_per_epoch(self) -> int:
        """Samples of one epoch of the mixture."""
        return sum(self._shares)

    @property
    def steps_per_epoch(self) -> float:
        """Global batches an epoch; not whole where the last one of an epoch spans its end."""
        return self.samples_per_epoch / self.global_batch_size

    def batch(self, k: int) -> np.ndarray:
        """Dataset indices of global batch k, int64 [global_batch_size]."""
        position, parts, missing = k * self.global_batch_size, [], self.global_batch_size
        number = position * self._rounds_an_epoch // self.samples_per_epoch
        while missing:
            order, offset = self._order(number), position - self._start(number)
            part = order[offset : offset + missing]
            parts.append(part)
            position, missing, number = position + len(part), missing - len(part), number + 1
        return np.concatenate(parts)

    def _start(self, number: int) -> int:
        """Stream position of the first sample of a round."""
        return sum(number * share // self._rounds_an_epoch for share in self._shares)

    def _members(self, number: int) -> np.ndarray:
        """The samples of a round, by source; a source continues where it stopped, and begins again at its end."""
        parts = []
        for share, order in zip(self._shares, self._sources, strict=True):
            first, last = (n * share // self._rounds_an_epoch for n in (number, number + 1))
            parts.append(order[np.arange(first, last) % len(order)])
        return np.concatenate(parts)

    def _permutation(self, n: int, key: int, stream: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(n)
        bits = np.random.Philox(key=np.array([self.seed, key], dtype=np.uint64), counter=[0, 0, 0, stream])
        return np.argsort(bits.random_raw(n), kind="stable")

    def _drawn(self, number: int) -> np.ndarray:
        members = self._members(number)
        return members[self._permutation(len(members), number, stream=0)]

    def _order(self, number: int) -> np.ndarray:
        """The samples of a round in the order of the stream.

        The batch that spans the end of the round before must not meet its samples again at the head of this
        one: they change places with the next free ones, all within the first batch's length. So the last
        samples of a round stay as drawn, and a round depends only on the draw before it; where rounds are
        shorter than two batches, it depends on all before it.
        """
        if not self.shuffle:
            return self._drawn(number)
        if self._last[0] == number:
            return self._last[1]
        smallest = sum(share // self._rounds_an_epoch for share in self._shares)
        is_roomy = smallest >= 2 * self.global_batch_size
        if self._last[0] == number - 1:
            current, order = self._last
        else:
            current = max(0, number - 1) if is_roomy else 0
            order = self._drawn(current)
        while current < number:
            current += 1
            before, order = order, self._drawn(current)
            num_before = self._start(current) % self.global_batch_size
            if num_before:
                _avoid(order, before[-num_before:], self.global_batch_size - num_before)
        self._last = (number, order)
        return order


def _avoid(order: np.ndarray, taken: np.ndarray, head: int) -> None:
    """Swap, in place, the samples of order[:head] that are taken with the next ones that are not."""
    is_taken = np.isin(order, taken)
    clashes, free = np.flatnonzero(is_taken[:head]), head + np.flatnonzero(~is_taken[head:])
    num_swaps = min(len(clashes), len(free))
    clashes, free = clashes[:num_swaps], free[:num_swaps]
    order[clashes], order[free] = order[free], order[clashes]


# --- ranks and micro-batches ----------------------------------------------------------------------------


def layout(
    lengths: Sequence[int],
    num_ranks: int,
    micro_batch_tokens: int,
    micro_batch_size: int | None,
    packing: bool,
) -> list[list[list[int]]]:
    """[rank][micro-batch][position in the batch]: every sample once, within budget, work spread evenly.

    The cost of a micro-batch is the sum of its lengths when packed, rows x longest row when padded; it is at
    most `micro_batch_tokens`. Every rank gets the same number of micro-batches, the fewest for which a layout
    is found, because ZeRO-3 needs equal numbers of forward passes; some may be empty lists.

    Args:
        lengths: tokens of each sample of the global batch.
        micro_batch_size: most samples of a micro-batch; None: no limit.

    Raises:
        BadInput: a sample alone is over the budget.
    """
    longest = max(lengths, default=0)
    if longest > micro_batch_tokens:
        remedy = "Raise it, or lower data.max_length."
        raise BadInput(
            "data.micro_batch_tokens", micro_batch_tokens, f"at least the longest sample ({longest})", remedy
        )
    descending = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    size = micro_batch_size or max(1, len(lengths))
    cut = _cut_packed if packing else _cut_padded
    num_micro = 1
    while (bins := cut(lengths, descending, num_micro * num_ranks, micro_batch_tokens, size)) is None:
        num_micro += 1
    return _deal(lengths, bins, num_ranks, num_micro, packing)


def _cut_packed(
    lengths: Sequence[int], descending: list[int], num_bins: int, budget: int, size: int
) -> list[list[int]] | None:
    """Longest first, into the least loaded bin: even. Where that fails, into the fullest that takes it."""
    total = sum(lengths)
    if total > num_bins * budget or len(lengths) > num_bins * size:
        return None
    loads = [(0, number) for number in range(num_bins)]  # a heap
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for position in descending:
        load, number = heapq.heappop(loads)
        if load + lengths[position] > budget:  # then it fits nowhere
            return _evenest(
                lambda cap: _best_fit(lengths, descending, num_bins, cap, size), -(-total // num_bins), budget
            )
        bins[number].append(position)
        if len(bins[number]) < size:
            heapq.heappush(loads, (load + lengths[position], number))
    return bins


def _best_fit(
    lengths: Sequence[int], descending: list[int], num_bins: int, cap: int, size: int
) -> list[list[int]] | None:
    loads = [0] * num_bins
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for position in descending:
        room = cap - lengths[position]
        fitting = [number for number in range(num_bins) if loads[number] <= room and len(bins[number]) < size]
        if not fitting:
            return None
        number = max(fitting, key=loads.__getitem__)
        bins[number].append(position)
        loads[number] += lengths[position]
    return bins


def _cut_padded(
    lengths: Sequence[int], descending: list[int], num_bins: int, budget: int, size: int
) -> list[list[int]] | None:
    """Runs of the samples by length, as many to a bin as fit, which needs the fewest bins."""

    def runs(cap: int) -> list[list[int]] | None:
        found: list[list[int]] = []
        start = 0
        while start < len(descending) and len(found) < num_bins:
            num_rows = min(size, cap // lengths[descending[start]])
            found.append(descending[start : start + num_rows])
            start += num_rows
        return found if start >= len(descending) else None

    return _evenest(runs, max(lengths, default=1), budget)


def _evenest(cut: Callable[[int], list[list[int]] | None], low: int, budget: int) -> list[list[int]] | None:
    """The cut under the lowest cap on a bin's cost, from `low` to `budget`; None when none succeeds."""
    best = cut(budget)
    while best is not None and low < budget:
        middle = (low + budget) // 2
        found = cut(middle)
        if found is None:
            low = middle + 1
        else:
            best, budget = found, middle
    return best


def _deal(
    lengths: Sequence[int], bins: list[list[int]], num_ranks: int, num_micro: int, packing: bool
) -> list[list[list[int]]]:
    """Deal the bins out, costliest first, to and fro: ranks wait little for each other at any micro-batch."""

    def rank_key(positions: list[int]):  # by what they cost and hold; by position only where they are alike
        each = sorted((lengths[position] for position in positions), reverse=True)
        return -(sum(each) if packing else len(each) * each[0]) if each else 0, each, positions

    ordered = sorted(map(sorted, bins), key=rank_key)
    ordered += [[] for _ in range(num_ranks * num_micro - len(ordered))]
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for micro in range(num_micro):
        turn = ordered[micro * num_ranks : (micro + 1) * num_ranks]
        for rank, positions in enumerate(turn if micro % 2 == 0 else reversed(turn)):
            ranks[rank].append(positions)
    return ranks
