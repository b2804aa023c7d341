"""A worker that does nothing, for what a search costs beside training."""

from __future__ import annotations

from typing import Any

from bft_ray.study.execute.actor import TrialActor
from bft_ray.study.records.segment import Run
from jobs.bench.store import METRICS, score


class NothingActor(TrialActor):
    """Reports values that are drawn from the settings, and leaves files as a worker does."""

    def step(self) -> dict[str, Any]:
        segment = self._segment
        done = getattr(self, "_done", 0)
        step = next((rung for rung in segment.rungs if rung > done), segment.tree["schedule"]["steps"])
        is_last = step == segment.tree["schedule"]["steps"]
        loss = {f"loss.{field}": value for field, value in segment.tree["loss"].items()}
        value = score(loss, segment.seed, step)
        train = [dict.fromkeys(METRICS, 1.0)] * step
        run = Run(
            segment.key, "complete" if is_last else "running", "", step, train, {step: {"choices/probability": value}}
        )
        run.write(segment.files)
        self._done = step
        return {"run": run.report, "done": is_last}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._done = 0
        return super().reset_config(new_config)
