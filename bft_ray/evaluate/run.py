"""One evaluation from the config: a base model, an adapter or a merged model, on Ray workers where there are some.

Every task is read, checked and tokenised on the driver. Then the requests of all tasks are pooled and shared out over
the workers; only tokens travel there, and each worker loads the model once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bft_ray.config import Config
from bft_ray.config.measured import VALIDATION
from bft_ray.config.tasks import HarnessTask, Task
from bft_ray.data.dataset import prepare
from bft_ray.data.passing import tokens_pass
from bft_ray.data.tokenise import with_date
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.engine.pool import answer_all
from bft_ray.evaluate.engine.request import Context, Measured, Prepared, Request
from bft_ray.evaluate.engine.worker import answer, load
from bft_ray.evaluate.tasks import choose, prepare_task
from bft_ray.evaluate.tasks.text import prepare_dataset
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.places.cache import check_out
from bft_ray.places.kept import read_kept, write_kept, write_text
from bft_ray.places.modes import kept_for
from bft_ray.waits import waiting
from bft_ray.workers.spread import spread

_METRICS, _RECORDS, _CHECKSUMS = "metrics.json", "records.jsonl", "sha256.json"
_SHARDS_A_WORKER = 4  # so that a slow worker does not hold up the rest, and little is lost with a dead one


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name (see `bft_ray.metrics`), one record an item: `set`, `id`, numbers, never text."""

    metrics: dict[str, float]
    records: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        """`metrics.json` and `records.jsonl`, and their checksums: each whole or not at all."""
        texts = {
            _METRICS: json.dumps(self.metrics, indent=1) + "\n",
            _RECORDS: "".join(json.dumps(record) + "\n" for record in self.records),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CHECKSUMS).unlink(missing_ok=True)  # of what lay here before
        for name, text in texts.items():
            write_text(folder / name, text)
        write_kept(folder / _CHECKSUMS, {name: _sha256(text.encode()) for name, text in texts.items()}, indent=1)

    @staticmethod
    def read(folder: Path) -> EvaluationResult:
        """What `write` wrote; an earlier version wrote no checksums.

        Raises:
            BadInput: that is not so, or it is damaged: somebody asks for this evaluation, and there is no other.
        """
        again = "Write one with `bft-ray evaluate CONFIG --out FOLDER`"
        try:
            contents = {name: (folder / name).read_bytes() for name in (_METRICS, _RECORDS)}
            metrics = json.loads(contents[_METRICS])
            records = [json.loads(line) for line in contents[_RECORDS].splitlines()]
        except (OSError, ValueError) as error:
            rule = f"an evaluation: {_METRICS} and {_RECORDS}"
            raise BadInput("folder", folder, rule, f"{_unread(error)}. {again}.") from None
        sums = read_kept(folder / _CHECKSUMS, list(contents))
        changed = [name for name, content in contents.items() if sums and sums[name] != _sha256(content)]
        if changed or (sums is None and (folder / _CHECKSUMS).exists()):
            rule = f"unchanged since it was written (its checksum in {_CHECKSUMS} differs)"
            raise BadInput("folder", folder / (changed or [_CHECKSUMS])[0], rule, f"{again}.")
        return EvaluationResult(metrics, records)


def _unread(error: OSError | ValueError) -> str:
    """Why an evaluation could not be read, as a sentence without its full stop."""
    if isinstance(error, OSError):
        return f"{Path(error.filename or '').name}: {error.strerror or type(error).__name__}"
    return "What is there is no JSON"


def evaluate_model(
    config: Config,
    out: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    names: Sequence[str] | None = None,
) -> EvaluationResult:
    """Measure `config.model` on `data.validation` (`validation/...`) and on every task of `evaluation.tasks`.

    Results do not depend on the number of workers (fp32: 1e-5).

    Args:
        out: folder for `metrics.json` and `records.jsonl`.
        progress: called with (shards done, shards in all).
        names: measure these tasks alone (`validation` is one).

    Raises:
        BadInput: nothing to measure, bad data (named by file and line), a model that cannot be read, or a cluster
            that cannot hold the workers.
        BftError: a task that could not be measured after all; `out` holds what the others measured.
    """
    with tokens_pass(), kept_for(config.cluster.file_mode), waiting("evaluating"):
        return _evaluate_model(config, out, progress, names)


def _evaluate_model(
    config: Config, out: Path | None, progress: Callable[[int, int], None] | None, names: Sequence[str] | None
) -> EvaluationResult:
    if out is not None:
        check_out(out)
    context = prepare_context(config)
    check_model(config, context.tokenizer)
    prepared = prepare_all(config, context, names)
    if not prepared:
        remedy = "There is nothing to measure. For example evaluation.tasks: [{kind: choice, path: exam.jsonl}]."
        raise BadInput("data.validation", [], "given, or else evaluation.tasks", remedy)
    metrics: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    failed: list[str] = []
    for name, measured in zip(prepared, _measure(list(prepared.values()), config, progress), strict=True):
        if isinstance(measured, BftError):
            failed.append(f"{name}: {measured}")
            continue
        metrics |= measured.metrics
        records += [{"set": name} | record for record in measured.records]
    result = EvaluationResult(metrics, records)
    if out is not None:
        result.write(out)
    if failed:  # a judge that gave up, say: what the other tasks measured is not lost with it
        kept = f"\nThe other tasks are measured: {out}" if out is not None and metrics else ""
        raise BftError("\n".join(failed) + kept)
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
            prepared[task.name] = _prepared(task, context)
    return prepared


def _prepared(task: Task, context: Context) -> Prepared | HarnessTask:
    made = prepare_task(task, context)
    if made is None:
        assert isinstance(task, HarnessTask)
        return task
    return made


def _measure(
    prepared: Sequence[Prepared | HarnessTask], config: Config, progress: Callable[[int, int], None] | None
) -> list[Measured | BftError]:
    """What each task measured, or why it did not. A harness task is one job, on one worker, for it asks the model itself."""
    requests = [request for each in prepared if isinstance(each, Prepared) for request in each.requests]
    harness = [each for each in prepared if isinstance(each, HarnessTask)]
    measured: list[Measured] = []

    def run(shards: list[Request]) -> list[Any]:
        settings = (config.model, config.data, config.evaluation.batch_tokens, config.seed)
        answers = spread(
            answer, [*harness, *shards], cluster=config.cluster, setup=partial(load, *settings), progress=progress
        )
        measured.extend(answers[: len(harness)])
        return answers[len(harness) :]

    num_shards = config.cluster.num_workers * _SHARDS_A_WORKER
    answers = iter(answer_all(requests, num_shards, config.evaluation.batch_tokens, run))
    by_harness = iter(measured)
    return [
        next(by_harness) if isinstance(each, HarnessTask) else _finish(each, [next(answers) for _ in each.requests])
        for each in prepared
    ]


def _finish(task: Prepared, answers: list[Any]) -> Measured | BftError:
    try:
        with waiting("computing metrics, or asking a judge"):
            return task.finish(answers)
    except BftError as error:
        return error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
