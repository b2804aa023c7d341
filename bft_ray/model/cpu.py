"""What a dtype costs on this machine's CPU, measured: without instructions for bf16, its matrix products are emulated."""

from __future__ import annotations

import time
from functools import cache

import torch

SLOW = 2.0  # times as long as in fp32: from here on, half the memory is no bargain
_LEAST_S = 0.05  # of measuring, in which other processes have their turns too
_SHAPE = (128, 512, 512)  # 2 ms in fp32 on one core; emulated 40 to 55 times as long, on a CPU with AVX2 alone


@cache
def bf16_slowdown() -> float:
    """Times as long as in fp32 that a matrix product takes in bf16 on a core of this CPU: the shortest of several, each."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other beside other work, most in what is short
    try:
        return _seconds(torch.bfloat16) / _seconds(torch.float32)
    finally:
        torch.set_num_threads(num_threads)


def _seconds(dtype: torch.dtype) -> float:
    rows, inner, columns = _SHAPE
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    left @ right  # the first one also chooses how
    took: list[float] = []
    while len(took) < 3 or sum(took) < _LEAST_S:
        began = time.perf_counter()
        left @ right
        took.append(time.perf_counter() - began)
    return min(took)
