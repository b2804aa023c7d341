"""A place for a study without Ray, in which segments are really trained."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bft_ray.config import ClusterConfig, Config
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.execute.segments import run_segment
from bft_ray.study.execute.warm import Warm
from tests.support.executor import InProcess


class Here(InProcess):
    """One segment after the other, trained by this process alone, on the CPU."""

    def num_slots(self, cluster: ClusterConfig) -> Callable[[], int]:
        return lambda: 1

    def run(self, controller: Controller, first: Config, look: Callable[[], None]) -> None:
        warm = Warm(torch.device("cpu"))
        while (segment := controller.next()) != OVER:
            assert segment is not None, "with one place, each segment that is given out has ended"
            look()
            controller.begun(segment)
            for run in run_segment(segment, warm):
                if run.status == "running":
                    assert controller.is_promoted(segment, run)
            controller.ended(segment, run)
