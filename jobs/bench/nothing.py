"""A worker that does nothing, for what a search costs beside training."""

from __future__ import annotations

from typing import Any

from bft_ray.study.execute.trainable import TrialActor
from bft_ray.study.records.segment import Reached, Run
from jobs.bench.store import score

METRICS = ("train/loss", "train/nll", "train/grad_norm", "train/learning_rate")


class NothingActor(TrialActor):
    """Reports values that are drawn from the settings, and leaves files as a worker does."""

    def step(self) -> dict[str, Any]:
        leg = self._leg
        done = getattr(self, "_done", 0)
        step = next((rung for rung in leg.rungs if rung > done), leg.tree["schedule"]["steps"])
        is_last = step == leg.tree["schedule"]["steps"]
        loss = {f"loss.{field}": value for field, value in leg.tree["loss"].items()}
        value = score(loss, leg.seed, step)
        reached = Reached(step, {"choices/probability": value}, "complete" if is_last else "running")
        run = Run(leg.key, reached.status, "", step, [dict.fromkeys(METRICS, 1.0)] * step, {step: reached.metrics})
        run.write(leg)
        self._done = step
        return {"reached": reached, "done": is_last}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._done = 0
        return super().reset_config(new_config)
