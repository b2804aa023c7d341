"""One trial: a fine-tuning by one worker in this process, measured on its way with the model in memory."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from bft_ray.config import Config
from bft_ray.data.prefetch import prefetch
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.pool import answer_all
from bft_ray.evaluate.request import Prepared
from bft_ray.evaluate.run import EvaluationResult
from bft_ray.evaluate.worker import Loaded, answer
from bft_ray.model.export import export_model
from bft_ray.search.warm import Tasks, Warm
from bft_ray.train.checkpoint import verify_manifest, write_manifest
from bft_ray.train.engine import Engine, join_alone, pin_threads
from bft_ray.train.loop import Data, make_plan, share_of
from bft_ray.train.schedule import learning_rate
from bft_ray.train.step import train_step

#: (steps done, metrics) -> whether the trial goes on
Report = Callable[[int, dict[str, float]], bool]


@dataclass
class TrialResult:
    """What became of a trial; plain values, which travel and can be stored.

    Args:
        status: complete; pruned: stopped at a rung; failed: a loss or an answer was not finite. Only a complete
            trial has a score.
        reason: why it failed.
        num_steps: steps that moved the weights, those before a pause among them.
        train: metrics of each step (`train/...`), since the pause where there was one.
        metrics: steps done -> what was measured then.
        records: one an item of the last measurement of a complete trial: `set`, `id`, numbers, never text.
        seconds: by part: `start` (from the call to the first step), `train`, `measure`, `report` (the answer waited
            for), `end`.
    """

    status: Literal["complete", "pruned", "failed"] = "complete"
    reason: str | None = None
    num_steps: int = 0
    train: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def run_trial(
    config: Config,
    rungs: Sequence[int],
    report: Report,
    warm: Warm,
    *,
    keep: Path | None = None,
    pause: Path | None = None,
    at_rungs: Collection[str] | None = None,
) -> TrialResult:
    """Train from the base model to the last step, and measure `data.validation` and `evaluation.tasks`.

    On CPU the result is a function of the config and the data, bit for bit: whatever the process has run before, and
    as `bft_ray.train.loop.fit` would train. Nothing is written but the weights, where asked.

    Args:
        rungs: steps after which the model is measured and reported, as it is at the end; 0 is the base model.
        report: is told each measurement; at a rung, False stops the trial.
        warm: what stays loaded in this process.
        keep: folder for the final weights of a complete trial: an adapter, or a whole model, that transformers loads.
        pause: folder in which a trial that is stopped leaves weights and optimizer, and from which it goes on if they
            are there, as if it had not been stopped: so a process need not wait for the other trials of a rung.
        at_rungs: names of the sets that are measured at rungs (`validation`, or a task's); None: all of them.

    Raises:
        BadInput: a config that cannot run here (bad data or model, several workers, zero3), or a damaged `pause`.
    """
    laps, result = _Laps(), TrialResult()
    result.seconds = laps.seconds
    _require_one_worker(config)
    pin_threads(config)
    join_alone()
    torch.manual_seed(config.seed)  # nothing hangs on what an earlier trial has drawn
    data, tasks = warm.data(config), warm.tasks(config)
    _, num_steps = make_plan(config, data.train)
    with _set_apart(), warm.model(config) as model:
        engine = Engine(config, warm.device, model)
        try:
            start = _go_on(engine, pause)
            with closing(_training(engine, config, data, start, {*rungs, num_steps}, result)) as stops:
                laps.end("start")
                for step in stops:
                    laps.end("train")
                    is_last = step == num_steps
                    measured = measure(engine, tasks, None if is_last else at_rungs)
                    result.metrics[step] = measured.metrics
                    laps.end("measure")
                    goes_on = report(step, measured.metrics)
                    laps.end("report")
                    if is_last:
                        result.records = measured.records
                    elif not goes_on:
                        result.status = "pruned"
                        _pause(engine, step, pause)
                        break
            if keep is not None and result.status == "complete":
                _keep_weights(engine, config, tasks, keep)
        except BadInput:
            raise
        except BftError as error:
            result.status, result.reason = "failed", str(error)
        finally:
            engine.close()
            del engine, model
    laps.end("end")
    return result


def _training(
    engine: Engine, config: Config, data: Data, start: int, stops: Collection[int], result: TrialResult
) -> Generator[int, None, None]:
    """Train to the last step, and tell `result`; yields each of `stops` when so many steps are done."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    plan, num_steps = make_plan(config, data.train)
    steps = range(start, num_steps)
    result.num_steps = start
    if start in stops and not start:  # where it was paused, it has been measured
        yield start
    with closing(prefetch(lambda step: share_of(engine, config, data, plan.batch(step)), steps)) as shares:
        for step, share in zip(steps, shares, strict=True):
            rate = learning_rate(step, num_steps, config.optimizer.learning_rate, config.schedule)
            result.train.append(train_step(engine, share, config.loss, step=step, learning_rate=rate, seed=config.seed))
            result.num_steps = step + 1
            if step + 1 in stops:
                yield step + 1


def measure(engine: Engine, tasks: Tasks, names: Collection[str] | None = None) -> EvaluationResult:
    """What the model that is being trained gets in the sets of these names (None: all)."""
    loaded = Loaded(engine.module, engine.device, tasks.context, tasks.eos_ids)
    chosen = {name: task for name, task in tasks.prepared.items() if names is None or name in names}
    requests = [request for task in chosen.values() if isinstance(task, Prepared) for request in task.requests]
    metrics: dict[str, float] = {}
    records: list[dict[str, Any]] = []
    engine.module.eval()
    try:
        answers = iter(
            answer_all(requests, 1, tasks.context.batch_tokens, lambda shards: [answer(loaded, one) for one in shards])
        )
        for name, task in chosen.items():
            measured = (
                task.finish([next(answers) for _ in task.requests])
                if isinstance(task, Prepared)
                else answer(loaded, task)  # a harness task asks the model itself
            )
            metrics |= measured.metrics
            records += [{"set": name} | record for record in measured.records]
    finally:
        engine.module.train()
    return EvaluationResult(metrics, records)


@contextmanager
def _set_apart() -> Iterator[None]:
    """Frees at the end what the block has left: DeepSpeed's objects hold each other, and a copy of the model.

    What was there before is out of the collector's sight meanwhile: it would take longer than many a trial to look
    through all libraries.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


class _Laps:
    """Seconds by part: each `end` gives the time since the one before to its part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def _require_one_worker(config: Config) -> None:
    if config.cluster.num_workers != 1:
        raise BadInput("cluster.num_workers", config.cluster.num_workers, "1 for a trial within one process")
    if config.deepspeed.preset == "zero3":
        rule = "zero0 to zero2 for a trial within one process, which evaluates the model that it trains"
        raise BadInput("deepspeed.preset", "zero3", rule, "On one worker zero2 needs hardly more memory.")


def _go_on(engine: Engine, folder: Path | None) -> int:
    """The step at which the trial was paused, its state restored; 0 where it was not."""
    if folder is None or not folder.is_dir():
        return 0
    verify_manifest(folder, 0, 1)
    return int(engine.load(folder)["step"])


def _pause(engine: Engine, step: int, folder: Path | None) -> None:
    if folder is not None:
        with _whole(folder) as made:
            engine.save(made, {"step": step})
            write_manifest(made, 0, 1)


def _keep_weights(engine: Engine, config: Config, tasks: Tasks, folder: Path) -> None:
    weights = engine.weights()
    assert weights is not None
    with _whole(folder) as made:
        export_model(engine.module, weights, tasks.context.tokenizer, config.model, made)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A place to write to, which becomes `folder` at the end: that is there whole, or not at all."""
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
