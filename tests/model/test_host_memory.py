"""A process that trains on the CPU holds no memory of micro-batches that are gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bft_ray.model.host_memory import bound_shape_caches

_PROGRAM = """
import os, resource, sys
from bft_ray.model.host_memory import bound_shape_caches, give_back
if sys.argv[1] == "bound":
    bound_shape_caches()
import psutil, torch
torch.set_num_threads(1)
layers = torch.nn.ModuleList(torch.nn.Linear(512, 512, dtype=torch.bfloat16) for _ in range(4))
for length in range(200, 300):
    x = torch.randn(length, 512, dtype=torch.bfloat16)
    for layer in layers:
        x = layer(x)
    x.sum().backward()
    if length == 230:
        give_back()
        before = psutil.Process().memory_info().rss
del x
give_back()
print((psutil.Process().memory_info().rss - before) / 1e6, os.environ.get("LRU_CACHE_CAPACITY"))
"""


def grown(how: str) -> tuple[float, str]:
    """MB that a process grew by over 70 new shapes, and the bound that it saw."""
    environment = {name: value for name, value in os.environ.items() if "CACHE_CAPACITY" not in name}
    command = [sys.executable, "-c", _PROGRAM, how]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=360, check=True).stdout
    megabytes, bound = out.split()
    return float(megabytes), bound


@pytest.mark.release
def test_shapes_that_are_gone_take_no_memory():
    """Without a bound: 200 MB here, on a processor whose products oneDNN makes."""
    megabytes, bound = grown("bound")
    assert bound == "128" and megabytes < 60, megabytes


def test_a_bound_of_the_user_stays(monkeypatch):
    for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.setenv(variable, "7")
    bound_shape_caches()
    assert os.environ["LRU_CACHE_CAPACITY"] == os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
