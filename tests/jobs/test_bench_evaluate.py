"""The benchmark of multiple choice, in small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bft_ray.model.causal_lm import resolve_model
from bft_ray.model.named import STARTER
from jobs.bench.evaluate import main


@pytest.mark.skipif(
    not (Path(resolve_model(STARTER)) / "model.safetensors").is_file(), reason="the starter model is not here"
)
def test_a_small_run(tmp_path, capsys):
    arguments = ["--limit", "6", "--repeats", "1", "--threads", "1", "--device", "cpu", "--batch-tokens", "2048"]
    path = "starter:gene_interaction/choices_validation"
    assert main([*arguments, "--path", path, "--out", str(tmp_path / "result")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["machine"]["num_threads"] == 1 and result["machine"]["packages"]["transformers"]
    measured = result["sets"][path]
    assert measured["num_items"] == 6 and measured["items_per_s"].keys() == {"loop", "apart", "shared"}
    assert set(measured["same_answer"].values()) == {1.0}
    assert measured["times_the_loop"]["shared"] > 1
    assert f"{path}: 6 items" in capsys.readouterr().out
