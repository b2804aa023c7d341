"""Requests of many tasks: pooled, cut, answered in pieces, and put back in order."""

from __future__ import annotations

import numpy as np
import pytest

from bft_ray.config.tasks import Decoding
from bft_ray.evaluate.engine.pool import pooled, share_out
from bft_ray.evaluate.engine.request import Embed, Generate, Score, Scores


def tokens(draw, most=9):
    return draw.integers(0, 50, draw.integers(1, most))


def make_score(draw, n, has_counted=False):
    options = [[tokens(draw) for _ in range(draw.integers(1, 4))] for _ in range(n)]
    counted = [[draw.random(len(own)) < 0.5 for own in each] for each in options] if has_counted else None
    return Score([f"s{i}" for i in range(n)], [tokens(draw) for _ in range(n)], options, counted)


def fake(shard):
    """Answers that are functions of each item alone."""
    if isinstance(shard, Embed):
        return np.array([[sequence.sum(), len(sequence)] for sequence in shard.sequences], dtype=np.float32)
    if isinstance(shard, Generate):
        return [
            [np.append(prompt, [shard.seed, sample]) for sample in range(shard.decoding.num_samples)]
            for prompt in shard.prompts
        ]
    nll, num = [], []
    for item, (prompt, options) in enumerate(zip(shard.prompts, shard.continuations, strict=True)):
        for number, own in enumerate(options):
            keep = shard.counted[item][number] if shard.counted else None
            keep = np.ones(len(own), dtype=bool) if keep is None else keep
            nll.append(prompt.sum() + own[keep].sum() / 100)
            num.append(keep.sum())
    return Scores(np.array(nll, dtype=float), np.array(num), np.array(num))


@pytest.mark.parametrize(("num_shards", "shard_cost"), [(1, 10**9), (3, 10), (1000, 1)])
def test_answers_come_back_in_order(num_shards, shard_cost):
    draw = np.random.default_rng(0)
    greedy, sampled = Decoding(max_new_tokens=4), Decoding(max_new_tokens=4, temperature=1.0, num_samples=2)
    prompts = [tokens(draw) for _ in range(7)]
    requests = [
        make_score(draw, 13),
        Generate([f"g{i}" for i in range(7)], prompts, greedy, 0),
        Embed([f"e{i}" for i in range(11)], [tokens(draw) for _ in range(11)]),
        make_score(draw, 5, has_counted=True),
        Generate([f"g{i}" for i in range(7)], prompts, sampled, 1),
        Generate([f"h{i}" for i in range(7)], prompts, greedy, 0),
        Embed(["e"], [np.array([3, 4])]),
        Score([], [], []),
    ]
    pool = pooled(requests, num_shards, shard_cost)
    answers = pool.in_order([fake(shard) for shard in pool.shards])
    for request, own in zip(requests, answers, strict=True):
        expected = fake(request)
        if isinstance(request, Score):
            for name in ("nll", "num_tokens", "num_correct"):
                np.testing.assert_array_equal(getattr(own, name), getattr(expected, name))
        elif isinstance(request, Embed):
            np.testing.assert_array_equal(own, expected)
        else:
            assert [[o.tolist() for o in item] for item in own] == [[o.tolist() for o in item] for item in expected]
    if num_shards == 1:
        assert len(pool.shards) == 4  # scores, two decodings, embeddings


def test_shards_are_of_like_cost_and_hold_everything_once():
    costs = np.random.default_rng(0).integers(1, 100, 500)
    shards = share_out(costs, 7)
    assert sorted(np.concatenate(shards).tolist()) == list(range(500))
    loads = [costs[shard].sum() for shard in shards]
    assert max(loads) - min(loads) <= costs.max() and len(shards) == 7
    assert [shard.tolist() for shard in share_out(np.array([5, 1]), 4)] == [[0], [1]]
