"""cluster/ray_up: held against Ray's own validation, and machines against the schemas of the clouds' APIs."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.local.processes import family, find, stop
from tests.support.local_cluster import free_ports
from tests.support.paths import ROOT
from tests.support.ports import answer_of, listening, refusal_of
from tests.support.servers import running

session = pytest.importorskip("botocore.session", reason="needs the extra `clouds`")
validate = pytest.importorskip("botocore.validate", reason="needs the extra `clouds`")
discovery = pytest.importorskip("googleapiclient.discovery_cache", reason="needs the extra `clouds`")
FOLDER = ROOT / "cluster" / "ray_up"
FILES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name])


def machines(name: str) -> dict[str, dict[str, Any]]:
    return {key: each["node_config"] for key, each in read(name)["available_node_types"].items()}


def test_the_files_are_these():
    assert set(FILES) == {"aws", "gcp"}


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it(name):
    """As `ray up` does before it speaks with a cloud."""
    config = prepare_config(read(name))
    validate_config(config)
    kinds = config["available_node_types"]
    assert set(kinds) == {"head", "gpu-spot", "gpu-on-demand"} and kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["head"]["max_workers"] == 0 and config["max_workers"] == 8
    assert all(
        kinds[kind]["min_workers"] == 0 < kinds[kind]["resources"]["GPU"] for kind in ("gpu-spot", "gpu-on-demand")
    )
    assert all("pip install" not in command for command in config["setup_commands"] + config["head_setup_commands"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("clustername",), "x"),
        (("docker", "imag"), "x"),
        (("auth", "ssh_port"), 22),
        (("available_node_types", "head", "resources", "CPU"), "0"),
        (("max_workers",), "8"),
    ],
)
def test_ray_refuses_mistakes(name, path, value):
    config = prepare_config(read(name))
    place: Any = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        validate_config(config)


# ---- the machines ----------------------------------------------------------------------------------------------------


def test_amazon_knows_every_field():
    model = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    validator = validate.ParamValidator()
    for kind, machine in machines("aws").items():
        asked = copy.deepcopy(machine) | {"MinCount": 1, "MaxCount": 1}
        asked["SubnetId"] = asked.pop("SubnetIds")[0]  # as Ray does
        assert validator.validate(asked, model).generate_report() == "", kind
        assert "Unknown parameter" in validator.validate(asked | {"Disk": 1}, model).generate_report()
        assert asked["MetadataOptions"]["HttpTokens"] == "required"
        (disk,) = asked["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"] and asked["SecurityGroupIds"] and "KeyName" not in asked
    spot = {kind: machine.get("InstanceMarketOptions") for kind, machine in machines("aws").items()}
    assert spot == {"head": None, "gpu-spot": {"MarketType": "spot"}, "gpu-on-demand": None}


def unknown(schemas: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "instance") -> list[str]:
    """What a value has that the schema of Google's discovery document does not: fields, types, members of an enum."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
    wanted = schema.get("type", "any")
    if schema.get("format") in ("int64", "uint64"):
        wanted = "integer"
    if wanted != "any" and (not isinstance(value, types[wanted]) or (isinstance(value, bool) and wanted != "boolean")):
        return [f"{where}: {value!r} is no {wanted}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value} is none of {schema['enum']}"]
    if wanted == "array":
        return [error for item in value for error in unknown(schemas, schema["items"], item, f"{where}[]")]
    if wanted != "object" or "additionalProperties" in schema:
        return []
    known = schema.get("properties", {})
    found = [f"{where}.{key}: unknown" for key in value if key not in known]
    return found + [
        error for key in set(value) & set(known) for error in unknown(schemas, known[key], value[key], f"{where}.{key}")
    ]


def test_google_knows_every_field():
    document = Path(discovery.__file__).parent / "documents" / "compute.v1.json"
    schemas = json.loads(document.read_text())["schemas"]
    for kind, machine in machines("gcp").items():
        assert unknown(schemas, schemas["Instance"], machine) == [], kind
        assert all("accessConfigs" not in network for network in machine["networkInterfaces"])  # no public address
    broken = {"machinetype": "a", "scheduling": [{"preemptible": True}], "disks": [{"boot": "yes"}]}
    assert len(unknown(schemas, schemas["Instance"], broken)) == 3
    assert unknown(schemas, schemas["Instance"], {"scheduling": {"provisioningModel": "CHEAP"}})
    spot = {kind: machine.get("scheduling", {}).get("provisioningModel") for kind, machine in machines("gcp").items()}
    assert spot == {"head": None, "gpu-spot": "SPOT", "gpu-on-demand": None}


# ---- who gets in -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_no_port_is_public_and_ray_asks_for_a_token(name):
    config = read(name)
    assert config["provider"]["use_internal_ips"] is True and "security_group" not in config["provider"]
    assert config["auth"]["ssh_proxy_use_node_id"] is True and config["auth"]["ssh_proxy_command"]
    starts = [config["head_start_ray_commands"], config["worker_start_ray_commands"]]
    for end, start in starts:
        assert end == "ray stop" and "export RAY_AUTH_MODE=token && ray start" in " ".join(start.split())
        assert subprocess.run(["bash", "-n", "-c", start], check=False).returncode == 0
    assert "--dashboard-host=127.0.0.1" in starts[0][1] and "0.0.0.0" not in FILES[name]
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"][0]
    assert not any(word in FILES[name].lower() for word in ("password:", "secret_key", "aws_access", "private_key"))


@pytest.mark.parametrize("name", FILES)
def test_it_runs_the_image_of_the_other_manifests(name):
    job = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text())
    image = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert read(name)["docker"]["image"] == f"REGISTRY/{image}"
    assert "/dev/shm" not in FILES[name]  # Ray sizes it by itself


@pytest.mark.long
@pytest.mark.parametrize("name", ["aws", pytest.param("gcp", marks=pytest.mark.release)])
def test_the_heads_own_command_starts_a_ray_that_refuses_who_has_no_token(name, tmp_path):
    """The line of the file, in a HOME with the two files that it reads; without the launcher, which would need a cloud."""
    folder = Path(tempfile.mkdtemp(prefix="bft_up_", dir="/tmp"))  # sockets need a short path
    try:
        for path, text in (
            (".ray/auth_token", "made-up-token-" + "0" * 32),
            (".bft_ray/cluster.env", environment(folder)),
        ):
            file = folder / path
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o600)
        gcs, dashboard, client = free_ports(3)
        start = read(name)["head_start_ray_commands"][1]
        start = start.replace(
            "--port=6379", f"--port={gcs} --dashboard-port={dashboard} --ray-client-server-port={client}"
        )
        start = start.replace(
            "--autoscaling-config=~/ray_bootstrap_config.yaml", "--num-cpus=0 --node-ip-address=127.0.0.1 --block"
        )
        command = ["bash", "--login", "-c", f"export PATH={Path(sys.executable).parent}:$PATH; {start}"]
        env = {"HOME": str(folder), "PATH": os.environ["PATH"]}

        def is_up() -> bool:
            with suppress(OSError):
                return "401" in answer_of(dashboard)
            return False

        with running(command, is_up, tmp_path / "log", env=env, start_new_session=True) as process:
            own = find(process.pid)
            assert own is not None
            try:
                end = time.monotonic() + 60  # the agents of the node come after the dashboard
                found: list[tuple[str, int, str]] = []  # not by environment: the agents write their titles over theirs
                while len(found) <= 5 or not any(
                    "RuntimeEnvAgent" in name or "runtime_env" in name for *_, name in found
                ):
                    assert time.monotonic() < end, found
                    time.sleep(0.5)
                    found = listening(one.pid for one in family([own]))
                assert {address for address, *_ in found} == {"127.0.0.1"}
                answers = {port: refusal_of(port) for _, port, _ in found}
                assert answers[dashboard] == "401, but for the page" and answers[gcs] == "UNAUTHENTICATED"
                assert set(answers.values()) <= {"401", "401, but for the page", "UNAUTHENTICATED", "numbers"}, answers
            finally:
                assert not stop([own])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path) -> str:
    """A cluster.env: loopback alone, and a folder of its own for sockets and logs."""
    return f"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0\nRAY_TMPDIR={folder}\nRAY_USAGE_STATS_ENABLED=0\n"
