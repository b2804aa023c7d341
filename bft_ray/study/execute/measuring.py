"""The model in training, measured where it is: by this process alone, or shared by the ranks of its process group."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bft_ray.config import Config
from bft_ray.evaluate.collect import Job, collect
from bft_ray.evaluate.engine.worker import Loaded, answer
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.study.execute.warm import Tasks, Warm
from bft_ray.train import ranks
from bft_ray.train.engine import Engine


def measure(
    engine: Engine, warm: Warm, config: Config, tasks: Tasks, names: Collection[str] | None = None
) -> EvaluationResult:
    """Measure the model in training on the sets of these names (None: all); every rank calls it and gets the result.

    Rank 0 sends requests to the others, and computes the metrics from all answers. Under ZeRO-3 each rank has the whole
    weights meanwhile.

    Raises:
        BftError: one of them could not be measured.
    """
    chosen = {name: task for name, task in tasks.prepared.items() if names is None or name in names}
    num_ranks = engine.world_size
    with _whole(engine, warm, config) as module:
        loaded = Loaded(module, engine.device, tasks.context, tasks.eos_ids)
        if not ranks.is_first():
            return _serve(loaded)
        found: EvaluationResult | Exception
        try:
            found, errors = collect(
                chosen, num_ranks, tasks.context.batch_tokens // num_ranks, lambda jobs: _share(loaded, jobs)
            )
            found = next(iter(errors.values()), found)
        except Exception as error:
            found = error
        ranks.from_first((found, None))
    if isinstance(found, Exception):
        raise found
    return found


def _share(loaded: Loaded, jobs: list[Job]) -> list[Any]:
    """The answers of all jobs, in order; on rank 0."""
    num_ranks = ranks.world_size()
    if num_ranks == 1:
        return [answer(loaded, job) for job in jobs]
    ranks.from_first((None, jobs))
    answers: list[Any] = [None] * len(jobs)
    for rank, own in enumerate(ranks.gather(_answers(loaded, jobs[::num_ranks]))):
        if isinstance(own, Exception):
            raise own
        answers[rank::num_ranks] = own
    return answers


def _serve(loaded: Loaded) -> EvaluationResult:
    """Answer this rank's part of what rank 0 asks, until it sends the result."""
    none: tuple[Any, Any] = (None, None)
    while True:
        found, jobs = ranks.from_first(none)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            return found
        ranks.gather(_answers(loaded, jobs[torch.distributed.get_rank() :: ranks.world_size()]))


def _answers(loaded: Loaded, jobs: list[Job]) -> list[Any] | Exception:
    """Answers, or the error: rank 0 raises it, and every rank after it."""
    try:
        return [answer(loaded, job) for job in jobs]
    except Exception as error:
        return error


@contextmanager
def _whole(engine: Engine, warm: Warm, config: Config) -> Iterator[torch.nn.Module]:
    """The model with all of its weights, ready to be measured, while the context lasts."""
    if engine.stage == 3:
        with warm.measured(config) as model:
            engine.fill(model)
            yield model.eval()
        return
    engine.module.eval()
    try:
        yield engine.module
    finally:
        engine.module.train()
