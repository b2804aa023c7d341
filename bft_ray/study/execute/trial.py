"""One trial: a fine-tuning by one worker in this process, measured at rungs with the model in memory."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from bft_ray.config import Config
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.collect import collect
from bft_ray.evaluate.engine.worker import Loaded, answer
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.model.export import export_model
from bft_ray.places import storage
from bft_ray.study.execute.warm import Tasks, Warm
from bft_ray.study.records.segment import Run
from bft_ray.train.checkpoint import verify_manifest, write_manifest
from bft_ray.train.engine import Engine, join_alone, pin_threads
from bft_ray.train.loop import Data, make_plan, train_steps

#: (steps done, metrics) -> whether the trial is promoted
Report = Callable[[int, dict[str, float]], bool]

log = logging.getLogger(__name__)

_STEP = "step.json"  # beside a paused trial's state


def trial(
    config: Config,
    rungs: Collection[int],
    warm: Warm,
    run: Run,
    *,
    start: int = 0,
    until: int | None = None,
    pause: Path | None = None,
    keep: Path | None = None,
    at_rungs: Collection[str] | None = None,
) -> Generator[int, None, None]:
    """Train from the base model to the last step, and measure `data.validation` and `evaluation.tasks`.

    On CPU the result is a function of the config and the data, bit for bit: it is the same whatever the process ran
    before, and the same as from `bft_ray.train.loop.fit`. Only the state and the weights are written, where asked.

    Yields the number of steps done at each measurement, after the measurement is in `run`; at the last one, its status is
    no longer `running`. Closing the generator stops the trial and frees what it holds.

    Args:
        rungs: steps after which the model is measured, as it is at the end; 0 is the base model.
        warm: what stays loaded in this process.
        run: the run so far; measurements are added to it.
        start: steps done by the state in `pause` (see `paused_at`): the trial resumes from it, as if it had not been
            paused.
        until: one of `rungs`: save weights and optimizer in `pause` there, and end.
        pause: folder of the state.
        keep: folder for the final weights of a complete trial: an adapter, or a whole model, that transformers loads.
        at_rungs: names of the sets that are measured at rungs (`validation`, or a task's); None: all of them.

    Raises:
        BadInput: a config that cannot run here (bad data or model, several workers, zero3).
        DiskFull: there is no room for the state or the weights.
        BftError: a loss or an answer was not finite.
    """
    laps = _Laps(run.seconds)
    _require_one_worker(config)
    pin_threads(config)
    join_alone()
    torch.manual_seed(config.seed)  # nothing depends on what an earlier trial has drawn
    data, tasks = warm.data(config), warm.tasks(config)
    _, num_steps = make_plan(config, data.train)
    with _set_apart(), warm.model(config) as model:
        engine = Engine(config, warm.device, model)
        try:
            data = warm.with_start(config, engine, data)
            if start:
                assert pause is not None
                engine.load(pause)
            with closing(_training(engine, config, data, start, {*rungs, num_steps}, run)) as stops:
                laps.end("start")
                for step in stops:
                    laps.end("train")
                    is_last = step == num_steps
                    measured = measure(engine, tasks, None if is_last else at_rungs)
                    run.metrics[step] = measured.metrics
                    laps.end("measure")
                    if is_last:
                        if keep is not None:
                            _keep_weights(engine, config, tasks, keep)
                        run.status, run.records = "complete", measured.records
                    elif step == until:
                        assert pause is not None
                        _save_state(engine, step, pause)
                        run.status = "paused"
                    laps.end("end")
                    yield step
                    laps.end("report")
                    if step == until:
                        break
        finally:
            engine.close()
            del engine, model
    laps.end("end")


def run_trial(
    config: Config, rungs: Collection[int], report: Report, warm: Warm, *, pause: Path | None = None, **options: Any
) -> Run:
    """Run a `trial`, and report each measurement to the caller; resume from the state in `pause`, where there is one.

    Args:
        report: called with each measurement; at a rung, False stops the trial.
        options: of `trial`.

    Raises:
        BadInput: see `trial`. A value that is not finite raises nothing: the run has failed.
    """
    run = Run()
    start = (paused_at(pause) if pause else None) or 0
    try:
        with closing(trial(config, rungs, warm, run, start=start, pause=pause, **options)) as stops:
            for step in stops:
                if not report(step, run.metrics[step]) and run.status == "running":
                    run.status = "pruned"
                    break
    except BadInput:
        raise
    except BftError as error:
        run.status, run.reason = "failed", str(error)
    return run


def paused_at(folder: Path) -> int | None:
    """Steps done by the trial that saved its state in this folder; None where there is no state, or it is damaged."""
    if not folder.is_dir():
        return None
    try:
        verify_manifest(folder, 0, 1)
        return int(json.loads((folder / _STEP).read_text()))
    except (BadInput, OSError, ValueError, TypeError) as error:
        log.warning("the state of a trial is damaged, so the trial starts again: %s", error)
        return None


def _training(
    engine: Engine, config: Config, data: Data, start: int, stops: Collection[int], run: Run
) -> Generator[int, None, None]:
    """Train to the last step, and add to `run`; yields each of `stops` when so many steps are done."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    run.num_steps = start
    if start in stops and not start:  # a paused trial has been measured at its rung
        yield start
    with closing(train_steps(engine, config, data, start, make_plan(config, data.train)[1])) as steps:
        for done, metrics, _ in steps:
            run.train.append(metrics)
            run.num_steps = done
            if done in stops:
                yield done


def measure(engine: Engine, tasks: Tasks, names: Collection[str] | None = None) -> EvaluationResult:
    """Measure the model in training on the sets of these names (None: all).

    Raises:
        BftError: one of them could not be measured.
    """
    loaded = Loaded(engine.module, engine.device, tasks.context, tasks.eos_ids)
    chosen = {name: task for name, task in tasks.prepared.items() if names is None or name in names}
    engine.module.eval()
    try:
        result, errors = collect(
            chosen, 1, tasks.context.batch_tokens, lambda jobs: [answer(loaded, job) for job in jobs]
        )
    finally:
        engine.module.train()
    for error in errors.values():
        raise error
    return result


@contextmanager
def _set_apart() -> Iterator[None]:
    """Free the objects of the block at its end: DeepSpeed's objects refer to each other, and to a copy of the model.

    Older objects are hidden from the garbage collector meanwhile: to visit those of all libraries would take longer than
    many trials.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


class _Laps:
    """Seconds by part: each `end` adds the time since the previous one to its part."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self._seconds[part] = self._seconds.get(part, 0.0) + now - self._last
        self._last = now


def _require_one_worker(config: Config) -> None:
    if config.cluster.num_workers != 1:
        raise BadInput("cluster.num_workers", config.cluster.num_workers, "1 for a trial within one process")
    if config.deepspeed.preset == "zero3":
        rule = "zero0 to zero2 for a trial within one process, which evaluates the model that it trains"
        raise BadInput("deepspeed.preset", "zero3", rule, "On one worker zero2 needs hardly more memory.")


def _save_state(engine: Engine, step: int, folder: Path) -> None:
    with storage.whole_folder(folder) as made:
        engine.save(made, {})
        (made / _STEP).write_text(json.dumps(step))
        write_manifest(made, 0, 1)


def _keep_weights(engine: Engine, config: Config, tasks: Tasks, folder: Path) -> None:
    weights = engine.weights()
    assert weights is not None
    with storage.whole_folder(folder) as made:
        export_model(engine.module, weights, tasks.context.tokenizer, config.model, made)
