"""cluster/kuberay beside the job: options that are merged into it, policies, services, and what all pods are held to."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import jsonschema
import psycopg
import pytest
import yaml

from bft_ray.tracking.login import USER
from tests.support.kuberay import merged, rayjob_schema
from tests.support.local_cluster import free_ports
from tests.support.paths import ROOT
from tests.support.servers import HAS_POSTGRES, postgres, running

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="needs the extra `clouds`")
FOLDER = ROOT / "cluster" / "kuberay"
VERSION = "1.33"
JOB: dict[str, Any] = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
OPTIONS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((FOLDER / "options").glob("*.yaml"))}
PLAIN = [
    (path.name, document)
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if document["apiVersion"] != "ray.io/v1"
]
PART = {"app.kubernetes.io/part-of": "bft-ray"}


def pods() -> list[tuple[str, dict[str, Any]]]:
    """Every pod template of the folder, by where it stands."""
    found: list[tuple[str, dict[str, Any]]] = []

    def walk(where: str, tree: Any) -> None:
        if isinstance(tree, dict):
            if isinstance(tree.get("spec"), dict) and "containers" in tree["spec"]:
                found.append((where, tree))
            for key, value in tree.items():
                walk(f"{where}/{key}", value)
        elif isinstance(tree, list):
            for item in tree:
                walk(where, item)

    walk("rayjob", JOB)
    for name, document in PLAIN:
        walk(f"{name}/{document['kind']}", document)
    return found


@pytest.fixture(scope="module")
def schema():
    return rayjob_schema()


def test_the_parts_are_these():
    assert set(OPTIONS) == {"kueue", "gcs_redis", "gcs_rocksdb", "history"}
    kinds = sorted(f"{name} {document['kind']}" for name, document in PLAIN)
    assert len(kinds) == 15 and kinds.count("network.yaml NetworkPolicy") == 5
    assert len(pods()) == 6


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_makes_a_job_that_the_schema_knows(schema, name):
    job = merged(JOB, OPTIONS[name])
    assert job != JOB
    found = jsonschema.Draft7Validator(schema).iter_errors(job)
    assert [f"{error.json_path}: {error.message[:200]}" for error in found] == []
    broken = merged(job, {"spec": {"rayClusterSpec": {"gcsFaultToleranceOption": {}}}})
    assert len(list(jsonschema.Draft7Validator(schema).iter_errors(broken))) == 1


def test_what_the_operator_asks_of_the_options():
    """Of its validation, beside the schema: https://github.com/ray-project/kuberay, `ValidateRayClusterSpec`."""
    cluster = {name: merged(JOB, option)["spec"]["rayClusterSpec"] for name, option in OPTIONS.items()}
    assert not cluster["kueue"]["enableInTreeAutoscaling"] and "autoscalerOptions" not in cluster["kueue"]
    assert cluster["kueue"]["workerGroupSpecs"][0]["replicas"] > 0  # it has no autoscaler that would start one
    redis, rocksdb = (cluster[name]["gcsFaultToleranceOptions"] for name in ("gcs_redis", "gcs_rocksdb"))
    assert redis["redisAddress"].startswith("rediss://") and "storage" not in redis
    assert not [key for key in rocksdb if key.startswith("redis")] and "claimName" not in rocksdb["storage"]
    for option in (redis["redisUsername"], redis["redisPassword"]):
        assert option["valueFrom"]["secretKeyRef"]["name"] == "bft-ray-redis"
    collector = cluster["history"]["historyServerOptions"]["collectorOptions"]
    server = next(
        document
        for _, document in PLAIN
        if document["metadata"]["name"] == "bft-ray-history" and document["kind"] == "Deployment"
    )
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert container["env"] == collector["env"]  # it reads where the collectors write
    assert container["image"].partition(":")[2] == collector["image"].partition(":")[2]
    head = JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert not {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "RAY_GCS_STORAGE"} & {each["name"] for each in head["env"]}


@pytest.mark.parametrize(
    ("name", "document"), PLAIN, ids=[f"{name}-{each['kind']}-{each['metadata']['name']}" for name, each in PLAIN]
)
def test_kubernetes_knows_every_field(name, document):
    kubernetes_validate.validate(document, VERSION, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document | {"specs": {}}, VERSION, strict=True)


@pytest.mark.parametrize(("where", "pod"), pods(), ids=[where for where, _ in pods()])
def test_each_pod_is_one_that_pod_security_calls_restricted(where, pod):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, and a root that is read-only but for two."""
    kubernetes_validate.validate(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod["spec"]}, VERSION, strict=True
    )
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
    for container in spec["containers"]:
        closed = container["securityContext"]
        assert closed["allowPrivilegeEscalation"] is False and closed["capabilities"] == {"drop": ["ALL"]}
        assert closed.get("readOnlyRootFilesystem") or "history" in where
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert not [port for port in container.get("ports", []) if "hostPort" in port]
    assert pod["metadata"]["labels"].items() >= PART.items()  # else no policy is about it
    assert spec.get("automountServiceAccountToken") is False or "headGroupSpec" in where or "history" in where


def test_policies_let_in_only_our_own_pods_and_the_operator():
    policies = {document["metadata"]["name"]: document["spec"] for name, document in PLAIN if name == "network.yaml"}
    closed = policies["bft-ray-deny-all"]
    assert closed == {"podSelector": {"matchLabels": PART}, "policyTypes": ["Ingress", "Egress"]}
    ingress = {name: rule for name, spec in policies.items() for rule in spec.get("ingress", [])}
    assert set(ingress) == {"bft-ray-among-them", "bft-ray-operator"}
    assert ingress["bft-ray-among-them"]["from"] == [{"podSelector": {"matchLabels": PART}}]
    assert ingress["bft-ray-operator"]["ports"] == [{"port": 8265, "protocol": "TCP"}]
    assert all(spec.get("policyTypes") for spec in policies.values())
    outside = policies["bft-ray-outside"]["egress"][0]
    assert sorted(port["port"] for port in outside["ports"]) == [443, 5432, 6443]
    services = [document for _, document in PLAIN if document["kind"] == "Service"]
    assert services and all("type" not in each["spec"] for each in services)  # ClusterIP: none is public


def test_no_file_has_a_password_and_each_key_is_one_that_the_comments_make():
    for path in (*FOLDER.rglob("*.yaml"), *FOLDER.glob("*.md")):
        assert not re.search(r"://[^:/\s]+:(?!PASSWORD@|\$)[^@/\s]+@", path.read_text()), path
    text = (FOLDER / "services.yaml").read_text()
    page = (FOLDER / "README.md").read_text()
    for _, pod in pods():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                if re.search("PASSWORD|TOKEN|KEY$|SECRET|STORE_URI|DATABASE", variable["name"]):
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert f"{reference['key']}=" in text or f"`{reference['key']}`" in page, variable


@HAS_POSTGRES
@pytest.mark.slow
def test_the_roles_of_postgres_are_made_by_its_script(tmp_path):
    (script,) = [document["data"]["roles.sh"] for _, document in PLAIN if document["kind"] == "ConfigMap"]
    with postgres(tmp_path) as uri:
        environment = {"PATH": "/usr/bin:/bin", "BFT_PASSWORD": 'it\'s "made up"', "PGHOST": "127.0.0.1"}
        environment |= {"PGPORT": uri.rpartition(":")[2].partition("/")[0], "PGUSER": "bft", "PGDATABASE": "postgres"}
        script = script.replace("bft", "ours")  # `bft` is this server's first role
        subprocess.run(["sh", "-ec", script], env=environment, check=True, capture_output=True, timeout=180)
        with psycopg.connect(uri) as connection:
            roles = connection.execute("SELECT rolsuper, rolcreatedb, rolcanlogin FROM pg_roles WHERE rolname = 'ours'")
            assert roles.fetchone() == (False, False, True)
            owned = connection.execute("SELECT datname FROM pg_database WHERE pg_get_userbyid(datdba) = 'ours'")
            assert {name for (name,) in owned} == {"studies", "mlflow"}


@pytest.mark.slow
def test_the_mlflow_of_the_pods_answers_its_name_and_password_alone(tmp_path):
    """The command of services.yaml, on loopback, with a folder in the place of the bucket."""
    (pod,) = [pod for where, pod in pods() if where.startswith("services.yaml/Deployment")]
    words = pod["spec"]["containers"][0]["command"]
    assert words[:3] == ["python", "-m", "cluster.kuberay.mlflow_start"] and words[4].startswith("s3://")
    (port,) = free_ports(1)
    secret = tmp_path / "secret"
    secret.write_text("made-up-secret\n")
    command = [sys.executable, *words[1:3], str(port), str(tmp_path / "artifacts"), str(secret), words[-1]]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BFT_LISTEN": "127.0.0.1"}
    environment["MLFLOW_BACKEND_STORE_URI"] = f"sqlite:///{tmp_path}/mlflow.db"

    def status(path: str, **headers: str) -> int:
        try:
            return urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=20
            ).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    log = tmp_path / "log"
    with running(command, lambda: status("/") != 0, log, cwd=ROOT, env=environment):
        search = "/api/2.0/mlflow/experiments/search?max_results=1"
        assert [status(path) for path in ("/", "/health", "/version", search)] == [401] * 4
        assert status(search, Authorization="Bearer made-up-secret") == 200
        assert status(search, Authorization="Bearer made-up-secret", Host=words[-1]) == 200
        assert status(search, Authorization="Bearer made-up-secret", Host="evil.example:5000") == 403
    assert "made-up-secret" not in log.read_text() and USER == "bft"
