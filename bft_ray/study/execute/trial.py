"""One trial: a fine-tuning by the ranks of this process group, or by this process alone, measured at rungs in memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from bft_ray.config import Config
from bft_ray.model.export import export_model
from bft_ray.places import storage
from bft_ray.places.scratch import scratch
from bft_ray.study.execute import paused
from bft_ray.study.execute.measuring import measure
from bft_ray.study.execute.warm import Tasks, Warm
from bft_ray.study.records.segment import Run
from bft_ray.train import ranks
from bft_ray.train.engine import Engine, join_alone, pin_threads
from bft_ray.train.loop import Data, make_plan, train_steps


def trial(
    config: Config,
    rungs: Collection[int],
    warm: Warm,
    run: Run,
    *,
    start: str | None = None,
    until: int | None = None,
    pause: str | None = None,
    keep: str | None = None,
    at_rungs: Collection[str] | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> Generator[int, None, None]:
    """Train from the base model to the last step, and measure `data.validation` and `evaluation.tasks`.

    In a process group every rank calls it. On CPU the result is a function of config, data and number of ranks, bit for bit:
    it is the same whatever the processes ran before, and the same as from `bft_ray.train.loop.fit`. Only the state and the
    weights are written, where asked.

    Yields the number of steps done at each measurement, after the measurement is in `run`; at the last one, its status is
    no longer `running`. Closing the generator stops the trial and frees what it holds. Where a rank was asked to save and end, the state
    is saved in `pause` after the present step, with the status `saved`, and the trial ends.

    Args:
        rungs: steps after which the model is measured, as it is at the end; 0 is the base model.
        warm: what stays loaded in this process.
        run: the run so far, which fits `start`; measurements are added to it.
        start: a state that `paused.latest` found: the trial resumes from it, as if it had not been paused.
        until: one of `rungs`: save weights and optimizer in `pause` there, and end.
        pause: folder or URI of states. Several workers also save one every `checkpoint.every_steps` steps, because more
            of them may die.
        keep: folder or URI for the final weights of a complete trial: an adapter, or a whole model, that transformers loads.
        at_rungs: names of the sets that are measured at rungs (`validation`, or a task's); None: all of them.
        asked: whether this rank was asked to save and end.

    Raises:
        BadInput: a config that cannot run here (bad data or model).
        DiskFull: there is no room for the state or the weights.
        BftError: a loss or an answer was not finite.
    """
    laps = _Laps(run.seconds)
    pin_threads(config)
    join_alone()
    torch.manual_seed(config.seed)  # nothing depends on what an earlier trial has drawn
    data, tasks = warm.data(config), warm.tasks(config)
    _, num_steps = make_plan(config, data.train)
    with _set_apart(), warm.trained(config) as model:
        engine = Engine(config, warm.device, model, asked)
        try:
            data = warm.with_start(config, engine, data)
            if start is not None:
                paused.load(engine, start)
            measured_at, saved_at = {*rungs, num_steps}, _saves(config, num_steps, pause)
            with closing(_training(engine, config, data, num_steps, measured_at | saved_at, run)) as stops:
                laps.end("start")
                for step in stops:
                    laps.end("train")
                    if step in measured_at:
                        names = None if step == num_steps else at_rungs
                        measured = measure(engine, warm, config, tasks, names)
                        run.metrics[step] = measured.metrics
                        laps.end("measure")
                    if step == num_steps:
                        if keep is not None:
                            _keep_weights(engine, config, tasks, keep)
                        run.status, run.records = "complete", measured.records
                    elif step == until or step in saved_at or (engine.is_ending and step not in measured_at):
                        # not after a rung: whoever judges it must hear of it first, and the next step comes at once
                        assert pause is not None
                        is_saved = engine.is_ending and step not in measured_at
                        run.status = "paused" if step == until else "saved" if is_saved else "running"
                        paused.save(engine, run, pause)
                    laps.end("end")
                    if step in measured_at or run.status == "saved":
                        yield step
                        laps.end("report")
                    if step == until or run.status == "saved":
                        break
        finally:
            engine.close()
            del engine, model
    laps.end("end")


def _saves(config: Config, num_steps: int, pause: str | None) -> set[int]:
    """Steps after which the state is saved within a segment."""
    every = config.checkpoint.every_steps
    return set() if ranks.world_size() == 1 or pause is None or every is None else {*range(every, num_steps, every)}


def _training(
    engine: Engine, config: Config, data: Data, num_steps: int, stops: Collection[int], run: Run
) -> Generator[int, None, None]:
    """Train to the last step, and add to `run`; yields each of `stops` when so many steps are done, and a step after which to end."""
    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    if run.num_steps in stops and not run.num_steps:  # a paused trial has been measured at its rung
        yield 0
    with closing(train_steps(engine, config, data, run.num_steps, num_steps)) as steps:
        for done, metrics, _ in steps:
            run.train.append(metrics)
            run.num_steps = done
            if done in stops or engine.is_ending:
                yield done


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


def _keep_weights(engine: Engine, config: Config, tasks: Tasks, target: str) -> None:
    """Write the final weights; every rank calls it."""
    weights = engine.weights()
    if weights is None:
        return
    export = (engine.module, weights, tasks.context.tokenizer, config.model)
    if not storage.is_remote(target):
        with storage.whole_folder(Path(target)) as made:
            export_model(*export, made)
        return
    with scratch("weights") as folder:
        export_model(*export, folder / "weights")
        storage.put_folder(folder / "weights", target)
