"""Scaling: what is made of the points, and one whole measurement."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from jobs.scaling import Point, efficiencies, main, recommended, text_of


def point(kind: str, num_workers: int, tokens_per_s: float | None, stage: str = "zero1", reason: str = "") -> Point:
    steps = None if tokens_per_s is None else (1.0, 1.0, 1.0)
    return Point(kind, stage, num_workers, 16, tokens_per_s, steps, None, reason)


STRONG = [point("strong", 1, 100.0), point("strong", 2, 180.0), point("strong", 4, 300.0)]


def test_efficiency_is_the_rate_of_a_worker_beside_that_of_the_fewest():
    weak, other = point("weak", 4, 390.0), point("strong", 2, 50.0, "zero3")
    shares = efficiencies([*STRONG, weak, other, point("strong", 8, None)])
    assert [shares[one] for one in STRONG] == pytest.approx([1.0, 0.9, 0.75])
    assert shares[weak] == pytest.approx(0.975) and shares[other] == 1.0  # each stage beside its own
    assert len(shares) == 5


def test_the_fastest_that_is_efficient_enough_is_recommended():
    assert recommended(STRONG, 0.8) == STRONG[1]
    assert recommended(STRONG, 0.7) == STRONG[2]
    assert recommended([*STRONG, point("weak", 8, 900.0)], 0.8) == STRONG[1]  # weak scaling answers another question
    faster = point("strong", 1, 250.0, "zero2")
    assert recommended([*STRONG, faster], 0.8) == faster
    assert recommended([point("strong", 1, None, reason="no room")], 0.8) is None
    text = text_of([*STRONG, point("strong", 8, None, reason="no room")], 0.8)
    assert "failed: no room" in text and "recommended: 2 workers with zero1, 180 supervised tokens/s" in text


@pytest.mark.parametrize("words", [["--workers", "0"], ["--workers", "1,1"], ["--stages", "zero9"], ["--steps", "0"]])
def test_bad_input_is_refused_before_a_worker_starts(words, capsys):
    assert main(["starter", *words]) == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.release
def test_a_measurement_over_one_and_two_workers(make_tree, tmp_path, capsys):
    tree = make_tree(cluster={"cpus_per_worker": 0.5, "gpus_per_worker": 0}, data={"global_batch_size": 4})
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(tree))
    out = tmp_path / "found" / "scaling"
    arguments = [str(config), "--workers", "1,2", "--stages", "zero3", "--steps", "3", "--out", str(out)]
    assert main([*arguments, "--efficiency", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "recommended: " in text
    points = json.loads(out.with_suffix(".json").read_text())["points"]
    assert [(one["kind"], one["stage"], one["num_workers"], one["global_batch_size"]) for one in points] == [
        (kind, "zero3", number, batch) for kind, number, batch in (("strong", 1, 4), ("strong", 2, 4), ("weak", 2, 8))
    ]
    assert all(one["tokens_per_s"] > 0 and not one["reason"] for one in points), points
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "results").glob("scaling-*"))

    client = MlflowClient(tree["tracking"]["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`bft.kind` = 'scaling'")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "scaling/weak/zero3/efficiency")
    assert [(one.step, one.value > 0) for one in history] == [(1, True), (2, True)]
    assert {one.path for one in client.list_artifacts(run.info.run_id, "scaling")} == {
        "scaling/scaling.json",
        "scaling/scaling.png",
    }
