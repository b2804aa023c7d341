"""The requests of all tasks, pooled by verb and cut into shards of like cost; and their answers put back in order."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bft_ray.evaluate.engine.request import Embed, Generate, Request, Score, Scores


@dataclass(frozen=True)
class Pool:
    """Requests as shards, the dearest first.

    Args:
        shards: each of one verb.
        owners: of each shard's items: request, item.
    """

    requests: Sequence[Request]
    shards: list[Request]
    owners: list[list[tuple[int, int]]]

    def in_order(self, answers: Sequence[Any]) -> list[Any]:
        """The answers of the shards -> those of the requests, each in the order of its items."""
        items: list[dict[int, Any]] = [{} for _ in self.requests]
        for shard, owners, answer in zip(self.shards, self.owners, answers, strict=True):
            for (index, item), value in zip(owners, _itemise(shard, answer), strict=True):
                items[index][item] = value
        return [
            _combine(request, [own[item] for item in range(len(request.ids))])
            for request, own in zip(self.requests, items, strict=True)
        ]


def pooled(requests: Sequence[Request], num_shards: int, shard_cost: int) -> Pool:
    """Requests of one verb together, cut into shards.

    Args:
        num_shards: at most so many shards of a verb.
        shard_cost: tokens below which a verb's requests are not cut further.
    """
    members: dict[Any, list[int]] = {}
    for index, request in enumerate(requests):
        members.setdefault(_key(request), []).append(index)
    owners: list[list[tuple[int, int]]] = []
    for own in members.values():
        places = [(index, item) for index in own for item in range(len(requests[index].ids))]
        costs = np.concatenate([_costs(requests[index]) for index in own])
        for chosen in share_out(costs, min(num_shards, int(costs.sum()) // shard_cost + 1)):
            owners.append([places[place] for place in chosen])
    shards = [_gather(requests, own) for own in owners]
    order = np.argsort([-_costs(shard).sum() for shard in shards], kind="stable")
    return Pool(requests, [shards[place] for place in order], [owners[place] for place in order])


def share_out(costs: np.ndarray, num_shards: int) -> list[np.ndarray]:
    """Indices of `costs` in at most `num_shards` shards of nearly equal cost, each in ascending order.

    The dearest item goes first, each to the shard with the least so far (Graham 1969).
    """
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [(0.0, number) for number in range(num_shards)]
    for index in np.argsort(-costs, kind="stable").tolist():
        load, number = loads[0]
        shards[number].append(index)
        heapq.heapreplace(loads, (load + float(costs[index]), number))
    return [np.sort(np.array(shard, dtype=np.int64)) for shard in shards if shard]


def _key(request: Request) -> Any:
    """Requests with equal keys may be asked together."""
    if isinstance(request, Generate):
        return Generate, request.decoding.model_dump_json(), request.seed
    return type(request)


def _costs(request: Request) -> np.ndarray:
    """Tokens that each item takes, about."""
    if isinstance(request, Score):
        costs = [
            len(prompt) + sum(map(len, own)) for prompt, own in zip(request.prompts, request.continuations, strict=True)
        ]
    elif isinstance(request, Generate):
        decoding = request.decoding
        costs = [(len(prompt) + decoding.max_new_tokens) * decoding.num_samples for prompt in request.prompts]
    else:
        costs = [len(sequence) for sequence in request.sequences]
    return np.array(costs, dtype=np.int64)


def _gather(requests: Sequence[Request], places: Sequence[tuple[int, int]]) -> Request:
    """Items of requests that have one key, as one request."""
    first = requests[places[0][0]]
    ids = [requests[index].ids[item] for index, item in places]

    def column(name: str) -> list[Any]:
        return [getattr(requests[index], name)[item] for index, item in places]

    if isinstance(first, Embed):
        return Embed(ids, column("sequences"))
    if isinstance(first, Generate):
        return Generate(ids, column("prompts"), first.decoding, first.seed)
    counted = [_counted(requests[index], item) for index, item in places]
    has_counted = any(mask is not None for masks in counted for mask in masks)
    return Score(ids, column("prompts"), column("continuations"), counted if has_counted else None)


def _counted(request: Any, item: int) -> list[np.ndarray | None]:
    return request.counted[item] if request.counted else [None] * len(request.continuations[item])


def _itemise(request: Request, answer: Any) -> list[Any]:
    """The part of an answer that belongs to each item."""
    if not isinstance(request, Score):
        return list(answer)
    ends = np.cumsum([len(own) for own in request.continuations])[:-1]
    columns = (np.split(column, ends) for column in (answer.nll, answer.num_tokens, answer.num_correct))
    return list(zip(*columns, strict=True))


def _combine(request: Request, items: Sequence[Any]) -> Any:
    """An answer from its parts, in order."""
    if isinstance(request, Generate):
        return list(items)
    if isinstance(request, Embed):
        return np.stack(items) if items else np.zeros((0, 0), dtype=np.float32)
    if not items:
        return Scores(np.zeros(0), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    return Scores(*(np.concatenate(column) for column in zip(*items, strict=True)))
