"""The batch plan and the layout: what holds for every input, and figures on real lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.config import DataConfig, SourceConfig
from bft_ray.data.dataset import prepare
from bft_ray.data.plan import BatchPlan, layout
from bft_ray.errors import BadInput
from tests.support.paths import SHARED
from tests.support.tiny_tokenizer import tiny_tokenizer

TINY = settings(max_examples=150)


def stream(plan: BatchPlan, num_batches: int) -> list[int]:
    return [int(i) for k in range(num_batches) for i in plan.batch(k)]


@TINY
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**63), st.booleans())
def test_epochs_are_permutations_and_batches_have_no_twins(num_samples, batch_size, seed, shuffle):
    plan = BatchPlan(num_samples, batch_size, seed, shuffle)
    assert plan.steps_per_epoch == num_samples / batch_size
    order = stream(plan, 5 * num_samples // batch_size + 1)
    for epoch in range(len(order) // num_samples):
        assert sorted(order[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))
    if num_samples >= batch_size:
        for k in range(len(order) // batch_size):
            assert len(set(order[k * batch_size : (k + 1) * batch_size])) == batch_size


@TINY
@given(st.data())
def test_mixtures(data):
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
    ratios = data.draw(
        st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0]), min_size=len(sizes), max_size=len(sizes))
    )
    batch_size, seed = data.draw(st.integers(1, 20)), data.draw(st.integers(0, 9))
    sources = np.repeat(np.arange(len(sizes)), sizes)
    plan = BatchPlan(len(sources), batch_size, seed, True, sources, ratios)
    shares = [max(1, round(ratio * size)) for ratio, size in zip(ratios, sizes, strict=True)]
    num_epoch = plan.samples_per_epoch
    assert num_epoch == sum(shares)
    order = np.array(stream(plan, 8 * num_epoch // batch_size + 1))
    for epoch in range(len(order) // num_epoch):
        drawn = sources[order[epoch * num_epoch : (epoch + 1) * num_epoch]]
        assert np.bincount(drawn, minlength=len(sizes)).tolist() == shares
    counts = np.bincount(order, minlength=len(sources))
    for source, size in enumerate(sizes):  # no sample is ahead of its source by more than the part of a round
        assert np.ptp(counts[sources == source]) <= 2, (size, counts)
    smallest_round = sum(share // int(np.ceil(max(1.0, *ratios))) for share in shares)
    if smallest_round >= batch_size:
        for k in range(len(order) // batch_size):
            assert len(set(order[k * batch_size : (k + 1) * batch_size])) == batch_size


def test_half_a_source_an_epoch_covers_all_of_it():
    sources = np.repeat([0, 1], [10, 4])
    plan = BatchPlan(14, 9, seed=3, source_index=sources, ratios=[0.5, 1.0])
    one, two = (set(plan.batch(k)) for k in range(2))
    assert len(one & two) == 4 and one | two == set(range(14))  # each half once, the other source twice


def test_a_source_twice_an_epoch():
    plan = BatchPlan(6, 6, seed=1, ratios=[2.0])
    assert plan.steps_per_epoch == 2.0
    assert sorted(plan.batch(0)) == sorted(plan.batch(1)) == list(range(6))


@pytest.mark.parametrize("num_samples", [10, 17, 1000])
def test_any_batch_in_any_order(num_samples):
    ordered = BatchPlan(num_samples, 8, seed=5)
    batches = [ordered.batch(k).tolist() for k in range(300)]
    for k in (299, 0, 150, 151, 149, 3, 298):
        assert BatchPlan(num_samples, 8, seed=5).batch(k).tolist() == batches[k]
    jumping = BatchPlan(num_samples, 8, seed=5)
    for k in (299, 0, 150, 151, 149, 3, 298):
        assert jumping.batch(k).tolist() == batches[k]


def test_order_depends_on_seed_and_epoch_and_is_pinned():
    first, other = BatchPlan(100, 100, seed=0), BatchPlan(100, 100, seed=1)
    assert first.batch(0).tolist() != other.batch(0).tolist() != first.batch(1).tolist() != first.batch(0).tolist()
    # pinned: a resumed run needs the same order for ever
    assert BatchPlan(8, 8, seed=0).batch(0).tolist() == [7, 2, 4, 0, 5, 6, 1, 3]
    assert BatchPlan(5, 3, seed=0, shuffle=False).batch(1).tolist() == [3, 4, 0]


def test_order_is_uniform():
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), BatchPlan(6, 6, seed).batch(0)] += 1
    assert abs(counts - 500).max() < 90  # 4.4 standard deviations of a fair draw


def test_far_batches_cost_nothing():
    plan = BatchPlan(200_000, 256, seed=0)
    assert len(set(plan.batch(10**9).tolist())) == 256


def test_source_without_samples():
    with pytest.raises(BadInput, match=r"`ratios.1` is 2.0, but must be left out, because the source has no sample"):
        BatchPlan(3, 2, 0, source_index=np.zeros(3, dtype=int), ratios=[1.0, 2.0])
    with pytest.raises(BadInput, match=r"`num_samples` is 0, but must be at least 1"):
        BatchPlan(0, 2, 0)


# --- layout ---------------------------------------------------------------------------------------------


def cost(lengths, positions, packing: bool) -> int:
    each = [lengths[position] for position in positions]
    return sum(each) if packing else len(each) * max(each, default=0)


LENGTHS = st.lists(st.integers(1, 64), min_size=0, max_size=80)


@TINY
@given(
    LENGTHS,
    st.integers(1, 9),
    st.integers(64, 300),
    st.none() | st.integers(1, 9),
    st.booleans(),
    st.randoms(),
)
def test_layout(lengths, num_ranks, budget, size, packing, random):
    ranks = layout(lengths, num_ranks, budget, size, packing)
    assert len(ranks) == num_ranks and len({len(micros) for micros in ranks}) == 1 and len(ranks[0]) >= 1
    micros = [micro for micros in ranks for micro in micros]
    assert sorted(position for micro in micros for position in micro) == list(range(len(lengths)))
    costs = [cost(lengths, micro, packing) for micro in micros]
    assert max(costs) <= budget and all(len(micro) <= (size or len(lengths) or 1) for micro in micros)
    assert layout(lengths, num_ranks, budget, size, packing) == ranks
    # the order in which the samples come changes nothing but their names
    shuffled = random.sample(range(len(lengths)), len(lengths))
    again = layout([lengths[i] for i in shuffled], num_ranks, budget, size, packing)
    held = [[sorted(lengths[position] for position in micro) for micro in micros] for micros in ranks]
    assert held == [[sorted(lengths[shuffled[position]] for position in micro) for micro in m] for m in again]


@TINY
@given(LENGTHS.filter(len), st.integers(1, 4), st.integers(64, 300), st.integers(1, 9))
def test_padded_layout_uses_the_fewest_micro_batches(lengths, num_ranks, budget, size):
    num_micro = len(layout(lengths, num_ranks, budget, size, packing=False)[0])
    rest, num_bins = sorted(lengths, reverse=True), 0
    while rest:  # longest first, as many as fit, is optimal for rows x longest row
        rest, num_bins = rest[min(size, budget // rest[0]) :], num_bins + 1
    assert num_micro == -(-num_bins // num_ranks)


def test_packed_layout_tries_best_fit():
    # the least loaded bin makes 7+4, 5+4 and then 4 fits nowhere; the fullest that takes it makes 7+5, 4+4+4
    assert layout([7, 4, 4, 4, 5], 1, 12, None, True) == [[[1, 2, 3], [0, 4]]]


def test_sample_over_the_budget():
    with pytest.raises(
        BadInput, match=r"`data.micro_batch_tokens` is 10, but must be at least the longest sample \(11\)"
    ):
        layout([3, 11], 2, 10, None, True)


def figures(lengths: np.ndarray, packing: bool, num_ranks: int = 8, budget: int = 4096) -> dict:
    """Over 20 global batches of 256: real tokens, the fullest rank by the mean one, bins by the bound."""
    plan = BatchPlan(len(lengths), 256, seed=0)
    real = laid = bins = bound = 0
    fullest = []
    for k in range(20):
        chosen = lengths[plan.batch(k)]
        ranks = layout(chosen.tolist(), num_ranks, budget, None, packing)
        costs = [[cost(chosen, micro, packing) for micro in micros] for micros in ranks]
        real, laid = real + chosen.sum(), laid + sum(map(sum, costs))
        per_rank = [sum(micros) for micros in costs]
        fullest.append(max(per_rank) / np.mean(per_rank))
        bins += sum(map(len, costs))
        bound += num_ranks * -(-int(chosen.sum()) // (num_ranks * budget))
    return {
        "fill": real / laid,
        "fullest_rank": max(fullest),
        "bins": bins / bound,
        "of_budget": real / (bins * budget),
    }


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not there")
def test_layout_of_real_lengths(tmp_path):
    source = SourceConfig(path=str(SHARED / "data/medical_qa/train.jsonl"), limit=2000)
    config = DataConfig(train=[source], max_length=2048, cache_dir=str(tmp_path))
    lengths = prepare([source], tiny_tokenizer(), config).lengths
    packed, padded = figures(lengths, True), figures(lengths, False)
    assert packed["fill"] == 1.0 and packed["bins"] <= 1.02 and packed["fullest_rank"] <= 1.03
    # on one rank; the same number of micro-batches on each of 8 ranks leaves less, and no padding either way
    assert figures(lengths, True, num_ranks=1)["of_budget"] >= 0.97
    assert padded["fill"] >= 0.85 and padded["fullest_rank"] <= 1.10


def test_steady_lengths_fill_the_budget():
    assert figures(np.full(256, 128), True)["of_budget"] == 1.0
