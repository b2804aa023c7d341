"""Each bundled series at its smallest size, trained for real: two of its conditions, one rate, three seeds, a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from bft_ray.operate.series import EXPERIMENT, read_series, run_series
from bft_ray.space.series import all_series, load_series
from bft_ray.study.report.recorder import PAGE

SMALL = [
    "budget.steps=null",
    "schedule.epochs=0.25",
    "confirmation.seeds=[101, 102, 103]",
    "confirmation.min_seeds_waived=true",
    "data.train.0.limit=70",  # a baseline that leaves wrong rows out has fewer steps
    "data.max_length=128",
    "evaluation.tasks.0.limit=8",
]


@pytest.mark.release
@pytest.mark.parametrize("name", sorted(all_series()))
def test_a_series_at_its_smallest_size(name, tmp_path):
    tree = yaml.safe_load(all_series()[name].read_text())
    tree["conditions"] = dict(list(tree["conditions"].items())[:2])
    tree["trends"], tree["contrasts"] = [], []  # two conditions may lie at one place of an axis, or in one group
    tree["overrides"]["parameters"] = {"optimizer.learning_rate": {"kind": "categorical", "values": [1e-3]}}
    path = tmp_path / "series.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    own = [
        f"cluster.storage_path={tmp_path / 'results'}",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        f"data.cache_dir={tmp_path / 'cache'}",
    ]
    first = tree["overrides"] | next(iter(tree["conditions"].values()))["overrides"]
    if len(first.get("evaluation.tasks", [])) > 1:
        own.append("evaluation.tasks.1.limit=40")
    database = f"sqlite:///{tmp_path}/studies.db"
    text = run_series(path, None, SMALL + own, database, lambda line: None, profile=False, measure=False)
    found = read_series(load_series(path), None, SMALL + own, database)
    assert found.is_whole, text
    for judged in found.judged.values():
        assert len(judged) == len(next(iter(found.known.values())).study.space.claims)
        for one in judged:
            assert one.gain is not None, one.why
            assert f"that {one.claim}".replace("`", "") in text
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert {"series.json", PAGE} <= {one.path for one in client.list_artifacts(run.info.run_id)}
    page = Path(client.download_artifacts(run.info.run_id, PAGE)).read_text()
    assert tree["question"] in page and "<svg" in page
