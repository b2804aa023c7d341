"""The README stays true: it names every file and command, and its examples are valid."""

from __future__ import annotations

import re
import subprocess

import yaml

from bft_ray.cli import make_parser
from bft_ray.config import METHODS, ClusterConfig, EvaluationConfig, TrackingConfig
from bft_ray.evaluate.tasks import PREPARE
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text()


def test_every_file_has_its_line():
    tracked = subprocess.check_output(["git", "ls-files", "bft_ray", "jobs"], cwd=ROOT, text=True).split()
    modules = [path for path in tracked if path.endswith(".py") and not path.endswith("__init__.py")]
    block = TEXT[TEXT.index("```\nbft_ray/") :]
    missing = [path for path in modules if not re.search(rf"^ +{re.escape(path.split('/')[-1])} ", block, re.M)]
    assert not missing


def test_every_command_and_method_is_told():
    (commands,) = [
        action.choices for action in make_parser()._actions if action.choices and hasattr(action, "metavar")
    ][:1]
    for command in commands:
        assert f"`bft-ray {command}" in TEXT, command
    for method in METHODS:
        assert f"`{method}`" in TEXT, method
    for kind in (*PREPARE, "harness"):
        assert f"| `{kind}` |" in TEXT, kind


def test_the_yaml_is_valid():
    tasks, cluster = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    assert len(EvaluationConfig(**yaml.safe_load(tasks)["evaluation"]).tasks) == 4
    tree = yaml.safe_load(cluster)
    assert ClusterConfig(**tree["cluster"]).num_workers == 8
    assert TrackingConfig(**tree["tracking"]).uri.startswith("https://")


def test_the_two_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("quickstart", "test"):
        assert f"make {target}" in TEXT
        assert f"\n{target}: $(READY)" in makefile
