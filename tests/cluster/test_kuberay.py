"""cluster/kuberay: held against KubeRay's own schemas, and what no schema tells."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from bft_ray.cli import make_parser
from bft_ray.space.load import load_study
from bft_ray.study.records.database import database_url
from tests.support.kuberay import rayjob_schema
from tests.support.paths import ROOT

FOLDER = ROOT / "cluster" / "kuberay"
TEXT = (FOLDER / "rayjob.yaml").read_text()
JOB: dict[str, Any] = yaml.safe_load(TEXT)
CLAIM: dict[str, Any] = yaml.safe_load((FOLDER / "results.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
PODS = [HEAD["template"]["spec"], *(group["template"]["spec"] for group in WORKERS)]
CONTAINERS = [container for pod in PODS for container in pod["containers"]]
ADDRESS = "postgresql://bft:p&ss w$rd@db.example.org/studies?a=*"


@pytest.fixture(scope="module")
def schema():
    return rayjob_schema()


def errors(schema: Any, tree: Any) -> list[str]:
    return [
        f"{error.json_path}: {error.message[:200]}" for error in jsonschema.Draft7Validator(schema).iter_errors(tree)
    ]


def test_the_schema_knows_every_field(schema):
    assert errors(schema, JOB) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "ttlSecondsAfterFinish"), 1),
        (("spec", "backoffLimit"), "2"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "volumeMount"), []),
    ],
)
def test_the_schema_finds_mistakes(schema, path, value):
    tree = copy.deepcopy(JOB)
    place: Any = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert len(errors(schema, tree)) == 1


def test_the_claim_is_one(schema):
    pod = schema["properties"]["spec"]["properties"]["rayClusterSpec"]["properties"]["headGroupSpec"]["properties"]
    volume = pod["template"]["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volume["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    assert (CLAIM["apiVersion"], CLAIM["kind"]) == ("v1", "PersistentVolumeClaim")
    assert errors(claim, CLAIM["spec"]) == []
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_the_operator_checks_beside_the_schema():
    assert re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", JOB["metadata"]["name"]) and len(JOB["metadata"]["name"]) <= 47
    assert JOB["spec"]["shutdownAfterJobFinishes"] and JOB["spec"]["ttlSecondsAfterFinished"] >= 0
    assert JOB["spec"]["activeDeadlineSeconds"] > 0 and JOB["spec"]["submissionMode"] == "K8sJobMode"
    assert CLUSTER["enableInTreeAutoscaling"] and all("restartPolicy" not in pod for pod in PODS)
    for group in WORKERS:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0


def test_one_version_of_ray_and_a_token():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and CLUSTER["rayVersion"] == pinned[1]
    assert f"Ray {pinned[1]}" in TEXT
    assert CLUSTER["authOptions"] == {"mode": "token"}  # KubeRay makes one for each cluster
    (image,) = {container["image"] for container in CONTAINERS}
    assert "/" not in image  # a placeholder: no registry of anybody


def test_work_goes_to_the_workers():
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    for resources in [CLUSTER["autoscalerOptions"]["resources"], *(each["resources"] for each in CONTAINERS)]:
        assert resources["requests"] == resources["limits"] and {"cpu", "memory"} <= set(resources["limits"])
    gpus = ["nvidia.com/gpu" in container["resources"]["limits"] for container in CONTAINERS]
    assert gpus == [False, *(True for _ in WORKERS)]


def test_all_pods_mount_the_results_and_shared_memory():
    for pod in PODS:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/results"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert size(mounts["/dev/shm"]["emptyDir"]["sizeLimit"]) < size(container["resources"]["limits"]["memory"])
        assert set(volumes) == {mount["name"] for mount in container["volumeMounts"]}
        assert container["workingDir"].startswith("/results/")


def size(quantity: str) -> int:
    assert quantity.endswith("Gi")
    return int(quantity[:-2])


def test_ports_are_those_that_ray_and_the_operator_expect():
    ports = {port["name"]: port["containerPort"] for port in HEAD["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001}


def test_secrets_come_from_the_secret_that_the_comments_name():
    for container in CONTAINERS:
        names = [variable["name"] for variable in container["env"]]
        assert len(set(names)) == len(names)
        for variable in container["env"]:
            if re.search("DATABASE|MLFLOW|PASSWORD|TOKEN|KEY", variable["name"]):
                reference = variable["valueFrom"]["secretKeyRef"]
                assert f"secret generic {reference['name']} " in TEXT
                assert reference["key"] == variable["name"]
                assert reference.get("optional") or f"--from-literal={reference['key']}=" in TEXT
    for group in WORKERS:  # only the driver, on the head, writes the study
        (container,) = group["template"]["spec"]["containers"]
        assert "STUDY_DATABASE" not in {variable["name"] for variable in container["env"]}


def test_the_entrypoint_is_a_search_and_its_record_has_no_password(tmp_path, monkeypatch):
    """As KubeRay's submitter hands it to `ray job submit`, that to Ray, and Ray to the shell of the head."""
    stub = "ray() { shift 3; printf '%s\\0' \"$@\"; }"
    submitter = subprocess.check_output(["bash", "-ec", f"{stub}; ray job submit -- {JOB['spec']['entrypoint']} ;"])
    record = shlex.join(submitter.decode().split("\0")[:-1])
    assert "STUDY_DATABASE" not in record and "tracking.uri" not in record

    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    python.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    got = subprocess.check_output(record, shell=True, env=env).decode().split("\0")[:-1]
    assert got[:2] == ["-m", "jobs.search"]
    options, rest = make_parser().parse_known_args(["search", *got[2:]])
    overrides = [*options.overrides, *rest]
    assert options.config.startswith("/results/") and "cluster.storage_path=/results" in overrides
    assert all("=" in word and not word.startswith("-") for word in rest)
    monkeypatch.setenv("STUDY_DATABASE", ADDRESS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m:5000")
    _, base = load_study(options.space, None, overrides)
    assert database_url(options.database) == ADDRESS and base.tracking.uri == "http://m:5000"
