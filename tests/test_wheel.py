"""The wheel as it is released: all files of the package, and a study from an empty folder to its champion."""

from __future__ import annotations

import subprocess
import zipfile

import pytest

from bft_ray import __version__
from tests.support.paths import ROOT
from tests.support.wheel import Installed, build

#: least budget of a study that still compares, confirms and chooses
SMALL = (
    "budget.trials=3",
    "budget.steps=6",
    "sampler.startup_trials=2",
    "scheduler.grace_steps=2",
    "confirmation.top_k=1",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    return Installed(tmp_path_factory.mktemp("installed"), wheel)


@pytest.mark.long
def test_the_wheel_has_each_tracked_file_of_the_package_and_no_other(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "bft_ray", "search_spaces"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    ).stdout.split()
    tracked = {
        name.replace("search_spaces/", "bft_ray/search_spaces/", 1) if name[0] == "s" else name for name in listed
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == tracked


@pytest.mark.long
def test_commands_of_the_wheel_answer_from_an_empty_folder(installed):
    where = installed.run("python", "-c", "import bft_ray; print(bft_ray.__file__)").strip()
    assert where == str(installed.packages / "bft_ray" / "__init__.py")
    assert __version__ in installed.run("bft-ray", "--version")
    assert "gene_interaction" in installed.run("bft-ray", "config", "starter")
    assert "6 beside 12" in installed.run("bft-ray", "search", "starter", "--dry-run", "--no-measure")


@pytest.mark.release
def test_a_study_of_the_wheel_comes_to_its_champion(installed):
    said = installed.run("bft-ray", "search", "starter", "--no-measure", *SMALL)
    assert "champion" in said
    assert (installed.work / "bft_studies.db").is_file()
    assert "version 1 of " in installed.run("bft-ray", "best", "gene_interaction")
