"""Run a function on several ranks, each a fresh process joined by gloo through a file: no Ray, no port."""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

LIMIT_S = 240


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Results of `function(*arguments)` by rank; fails with the traceback of the first rank that failed."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        meeting = str(Path(folder) / "meeting")
        ranks = [
            context.Process(target=_rank, args=(function, rank, world_size, meeting, results, arguments))
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        try:
            answers = dict(results.get(timeout=LIMIT_S)[:2] for _ in ranks)
        finally:
            for process in ranks:
                process.join(timeout=20)
                if process.is_alive():
                    process.kill()
    failed = [answer for answer in answers.values() if isinstance(answer, _Failure)]
    assert not failed, failed[0].text
    return [answers[rank] for rank in range(world_size)]


class _Failure:
    def __init__(self, text: str):
        self.text = text


def _rank(function, rank, world_size, meeting, results, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=120)
        )
        results.put((rank, function(*arguments)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, _Failure(traceback.format_exc())))
        results.close()
        results.join_thread()
        os._exit(1)
