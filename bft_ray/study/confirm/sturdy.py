"""What would change the answer: the choice again without each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bft_ray.study.confirm.choice import Plan, Record
from bft_ray.study.confirm.choose import choose


def without_each_seed(records: Sequence[Record], plan: Plan) -> dict[int, str | None]:
    """Seed -> the champion that the other seeds would have chosen; {} for fewer than three seeds.

    Args:
        records, plan: as for `choose`.
    """
    if len(plan.seeds) < 3:
        return {}
    found = {}
    for left_out in plan.seeds:
        fewer = replace(plan, seeds=tuple(seed for seed in plan.seeds if seed != left_out))
        found[left_out] = choose([one for one in records if one.seed != left_out], fewer).champion
    return found
