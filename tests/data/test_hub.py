"""Datasets by their hub id, against a hub on this machine: each thing that can be wrong has a name and a remedy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.loopback_hub import loopback_hub
from tests.support.paths import ROOT

READ = """
import json, sys
from bft_ray.config import SourceConfig
from bft_ray.data.rows import read_rows
from bft_ray.errors import BadInput

answers = []
for fields in json.loads(sys.argv[1]):
    try:
        answers.append([[row.id, row.prompt] for row in read_rows(SourceConfig(**fields), "data.train.0")])
    except BadInput as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
CASES = {
    "split": {"path": "lab/open", "split": "test"},
    "no split": {"path": "lab/open"},
    "wrong split": {"path": "lab/open", "split": "dev"},
    "configuration": {"path": "lab/two", "config_name": "hard"},
    "no configuration": {"path": "lab/two"},
    "wrong configuration": {"path": "lab/two", "config_name": "harder"},
    "gated": {"path": "lab/gated"},
    "none": {"path": "lab/none"},
}


def ask(address: str, cache, cases: dict, **environment: str) -> dict:
    """What comes of reading each source in a process that has this hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", READ, json.dumps(list(cases.values()))]
    done = subprocess.run(
        command, env={**kept, **own, **environment}, cwd=ROOT, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    with loopback_hub() as (address, _):
        cache = tmp_path_factory.mktemp("hub")
        found = ask(address, cache, CASES)
        found |= ask(address, cache, {"gated with a token": {"path": "lab/gated"}}, HF_TOKEN="hf_none")
        offline = ask("http://127.0.0.1:9", cache, {"away": {"path": "lab/none"}}, HF_HUB_OFFLINE="1")
        yield found | offline | {"address": address}


@pytest.mark.slow
def test_rows_of_a_split_and_of_a_configuration(answers):
    assert answers["split"] == [["open[0]", "test question 0?"], ["open[1]", "test question 1?"]]
    assert [prompt for _, prompt in answers["configuration"]] == [f"hard question {i}?" for i in range(4)]


def test_a_split_or_configuration_that_must_be_named(answers):
    rule = "but must be one of train, test. Name the split of the dataset."
    assert answers["no split"] == f"`data.train.0.split` is None, {rule}"
    assert answers["wrong split"] == f"`data.train.0.split` is 'dev', {rule}"
    rule = "but must be one of easy, hard. Name the configuration of the dataset."
    assert answers["no configuration"] == f"`data.train.0.config_name` is None, {rule}"
    assert answers["wrong configuration"] == f"`data.train.0.config_name` is 'harder', {rule}"


def test_a_gated_repository(answers):
    page = f"{answers['address']}/datasets/lab/gated"
    assert answers["gated"] == (
        "`data.train.0.path` is 'lab/gated', but it is gated, and there is no token of the hub here. "
        f"Ask for access at {page}, then log in with `hf auth login`, or set HF_TOKEN."
    )
    assert answers["gated with a token"] == (
        "`data.train.0.path` is 'lab/gated', but it is gated, and the hub does not let the account of your token in. "
        f"Ask for access at {page}, or use another token (HF_TOKEN)."
    )


def test_a_repository_that_is_not_there(answers):
    assert answers["none"] == (
        "`data.train.0.path` is 'lab/none', but must be a file or folder that exists, or a dataset of the hub that exists "
        "and that you may read. Check the name, or, for a private one, log in with `hf auth login`, or set HF_TOKEN."
    )
    assert answers["away"].startswith(
        "`data.train.0.path` is 'lab/none', but must be a file that exists, or a dataset of"
    )
    assert "OfflineModeIsEnabled" in answers["away"]
    assert answers["away"].endswith("`bft-ray fetch CONFIG` brings it where there is a network.")
