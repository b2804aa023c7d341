"""The types of accelerator that a study may run on: reported before it starts, if nodes differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bft_ray.workers.room import num_places

_PREFIX = "accelerator_type:"  # of the resource that Ray gives each node with a known accelerator


def card_types(nodes: Sequence[Mapping[str, float]], need: Mapping[str, float]) -> dict[str, int]:
    """Type of accelerator -> nodes with room for a worker; "none": a node without one.

    Args:
        nodes: resources of each.
        need: of a worker, as from `bft_ray.workers.room.worker_resources`.
    """
    found: dict[str, int] = {}
    for node in nodes:
        if num_places([dict(node)], dict(need)):
            names = [name.removeprefix(_PREFIX) for name in sorted(node) if name.startswith(_PREFIX)]
            name = "+".join(names) or "none"
            found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def card_lines(nodes: Sequence[Mapping[str, float]], need: Mapping[str, float], *, deterministic: bool) -> list[str]:
    """Lines on the types of accelerator; none where all nodes that could run a worker have the same."""
    types = card_types(nodes, need)
    if len(types) < 2:
        return []
    counted = ", ".join(f"{name} ({count} node{'s' * (count > 1)})" for name, count in types.items())
    lines = [f"trials may run on different accelerators: {counted}"]
    one = next(name for name in types if name != "none")
    remedy = f'cluster.resources_per_worker: {{"{_PREFIX}{one}": 0.001}} keeps all trials on one type'
    if deterministic:
        lines.append(
            f"note: the study is `deterministic`, but different types of accelerator do not give equal bits: a trial depends on "
            f"the node that it gets. {remedy}"
        )
    else:
        lines.append(f"note: times of trials on different types do not compare. {remedy}")
    return lines
