"""Run a function on several ranks, processes joined by gloo through a file: no Ray, no port.

Loading torch, transformers and DeepSpeed takes seconds, so ranks are forked from a server that has loaded them, and stay for
the next call. Where a function fails they are ended, and the next call gets new ones.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing as mp
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

LIMIT_S = 900
_PLACE = tempfile.gettempdir()  # of these tests, wherever one of them sends its own files
_waiting: dict[int, _Ranks] = {}  # world size -> ranks without work


def run_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, fresh: bool = False) -> list[Any]:
    """Results of `function(*arguments)` by rank; fails with the traceback of the first rank that failed.

    Args:
        fresh: on processes that run nothing else: for a function that changes its process, or what it has loaded.
    """
    ranks = None if fresh else _waiting.pop(world_size, None)
    ranks = ranks or _Ranks(world_size)
    is_good = False
    try:
        answers = ranks.run(function, arguments)
        is_good = not fresh
    finally:
        if is_good:
            _waiting[world_size] = ranks
        else:
            ranks.end()
    return answers


class _Ranks:
    def __init__(self, world_size: int):
        context = mp.get_context("forkserver")  # nothing is called there: no threads, no state
        context.set_forkserver_preload(["tests.support.loaded"])
        self._folder = tempfile.TemporaryDirectory(dir=_PLACE)
        meeting = str(Path(self._folder.name) / "meeting")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            self._processes.append(context.Process(target=_rank, args=(rank, world_size, meeting, theirs)))
            self._processes[-1].start()
            theirs.close()

    def run(self, function: Callable[..., Any], arguments: tuple) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, arguments, dict(os.environ), os.getcwd()))
        answers: dict[int, Any] = {}
        end = time.monotonic() + LIMIT_S
        while left := [pipe for rank, pipe in enumerate(self._pipes) if rank not in answers]:
            ready = wait(left, max(0.0, end - time.monotonic()))
            assert ready, f"no answer within {LIMIT_S} s"
            for pipe in ready:
                try:
                    is_good, answer = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    is_good, answer = False, "a rank ended without a word"
                assert is_good, answer
                answers[self._pipes.index(pipe)] = answer  # type: ignore[arg-type]
        return [answers[rank] for rank in range(len(self._pipes))]

    def end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join(20)
        self._folder.cleanup()


@atexit.register
def _end_all() -> None:
    """Before multiprocessing waits for them."""
    while _waiting:
        _waiting.popitem()[1].end()


def _rank(rank: int, world_size: int, meeting: str, pipe: Connection) -> None:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    os.environ |= own
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size, timeout=timedelta(seconds=120)
    )
    while True:
        try:
            function, arguments, environment, folder = pipe.recv()
        except EOFError:  # the tests have ended
            os._exit(0)
        os.environ.clear()
        os.environ |= environment | own
        os.chdir(folder)
        tempfile.tempdir = None  # found again in this environment
        torch.set_num_threads(1)
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        gc.collect()
