"""The weak-scaling benchmark: its table, and the sum over ranks of the bare peer."""

from __future__ import annotations

import pytest
import torch

from jobs.bench.train import _add_up
from jobs.bench.weak import table
from tests.support.ranks import run_ranks


def test_efficiency_and_the_step_beside_bare_processes():
    found = {"bare": {1: [1.0, 1.2, 0.9], 2: [1.3, 1.25, 1.2]}, "zero1": {1: [1.0], 2: [1.6]}}
    bare, zero1 = (line.split() for line in table(found, 2).splitlines()[1:])
    assert bare == ["bare", "1.0000", "1.2500", "0.80", "1.00"]
    assert zero1 == ["zero1", "1.0000", "1.6000", "0.62", "0.78"]


def _added() -> list[list[float]]:
    rank = torch.distributed.get_rank()
    gradients = [torch.full((2, 2), float(rank + 1)), torch.tensor([10.0 * rank])]
    _add_up(gradients)
    return [gradient.flatten().tolist() for gradient in gradients]


@pytest.mark.slow
def test_bare_processes_add_up_their_gradients():
    for found in run_ranks(_added, 2):
        assert found == [[3.0] * 4, [10.0]]
