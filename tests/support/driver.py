"""A whole `bft-ray search` on a folder, whose trials are pretended."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from bft_ray.config import make_config
from bft_ray.space.definition import SearchSpace
from bft_ray.study.conclude import StudyResult
from bft_ray.study.driver import search
from bft_ray.study.place import Place
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import Store
from bft_ray.study.report.live import Live
from tests.support.executor import METRIC, InProcess, make_study

DATA = "starter:gene_interaction/choices_{}"


class Driver:
    """`bft-ray search` on a folder."""

    def __init__(self, folder: Path, base: dict[str, Any]):
        self.folder, self.base = folder, make_config(base)
        self.url = f"sqlite:///{folder}/studies.db"
        self.told = io.StringIO()

    def space(self, **more: Any) -> SearchSpace:
        confirmation = {
            "top_k": 1,
            "seeds": [101, 102, 103],
            "min_seeds_waived": True,
            "overrides": {"evaluation.tasks.0.path": DATA.format("confirmation")},
        }
        small = {
            "budget": {"trials": 6},
            "sampler": {"kind": "random"},
            "scheduler": {"kind": "none"},
            "confirmation": confirmation,
            "baselines": [{"name": "bft", "overrides": {"loss.method": "bft"}}],
        }
        return make_study(self.folder, **small | more).space

    def search(self, place: Place | None = None, **more: Any) -> StudyResult:
        self.told = io.StringIO()
        space = self.space(**more)
        live, place = Live("study", METRIC, stream=self.told), place or InProcess()
        return search(space, self.base, self.url, profile=False, measure=False, live=live, place=place)

    def notes(self) -> dict[str, Any]:
        with Database(self.url) as database:
            return Store.find(database, "small/test").notes()

    def records(self) -> list[TrialRecord]:
        with Database(self.url) as database:
            return Store.find(database, "small/test").records()

    def run(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.base.tracking.uri).get_run(self.notes()["run_id"])
