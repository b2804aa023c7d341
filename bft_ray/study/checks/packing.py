"""The layout of samples in the batches of a study: chosen once on a worker, noted, and the same for all of its trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bft_ray.config import Config
from bft_ray.model.layouts import measure_layouts
from bft_ray.model.packing import Rows, choose_rows
from bft_ray.study.checks.ready import Facts
from bft_ray.study.definition import Study
from bft_ray.study.records.store import Store
from bft_ray.workers.spread import spread

_NOTE = "packing"


def settle_packing(study: Study, facts: Facts, store: Store, line: Callable[[str], None]) -> tuple[Study, Facts]:
    """Study and facts with `data.packing` set where it was null; within `connect` only.

    It stays null where trials differ in the model: each trial then chooses for its own.

    Raises:
        BadInput: see `choose_rows`.
    """
    if facts.first.data.packing is not None or any(name.startswith("model.") for name in study.space.parameters):
        return study, facts
    packing = store.notes().get(_NOTE)
    if packing is None:
        cluster = facts.first.cluster.model_copy(update={"num_workers": 1})
        (rows,) = spread(_choose, [facts.first], cluster=cluster)
        line(f"rows: {rows.why}")
        store.note(_NOTE, packing := rows.packing)
    return (
        replace(study, base=_with(study.base, packing)),
        replace(facts, first=_with(facts.first, packing)),
    )


def _choose(state: Any, config: Config) -> Rows:
    """Choose on a worker, with the model that it would train."""
    from bft_ray.evaluate.engine.worker import load

    loaded = load(config.model, config.data, config.evaluation.batch_tokens, config.seed)
    return choose_rows(config, measure_layouts(loaded.model, loaded.device), loaded.model, loaded.device)


def _with(config: Config, packing: bool) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"packing": packing})})
