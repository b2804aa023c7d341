"""One evaluation from the config: a base model, an adapter or a merged model, on Ray workers where there are some.

Every task is read, checked and tokenised on the driver. Then the requests of all tasks are pooled and shared out over
the workers; only tokens travel there, and each worker loads the model once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bft_ray.config import Config
from bft_ray.config.measured import VALIDATION
from bft_ray.config.tasks import HarnessTask
from bft_ray.data.dataset import prepare
from bft_ray.data.passing import tokens_pass
from bft_ray.data.tokenise import with_date
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.alike import settings_of
from bft_ray.evaluate.collect import Job, collect
from bft_ray.evaluate.engine.request import Context, Prepared
from bft_ray.evaluate.engine.worker import answer, load
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.evaluate.tasks import choose, prepare_task
from bft_ray.evaluate.tasks.text import prepare_dataset
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.places.cache import check_out
from bft_ray.places.modes import kept_for
from bft_ray.waits import waiting
from bft_ray.workers.connect import require_cluster
from bft_ray.workers.spread import spread

log = logging.getLogger(__name__)
_SHARDS_A_WORKER = 4  # so that a slow worker does not hold up the rest, and little is lost with a dead one


def evaluate_model(
    config: Config,
    out: Path | None = None,
    names: Sequence[str] | None = None,
) -> EvaluationResult:
    """Measure `config.model` on `data.validation` (`validation/...`) and on every task of `evaluation.tasks`.

    Results do not depend on the number of workers (fp32: 1e-5).

    Args:
        out: folder for `metrics.json`, `records.jsonl` and `settings.json`.
        names: measure these tasks alone (`validation` is one).

    Raises:
        BadInput: nothing to measure, bad data (named by file and line), a model that cannot be read, or a cluster
            that cannot hold the workers.
        BftError: a task that could not be measured after all; `out` holds what the others measured.
    """
    with tokens_pass(), kept_for(config.cluster.file_mode), waiting("evaluating"):
        if out is not None:
            check_out(out)
        require_cluster(config.cluster)
        context = prepare_context(config)
        for note in check_model(config, context.tokenizer):
            log.warning("note: %s", note)
        prepared = prepare_all(config, context, names)
        if not prepared:
            remedy = "There is nothing to measure. For example evaluation.tasks: [{kind: choice, path: exam.jsonl}]."
            raise BadInput("data.validation", [], "given, or else evaluation.tasks", remedy)
        settings = (config.model, config.data, config.evaluation.batch_tokens, config.seed)

        def run(jobs: list[Job]) -> list[Any]:
            return spread(answer, jobs, cluster=config.cluster, setup=partial(load, *settings))

        result, errors = collect(
            prepared, config.cluster.num_workers * _SHARDS_A_WORKER, config.evaluation.batch_tokens, run
        )
        tasks = {task.name: task for task in config.evaluation.tasks}
        ways = {name: settings_of(tasks.get(name), config.data.max_length) for name in prepared if name not in errors}
        result = replace(result, settings=ways)
        if out is not None:
            result.write(out)
        if errors:  # such as a judge that gave up: the results of the other tasks are kept
            kept = f"\nThe other tasks are measured: {out}" if out is not None and result.metrics else ""
            raise BftError("\n".join(f"{name}: {error}" for name, error in errors.items()) + kept)
        return result


def prepare_context(config: Config) -> Context:
    """What evaluators may use on the driver; BadInput where there is no tokenizer."""
    tokenizer = load_tokenizer(config.model)
    return Context(tokenizer, with_date(config.data, tokenizer), config.evaluation.batch_tokens, config.seed)


def prepare_all(
    config: Config, context: Context, names: Sequence[str] | None = None
) -> dict[str, Prepared | HarnessTask]:
    """What is measured by the name of its set, read and checked; no model is loaded."""
    tasks, with_validation = choose(config.evaluation.tasks, names, bool(config.data.validation))
    prepared: dict[str, Prepared | HarnessTask] = {}
    if with_validation:
        dataset = prepare(config.data.validation, context.tokenizer, context.data, "data.validation")
        prepared[VALIDATION] = prepare_dataset(dataset, VALIDATION, context)
    for task in tasks:
        with waiting(f"reading the task {task.name}"):
            prepared[task.name] = prepare_task(task, context)
    return prepared
