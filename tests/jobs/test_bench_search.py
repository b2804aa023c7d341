"""The search benchmark runs, and says the same of warm and fresh trials."""

from __future__ import annotations

import json

import pytest

from jobs.bench.search import main


@pytest.mark.release
def test_warm_trials_are_the_fresh_ones(tmp_path, capsys):
    arguments = ["--part", "warm", "--trials", "3", "--fresh", "1", "--steps", "2", "--items", "2"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["warm"]
    assert found["losses_identical"] and found["num_compared"] == 1
    assert found["ratio"] == pytest.approx(found["warm_trials_per_hour"] / found["fresh_trials_per_hour"])
    assert 0 < found["warm_start_s"] <= found["slowest_warm_start_s"] < found["first_start_s"]
    assert "trials/h" in capsys.readouterr().out
