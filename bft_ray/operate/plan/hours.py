"""How long a run or a study takes, and its price: from a speed that somebody measured, never from a guess."""

from __future__ import annotations

from collections.abc import Sequence

from bft_ray.config import Config
from bft_ray.config.steps import steps_if_known
from bft_ray.data.dataset import prepare
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.space.cost import cost_of
from bft_ray.space.definition import SearchSpace
from bft_ray.study.records.leaderboard import span

UNKNOWN = (
    "hours   not known without a measured speed: give --step-s SECONDS (`train/step_s` of a run in this set-up), or let "
    "`bft-ray search SPACE --dry-run` measure it"
)


def hours(config: Config, space: SearchSpace | None, base: Config, step_s: float, price: float | None) -> str:
    """A line: steps x seconds a step, GPU-hours where there are GPUs, and their price.

    Evaluations and starts are not in it. Where the schedule is in epochs, the training data are read.

    Args:
        config: of the run, or of the first trial.
        base: that the space varies.
        step_s: seconds of an optimizer step, measured in this set-up.
        price: of an hour of one GPU.

    Raises:
        BadInput: bad data, or a study whose trials differ in their number of steps.
    """
    samples: Sequence[int] | None = None
    if config.schedule.steps is None:
        samples = prepare(config.data.train, load_tokenizer(config.model), config.data, "data.train").samples_per_source
    if space is None:
        steps, what = steps_if_known(config, samples), "the run"
    else:
        cost = cost_of(space, base, None, samples)
        parts = (cost.tuning_steps, cost.search_steps_stopped or cost.search_steps, cost.confirmation_steps)
        steps = None if None in parts else sum(part or 0 for part in parts)
        what = "the study, one trial at a time"
    if steps is None:
        raise BadInput("--step-s", step_s, "left out: trials differ in their number of steps")
    seconds = steps * step_s
    line = f"hours   {span(seconds)} for {what}: {steps:,} steps of {step_s:g} s, without evaluations"
    return line + spent(config, seconds, price)


def spent(config: Config, seconds: float, price: float | None) -> str:
    """`; 3.2 GPU-hours, 6.40 at 2 an hour`, "" on CPUs."""
    gpus = config.cluster.num_workers * (
        1.0 if config.cluster.gpus_per_worker is None else config.cluster.gpus_per_worker
    )
    if not gpus:
        return ""
    gpu_hours = gpus * seconds / 3600
    return f"; {gpu_hours:.3g} GPU-hours" + (
        "" if price is None else f", {gpu_hours * price:,.2f} at {price:g} an hour"
    )
