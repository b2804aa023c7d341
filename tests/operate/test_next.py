"""The last lines of a command name the next one on the road."""

from __future__ import annotations

from pathlib import Path

import pytest

from bft_ray.operate.road import after_doctor, after_evaluate, after_train, space_of


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory: what `init` wrote."""
    monkeypatch.chdir(tmp_path)
    for name in ("bft.yaml", "search_space.yaml"):
        (tmp_path / name).write_text("")
    return tmp_path


def test_from_the_doctor_to_the_comparison(folder):
    assert after_doctor("bft.yaml", [], True) == "next      bft-ray evaluate bft.yaml --out before"
    assert after_doctor("bft.yaml", ["seed=1"], False) == (
        "next      correct what is marked FAIL, then bft-ray doctor bft.yaml seed=1"
    )
    assert after_evaluate("bft.yaml", [], None, "before", None) == "next      bft-ray profile bft.yaml"
    assert after_train("bft.yaml", ["name=my run", "seed=1"], "bft_results/my run/export") == (
        "next      bft-ray evaluate bft.yaml seed=1 --out before\n"
        "          bft-ray evaluate bft.yaml seed=1 --model 'bft_results/my run/export' --against before"
    )
    (folder / "before").mkdir()
    assert after_doctor("bft.yaml", [], True) == "next      bft-ray profile bft.yaml"
    champion = "next      bft-ray evaluate bft.yaml --model out/export --against before"
    assert after_train(None, ["name=champion"], "out/export", "test") == champion
    assert after_evaluate("bft.yaml", [], "out/export", None, None) == champion
    assert after_evaluate("bft.yaml", [], "out/export", None, "before") == ""


def test_after_a_champion_its_config_is_written_first(folder):
    """Where it is not there yet: the next command names no file that does not exist."""
    (folder / "bft.yaml").unlink()
    assert after_train(None, [], "out/export", "cell_type", " --uri http://127.0.0.1:5000") == (
        "next      bft-ray best cell_type --uri http://127.0.0.1:5000 --yaml > cell_type.yaml\n"
        "          bft-ray evaluate cell_type.yaml --out before\n"
        "          bft-ray evaluate cell_type.yaml --model out/export --against before"
    )
    (folder / "cell_type.yaml").write_text("")
    (folder / "before").mkdir()
    assert after_train(None, [], "out/export", "cell_type") == (
        "next      bft-ray evaluate cell_type.yaml --model out/export --against before"
    )


def test_without_a_space_training_comes_next(folder):
    (folder / "search_space.yaml").unlink()
    assert space_of("bft.yaml") is None and space_of("medical_qa") is None
    assert after_evaluate("bft.yaml", [], None, "before", None) == "next      bft-ray train bft.yaml"
    assert after_evaluate("bft.yaml", [], None, None, None) == (
        "next      bft-ray evaluate bft.yaml --out before\n          (keeps what a comparison needs)"
    )
