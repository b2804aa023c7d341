"""Which settings a study may go on with, given as a user gives them: on the command line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from bft_ray.errors import BadConfig
from bft_ray.space.load import load_study
from bft_ray.study.records.same_study import refuse_others, study_settings

#: what a resume on another cluster brings with it
MOVED = [
    "cluster.address=127.0.0.1:26379",
    "cluster.max_failures=5",
    "cluster.start_timeout_s=30",
    "tracking.uri=http://me:secret@127.0.0.1:25000",
    "tracking.timeout_s=5",
    "checkpoint.keep=3",
    "data.cache_dir=elsewhere",
]
#: what is the same up to rounding
LAYOUT = [
    "cluster.num_workers=2",
    "cluster.cpus_per_worker=2",
    "cluster.gpus_per_worker=1",
    "data.micro_batch_tokens=4096",
    "evaluation.batch_tokens=4096",
]


@pytest.fixture
def settings(make_tree, tmp_path):
    """A function: the settings of a study that is given with these overrides."""

    def make(overrides: list[str] = (), **more: Any) -> dict[str, Any]:  # type: ignore[assignment]
        config, space = tmp_path / "config.yaml", tmp_path / "space.yaml"
        config.write_text(yaml.safe_dump(make_tree()))
        tree = {
            "name": "small",
            "config": "config.yaml",
            "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
            "objective": {"metric": "validation/token_accuracy"},
            "budget": {"trials": 2, "steps": 4},
            "sampler": {"kind": "random"},
            "scheduler": {"kind": "none"},
            "baselines": [],
        }
        space.write_text(yaml.safe_dump(tree | more))
        return study_settings(*load_study(space, overrides=overrides), {})

    return make


def changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The fields that are refused."""
    try:
        refuse_others("small/test", old, new)
    except BadConfig as error:
        return [problem.split("`")[1] for problem in error.problems]
    return []


def test_a_study_goes_on_at_other_addresses(settings):
    old = settings()
    assert changed(old, settings([*MOVED, *LAYOUT])) == []
    assert changed(settings([*MOVED, *LAYOUT]), old) == []
    assert changed(settings(["tracking.uri=http://a:1"]), settings(["tracking.uri=http://b:2"])) == []
    assert "secret" not in str(settings(MOVED))


def test_a_study_that_is_to_be_repeated_exactly_keeps_its_layout(settings):
    old = settings(deterministic=True)
    assert changed(old, settings(MOVED, deterministic=True)) == []
    fixed = sorted(f"space.fixed.{name.partition('=')[0]}" for name in LAYOUT)
    assert changed(old, settings(LAYOUT, deterministic=True)) == fixed


def test_results_never_change_within_a_study(settings):
    others = ["optimizer.learning_rate=0.01", "data.global_batch_size=4", "data.max_length=64", "lora.rank=4"]
    for other in others:
        assert any(other.partition("=")[0] in field for field in changed(settings(), settings([other]))), other


def test_the_files_of_a_study_stay_where_they_are(settings, tmp_path):
    """Weights and paused trials lie there. Where the place is given does not count."""
    here = f"cluster.storage_path={tmp_path}/results"
    assert changed(settings(), settings([here])) == []
    assert changed(settings(), settings(["cluster.storage_path=/elsewhere"])) == ["cluster.storage_path"]
