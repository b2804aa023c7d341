"""Tokens that are not kept: nothing of the rows is left when a command has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bft_ray.config import make_config
from bft_ray.data.dataset import prepare
from bft_ray.data.passing import passing_folder, tokens_pass
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.train.pins import pin_paths
from tests.support.ranks import run_ranks
from tests.support.small_study import write_space


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def prepared(tree: dict) -> str:
    config = make_config(tree)
    return str(prepare(config.data.train, load_tokenizer(config.model), config.data).folder)


def test_tokens_go_with_the_outermost_block(make_tree, temporary, tmp_path):
    tree = make_tree(data={"keep_tokens": False, "cache_dir": None})
    with tokens_pass():
        with tokens_pass():
            first = Path(prepared(tree))
        assert first.is_dir() and first.parent.parent == temporary and Path(prepared(tree)) == first
    assert not list(temporary.iterdir())
    within = make_tree(data={"keep_tokens": False, "cache_dir": str(tmp_path / "disk" / "of" / "mine")})
    with tokens_pass():
        assert Path(prepared(within)).parents[1] == tmp_path / "disk" / "of" / "mine"
        assert not list(temporary.iterdir())
    assert not list((tmp_path / "disk" / "of" / "mine").iterdir())


@pytest.mark.slow
def test_processes_of_a_machine_share_them_and_others_make_their_own(make_tree, temporary):
    with tokens_pass():
        tree = pin_paths(make_config(make_tree(data={"keep_tokens": False, "cache_dir": None}))).model_dump()
        here = prepared(tree)
        assert run_ranks(prepared, 2, tree) == [here, here]
        folder = tree["data"]["cache_dir"]
        assert passing_folder(folder) == Path(folder) == Path(here).parent
    there = passing_folder(folder)  # its command has ended, or this is another machine
    assert there != Path(folder) and there.parent == temporary
    with tokens_pass():
        pass
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("train", marks=pytest.mark.release),
        pytest.param("profile", marks=pytest.mark.long),
        pytest.param("search", marks=pytest.mark.release),
    ],
)
def test_a_command_leaves_nothing_of_the_rows(command, make_tree, tmp_path):
    """Neither in the home nor among temporary files; results have the ids of rows, and no tokens."""
    tree = make_tree(
        data={"keep_tokens": False, "cache_dir": None},
        cluster={"num_workers": 2 if command == "train" else 1, "gpus_per_worker": 0, "storage_path": "results"},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    write_space(tmp_path)
    words = {
        "train": ["train", "config.yaml"],
        "profile": ["profile", "config.yaml"],
        "search": ["search", "space.yaml", "--database", f"sqlite:///{tmp_path}/studies.db"],
    }
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "RAY_TMPDIR": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-m", "bft_ray.cli", *words[command]],
        env=os.environ | places,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    left = [path for place in ("home", "tmp") for path in (tmp_path / place).rglob("*") if path.is_file()]
    assert not [path for path in left if b"row-1" in path.read_bytes() or "bft_ray_" in str(path)]
    assert not [path for path in tmp_path.rglob("*") if path.name in ("tokens.bin", "ids.json")]
