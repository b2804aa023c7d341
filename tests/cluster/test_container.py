"""cluster/container: what its file says, and the image that it makes of a clean Debian, as the pods run it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.image import FILE, PROGRAMS, Builder
from tests.support.paths import ROOT

LINES = [
    line.strip().split(None, 1)
    for line in re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.M)).splitlines()
    if line.strip()
]


def of(word: str) -> list[str]:
    return [rest for name, rest in LINES if name == word]


def test_every_package_is_pinned():
    installs = re.findall(r"pip install ([^&]*)", " ".join(of("RUN")))
    assert len(installs) == 2 and all("-c constraints.txt" in words for words in installs)
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "ray", "boto3", "google-api-python-client", "psycopg-binary"} <= pinned
    assert "torch" in installs[0] and "-e '.[aws,gcp,postgres]'" in installs[1]


def test_it_holds_what_git_does_and_no_secret():
    tracked = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines())
    for line in of("COPY"):
        for source in line.split()[:-1]:
            assert source in tracked or any(name.startswith(source) for name in tracked), source
    given = " ".join([*of("ARG"), *of("ENV")])
    assert not re.search("PASSWORD|TOKEN|SECRET|KEY", given)


def test_it_is_what_the_manifests_run():
    assert of("USER") == ["1000:1000"] and LINES.index(["USER", "1000:1000"]) > max(
        number for number, (name, _) in enumerate(LINES) if name in ("RUN", "COPY")
    )
    job = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text())
    pods = job["spec"]["rayClusterSpec"]
    image = pods["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert f"-t {image} " in (ROOT / "cluster" / "container" / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "cuda", "status"), [("cpu", None, 0), ("cuda", "12.8", 0), ("cpu", "12.8", 1), ("cuda", None, 1)]
)
def test_another_torch_than_asked_for_ends_the_build(tmp_path, kind, cuda, status):
    (tmp_path / "torch.py").write_text(f"class version: cuda = {cuda!r}")
    (check,) = [part for line in of("RUN") for part in line.split("&&") if "import sys, torch" in part]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "KIND": kind}
    done = subprocess.run(check, shell=True, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == status
    asked = f"`KIND` is {kind}, but this torch is a build for {'cuda' if cuda else 'cpu'}. Give another KIND or TORCH_INDEX."
    assert done.stderr.strip() == (asked if status else "")


missing = [name for name in PROGRAMS if not shutil.which(name)]


@pytest.mark.release
@pytest.mark.skipif(
    bool(missing) or os.geteuid() != 0,
    reason=f"needs root and Debian's debootstrap and buildah (missing: {', '.join(missing) or 'root'})",
)
def test_it_is_built_in_a_clean_debian_and_trains_as_nobody(tmp_path):
    """`docker build` without Docker: the same file, the lines of it run by buildah, then a training in the result."""
    builder = Builder(tmp_path / "builder")
    try:
        base = builder.debian()
        import torch

        root = builder.build(BASE=base, KIND="cuda" if torch.version.cuda else "cpu")
        pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
        assert pinned and builder.run(root, "ray --version").split()[-1] == pinned[1]
        assert builder.run(root, "id -u && command -v wget rsync ssh g++ && test ! -w /opt").split()[0] == "1000"
        assert "PYTHONPATH=/opt/bft-ray " in of("ENV")[1]
        for module in ("jobs.search", "jobs.train"):  # what the pods run
            assert builder.run(root, f"python -m {module} --help").startswith("usage:")
        assert builder.run(root, "python -c 'import cluster.kuberay.mlflow_start'") == ""
        trained = builder.run(root, "bft-ray train starter schedule.steps=2 checkpoint.every_steps=2")
        assert "/export (weights of step 2)" in trained
        assert not [path for path in Path(root, "opt", "bft-ray").rglob("*.env")]
    finally:
        builder.close()
