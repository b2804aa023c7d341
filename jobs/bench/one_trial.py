"""One trial in this process, without a study: what benchmarks and tests run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from typing import Any

from bft_ray.config import Config
from bft_ray.errors import BadInput, BftError
from bft_ray.study.execute import paused
from bft_ray.study.execute.trial import trial
from bft_ray.study.execute.warm import Warm
from bft_ray.study.records.segment import Run

#: (steps done, metrics) -> whether the trial is promoted
Report = Callable[[int, dict[str, float]], bool]


def run_trial(
    config: Config, rungs: Collection[int], report: Report, warm: Warm, *, pause: str | None = None, **options: Any
) -> Run:
    """Run a `trial`, and report each measurement to the caller; resume from the state in `pause`, where there is one.

    Args:
        report: called with each measurement; at a rung, False stops the trial.
        options: of `trial`.

    Raises:
        BadInput: see `trial`. A value that is not finite raises nothing: the run has failed.
    """
    start, run = (pause and paused.latest(pause, Run().key)) or (None, Run())
    run.status = "running"
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
