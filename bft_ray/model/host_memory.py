"""Host memory that libraries hold without need while a model runs on the CPU.

Rows differ in length, so almost every micro-batch has new shapes. PyTorch's matrix products on x86 (oneDNN and its layer
ideep) keep code and buffers of the last 1,024 shapes each: with SmolLM2 about 20 MB more a micro-batch. And blocks of ever
new sizes leave holes between them, which the allocator of glibc keeps. Together they take more than the activations do.
"""

from __future__ import annotations

import ctypes
import os
import sys

#: shapes that are kept; one micro-batch has about 40, forward and backward
NUM_SHAPES = 128
#: variables by which oneDNN and ideep are told how many shapes to keep; 1,024 each if nobody says
SHAPE_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def bound_shape_caches() -> None:
    """Let each library keep NUM_SHAPES shapes, unless the environment sets a number. They read it at their first product."""
    for variable in SHAPE_CACHES:
        os.environ.setdefault(variable, str(NUM_SHAPES))


def give_back() -> None:
    """Return the holes in the heap to the system; nothing where the C library is not glibc."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
