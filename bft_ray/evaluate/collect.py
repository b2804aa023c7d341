"""Prepared tasks -> what each measured: the one place where requests, answers and metrics of several tasks meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bft_ray.config.tasks import HarnessTask
from bft_ray.errors import BftError
from bft_ray.evaluate.engine.pool import pooled
from bft_ray.evaluate.engine.request import Prepared, Request
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.waits import waiting

Job = Request | HarnessTask


def collect(
    prepared: Mapping[str, Prepared | HarnessTask],
    num_shards: int,
    shard_cost: int,
    run: Callable[[list[Job]], list[Any]],
) -> tuple[EvaluationResult, dict[str, BftError]]:
    """What was measured, and why the other tasks were not, by the name of the set.

    Args:
        prepared: by the name of the set; a harness task is one job, for it asks the model itself.
        num_shards, shard_cost: see `pooled`.
        run: jobs -> their answers, in order (`bft_ray.evaluate.engine.worker.answer`).
    """
    requests = [request for task in prepared.values() if isinstance(task, Prepared) for request in task.requests]
    harness = [task for task in prepared.values() if isinstance(task, HarnessTask)]
    pool = pooled(requests, num_shards, shard_cost)
    answered = run([*harness, *pool.shards])
    measured_by_harness, answers = iter(answered[: len(harness)]), iter(pool.in_order(answered[len(harness) :]))
    result, errors = EvaluationResult({}, []), dict[str, BftError]()
    for name, task in prepared.items():
        try:
            if isinstance(task, Prepared):
                own = [next(answers) for _ in task.requests]
                with waiting("computing metrics, or asking a judge"):
                    measured = task.finish(own)
            else:
                measured = next(measured_by_harness)
        except BftError as error:
            errors[name] = error
            continue
        result.metrics.update(measured.metrics)
        result.records.extend({"set": name} | record for record in measured.records)
    return result, errors
