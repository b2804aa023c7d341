"""One run on a worker: the reward at the start, GRPO, the reward at the end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bft_ray.config import DataConfig, ModelConfig
from bft_ray.evaluate.engine.worker import load
from bft_ray.operate.after_rl.definition import Grpo
from bft_ray.operate.after_rl.grpo import Course, require_trl, run_grpo
from bft_ray.operate.after_rl.items import Items
from bft_ray.operate.after_rl.record import Run
from bft_ray.operate.after_rl.reward import measure


@dataclass(frozen=True)
class Task:
    """What all runs of a study share; travels to each worker once.

    Args:
        folder: of the study, which all workers reach.
    """

    folder: str
    train: Items
    held_out: Items
    answer: str
    grpo: Grpo
    data: DataConfig
    batch_tokens: int


@dataclass(frozen=True)
class Start:
    """One run to be done: the model that it starts from."""

    arm: str
    seed: int
    model: ModelConfig


def run_stage(task: Task, start: Start) -> Run:
    """Measure, train, measure; the record is kept before this returns.

    Weights are in fp32. A model whose reward at the start is out of range is not trained: where (nearly) all answers of a
    group get the same reward, GRPO has no gradient.

    Raises:
        BadInput: no TRL on this node, or a model that cannot be read.
        BftError: a loss that is not finite.
    """
    require_trl()
    began, grpo, answer = time.monotonic(), task.grpo, task.answer
    exact = start.model.model_copy(update={"dtype": "fp32"})
    loaded = load(exact, task.data, task.batch_tokens, start.seed)
    first = measure(loaded, task.train.first(grpo.start_prompts), answer, grpo, start.seed)
    mean = sum(first.values()) / len(first)
    before = measure(loaded, task.held_out, answer, grpo, start.seed)
    after: dict[str, float] = {}
    course = Course([], 0.0)
    if grpo.low <= mean <= grpo.high:
        course = run_grpo(loaded, task.train, answer, grpo, start.seed, autocast=start.model.dtype == "bf16")
        after = measure(loaded, task.held_out, answer, grpo, start.seed)
    run = Run(start.arm, start.seed, mean, before, after, course.rewards, course.mixed, time.monotonic() - began)
    run.write(task.folder)
    return run
