"""The whole way on a cluster: `ray job submit` with token authentication, from the repository alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests.support.local_cluster import Cluster, local_cluster
from tests.support.paths import ROOT

pytestmark = pytest.mark.long
LIMIT_S = 1200


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(num_cpus=2) as running:
        yield running


def submit(cluster: Cluster, *entry: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Submit from a clean copy of what git tracks, and wait for the end."""
    runtime = {"env_vars": {"HF_HUB_OFFLINE": "1"}}
    command = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT)]
    command += ["--runtime-env-json", json.dumps(runtime), "--", *entry]
    return subprocess.run(command, env=cluster.env | env, capture_output=True, text=True, timeout=LIMIT_S, cwd="/")


@pytest.mark.release
def test_train_and_evaluate_as_jobs(cluster, make_tree, tmp_path):
    tree = make_tree(
        cluster={"num_workers": 2, "gpus_per_worker": 0, "storage_path": str(tmp_path / "results")},
        schedule={"steps": 4},
        name="job",
    )
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    trained = submit(cluster, "python", "-m", "jobs.train", str(config), "loss.window=8")
    assert trained.returncode == 0, trained.stdout[-3000:] + trained.stderr[-2000:]
    assert "2 workers on cpu" in trained.stdout and "step 4/4" in trained.stdout

    client = MlflowClient(tree["tracking"]["uri"])
    (experiment,) = client.search_experiments(filter_string="name = 'bft/test'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["loss.window"] == "8"

    export = tmp_path / "results" / "job" / "export"
    evaluated = submit(cluster, "python", "-m", "jobs.evaluate", str(config), f"model.path={export}", "name=evaluation")
    assert evaluated.returncode == 0, evaluated.stdout[-3000:] + evaluated.stderr[-2000:]
    final = run.data.metrics["final/validation/nll"]
    assert f"{final:.4g}" in evaluated.stdout


def test_a_job_with_a_typo_fails_and_says_why(cluster, tmp_path):
    failed = submit(cluster, "python", "-m", "jobs.train", "starter", "loss.windw=8")
    assert failed.returncode != 0
    assert "Did you mean `loss.window`?" in failed.stdout


def test_a_client_without_the_token_is_turned_away(cluster):
    refused = submit(cluster, "true", RAY_AUTH_TOKEN_PATH="/dev/null", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    assert "401" in refused.stdout + refused.stderr or "nauthori" in refused.stdout + refused.stderr


def test_doctor_finds_the_cluster_in_order(cluster, make_tree, tmp_path, monkeypatch):
    tree = make_tree(cluster={"address": cluster.address, "num_workers": 2, "gpus_per_worker": 0})
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tree))
    command = [str(Path(cluster.env["PATH"].split(":")[0]) / "bft-ray"), "doctor", str(config)]
    result = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=540)
    assert result.returncode == 0, result.stdout
    assert "FAIL" not in result.stdout and "node" in result.stdout
