"""How many steps a run has: one number for the plan, the loop, the cost and the records of a study."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.config import load_config, make_config
from bft_ray.config.steps import num_steps, steps_if_known
from bft_ray.data.dataset import prepare
from bft_ray.data.plan import BatchPlan
from bft_ray.space.cost import cost_of
from bft_ray.space.definition import SearchSpace
from bft_ray.study.checks.ready import inspect_study
from bft_ray.study.controller import OVER, Controller
from bft_ray.study.definition import Study
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, SEARCH, Store
from bft_ray.train.loop import make_plan
from tests.support.ranks import run_ranks
from tests.support.tiny_tokenizer import tiny_tokenizer

EPOCHS = [0.01, 0.1, 0.5, 1.0, 1.7, 3.0, 7.0]
SPACE = {
    "name": "small",
    "parameters": {"optimizer.learning_rate": {"kind": "categorical", "values": [1e-3, 1e-2]}},
    "objective": {"metric": "validation/token_accuracy"},
    "budget": {"trials": 2},
    "sampler": {"kind": "grid"},
    "scheduler": {"kind": "asha", "grace_steps": 2, "reduction": 2},
    "baselines": [{"name": "sft", "overrides": {"loss.method": "sft"}}],
}


def config_with(ratios: list[float], batch: int, epochs: float, **data: Any) -> Any:
    sources = [{"path": "rows.jsonl", "ratio": ratio} for ratio in ratios]
    tree = load_config("starter").model_dump()
    tree["schedule"] |= {"steps": None, "epochs": epochs}
    tree["cluster"] |= {"num_workers": 1}
    tree["data"] |= {"train": sources, "global_batch_size": batch} | data
    return make_config(tree)


@settings(max_examples=100)
@given(st.data())
def test_as_many_as_the_plan_has(data):
    sizes = data.draw(st.lists(st.integers(1, 2000), min_size=1, max_size=3))
    ratio = st.floats(0.01, 5) | st.sampled_from([0.25, 0.5, 1.0, 2.0])
    ratios = data.draw(st.lists(ratio, min_size=len(sizes), max_size=len(sizes)))
    batch, epochs = data.draw(st.integers(1, 3000)), data.draw(st.sampled_from(EPOCHS) | st.floats(0.001, 9))
    config = config_with(ratios, batch, epochs)
    plan = BatchPlan(sum(sizes), batch, 0, source_index=np.repeat(np.arange(len(sizes)), sizes), ratios=ratios)
    assert num_steps(config, sizes) == max(1, math.ceil(epochs * plan.steps_per_epoch))
    assert plan.samples_per_epoch == sum(max(1, round(r * n)) for r, n in zip(ratios, sizes, strict=True))
    given_steps = config.model_copy(update={"schedule": config.schedule.model_copy(update={"steps": 5})})
    assert num_steps(given_steps, sizes) == steps_if_known(given_steps, None) == 5


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from([0.3, 1.0, 2.5]), st.integers(0, 4)), min_size=1, max_size=3
    ),
    st.sampled_from([1, 7, 16, 64]),
    st.sampled_from(EPOCHS),
)
def test_as_many_as_the_loop_makes_of_what_tokenising_keeps(tmp_path_factory, sources, batch, epochs):
    """Sources with a limit, a ratio, and rows that are dropped, too long or empty."""
    folder = tmp_path_factory.mktemp("sources")
    tree: dict[str, Any] = {"domain": "test", "schedule": {"epochs": epochs}, "checkpoint": {"export": "last"}}
    tree["data"] = {"train": [], "global_batch_size": batch, "max_length": 24, "too_long": "drop"}
    tree["data"]["cache_dir"] = str(folder / "cache")
    for index, (kept, ratio, dropped) in enumerate(sources):
        rows = [{"prompt": "w", "completion": f"a{n}"} for n in range(kept)]
        rows[1:1] = [{"prompt": "w", "completion": "word " * 30}] * dropped
        path = folder / f"{index}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in [*rows, *rows]))
        tree["data"]["train"].append({"path": str(path), "ratio": ratio, "limit": kept + dropped})
    config = make_config(tree)
    train = prepare(config.data.train, tiny_tokenizer(), config.data)
    assert train.samples_per_source == tuple(kept for kept, _, _ in sources)
    plan, steps = make_plan(config, train)
    assert steps == num_steps(config, train.samples_per_source)
    assert steps == max(1, math.ceil(epochs * (sum(max(1, round(r * n)) for n, r, _ in sources) / batch)))
    assert steps == max(1, math.ceil(epochs * plan.steps_per_epoch))


@pytest.mark.parametrize(
    ("sizes", "batch", "epochs", "steps"),
    [
        ([33], 16, 3.0, 7),  # not 3 * ceil(33 / 16)
        ([20], 16, 3.0, 4),
        ([5], 16, 1.0, 1),  # a batch larger than the data
        ([5], 16, 0.01, 1),
        ([100, 10], 16, 1.0, 7),
        ([100], 1, 0.07, 8),  # 0.07 * 100 is 7.000000000000001: as the loop has always had it
    ],
)
def test_known_numbers(sizes, batch, epochs, steps):
    config = config_with([1.0] * len(sizes), batch, epochs)
    assert num_steps(config, sizes) == steps and steps_if_known(config, None) is None
    space = SearchSpace.model_validate(SPACE | {"domain": "test"})
    assert cost_of(space, config, samples_per_source=sizes).steps == steps


# ---- studies that train ------------------------------------------------------------------------------------------------


def studies(trees: list[dict], folder: str) -> list[list[TrialRecord]]:
    """Baselines and search of a study a tree, driven in this process by real trials."""
    import torch

    from bft_ray.study.execute.warm import Warm

    warm, found = Warm(torch.device("cpu")), []
    for number, tree in enumerate(trees):
        space, base = SearchSpace.model_validate(SPACE), make_config(tree)
        place = f"{folder}/{number}"
        facts = inspect_study(space, base)
        study = Study("id", space, base, facts.longest, facts.samples_per_source, place)
        with Database(f"sqlite:///{folder}/{number}.db") as database:
            store = Store.create(database, space, base, facts.fingerprints)
            controller = Controller(study, store, lambda: 1)
            while (segment := controller.next()) != OVER:
                run_segment(controller, segment, warm)
            store.lease.drop()
            found.append([record for part in (BASELINES, SEARCH) for record in controller.records(part)])
    return found


def run_segment(controller: Controller, segment: Any, warm: Any) -> None:
    from bft_ray.study.execute.segments import run_segment

    controller.begun(segment)
    for reached in run_segment(segment, warm):
        if reached.status != "running" or not controller.is_promoted(segment, reached):
            return controller.ended(segment, reached)


@pytest.mark.slow
def test_studies_with_epochs_come_to_their_end(make_tree, tiny_data, tmp_path):
    """At sizes at which the batches of an epoch are not whole; among them one with two sources and dropped rows."""
    rows = [json.loads(line) for line in tiny_data.read_text().splitlines()]
    write(tmp_path / "train.jsonl", rows[:36])
    write(tmp_path / "more.jsonl", [*rows[:9], {"prompt": "w1", "completion": "w2 " * 300}])
    write(tmp_path / "validation.jsonl", rows[36:])
    trees, expected = [], []
    for size, batch, epochs, steps in ((5, 7, 3.0, 3), (33, 16, 3.0, 7), (20, 7, 0.5, 2), (36, 7, 1.0, 6)):
        trees.append(tree_of(make_tree, tmp_path, epochs, batch, [{"path": "train.jsonl", "limit": size}]))
        expected.append(steps)
    mixed = [{"path": "train.jsonl", "ratio": 0.5, "limit": 15}, {"path": "more.jsonl", "ratio": 1.5}]
    trees.append(tree_of(make_tree, tmp_path, 2.0, 16, mixed))  # 2 * (8 + 14) / 16
    expected.append(3)
    (found,) = run_ranks(studies, 1, trees, str(tmp_path))
    for records, steps in zip(found, expected, strict=True):
        assert {record.planned_steps for record in records} == {steps} and len(records) == 4
        assert all(record.is_finished for record in records)
        complete = [record for record in records if record.state == "complete"]
        assert len(complete) >= 3 and {record.num_steps for record in complete} == {steps}


def write(path: Path, rows: list[dict]) -> None:
    random.Random(0).shuffle(rows)
    path.write_text("\n".join(map(json.dumps, rows)))


def tree_of(make_tree: Any, folder: Path, epochs: float, batch: int, sources: list[dict]) -> dict:
    tree = make_tree(schedule={"steps": None, "epochs": epochs}, evaluation={"every_steps": None})
    tree["data"] |= {"global_batch_size": batch, "too_long": "drop"}
    tree["data"]["train"] = [source | {"path": str(folder / source["path"])} for source in sources]
    tree["data"]["validation"] = [{"path": str(folder / "validation.jsonl")}]
    del tree["name"]
    return tree
