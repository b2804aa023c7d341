"""A run whose own files were damaged, on Ray Train's workers: it goes on in its MLflow run, or says why not, at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bft_ray.config import make_config
from bft_ray.errors import BadConfig
from bft_ray.train.launch import train
from bft_ray.train.snapshot import FILE
from tests.support.damage import damage
from tests.support.recorder import Recorder

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def ray_of_one():
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield Path(ray._private.worker._global_node.get_session_dir_path())
    ray.shutdown()


def test_a_run_with_damaged_files_goes_on_or_says_why_not(ray_of_one, make_tree, caplog):
    tree = make_tree(checkpoint={"keep": 3})
    tree["cluster"] |= {"num_workers": 1, "gpus_per_worker": 0}
    first = train(make_config(tree), Recorder())
    folder = Path(first.folder)
    client = MlflowClient(tree["tracking"]["uri"])

    damage(folder / "run.json", "half")
    damage(folder / FILE, "half")
    again = Recorder()
    assert train(make_config(tree), again).run_id == first.run_id
    assert dict(again.events)["resume"]["step"] == 6
    for name in ("run.json", FILE):
        assert f"{folder / name}" in caplog.text and "it counts as absent" in caplog.text
    caplog.clear()

    damage(folder / "run.json", "flip")
    damage(folder / "step-00000006" / "manifest-00000.json", "flip")
    again = Recorder()
    last = train(make_config(tree), again)
    assert (last.run_id, last.after) == (first.run_id, first.after)  # the same weights, from an earlier checkpoint
    assert dict(again.events)["resume"]["step"] == 4
    passed = f"the checkpoint {folder}/step-00000006 is passed over: manifest-00000.json is damaged"
    assert dict(again.events)["passed over"] == {"lines": [passed]}
    assert client.get_run(first.run_id).data.tags["bft.passed_over"] == passed
    caplog.clear()

    damage(folder / "run.json", "empty")
    shard = max((folder / "step-00000006" / "engine").iterdir(), key=lambda path: path.stat().st_size)
    damage(shard, "flip")
    before, again = started(ray_of_one), Recorder()
    assert train(make_config(tree), again).after == first.after
    assert started(ray_of_one) == before + 2  # those that found the damage, and those that went on
    assert dict(again.events)["resume"]["step"] == 4
    why = f"{shard.name} must be unchanged since it was written (its checksum differs)"
    passed = f"the checkpoint {folder}/step-00000006 is passed over: {why}"
    assert dict(again.events)["passed over"] == {"lines": [passed]}
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED" and run.data.tags["bft.passed_over"] == passed
    unfit = "is damaged (it names step-00000006, which is not whole)"
    assert f"{folder / FILE}, Ray's list of checkpoints, {unfit}" in caplog.text
    assert len(client.search_runs([run.info.experiment_id])) == 1

    finished, rows = Recorder(), Path(tree["data"]["train"][0]["path"])
    assert train(make_config(tree), finished).run_id == first.run_id and "resume" not in dict(finished.events)
    shutil.rmtree(folder / "export")
    assert train(make_config(tree), Recorder()).after == first.after
    assert (folder / "export" / "model.safetensors").is_file()
    text = rows.read_text()
    try:
        rows.write_text(text.replace("w1", "w2", 1))
        with pytest.raises(BadConfig, match="began with other data or weights than those of now"):
            train(make_config(tree), Recorder())
    finally:
        rows.write_text(text)


def started(session: Path) -> int:
    """How many workers Ray Train has started."""
    return len(list(session.glob("logs/train/ray-train-app-worker-*.log")))
