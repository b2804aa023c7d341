"""The page of `bft-ray compare` is refused where it would replace what is read, or could not be written, before a model answers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from bft_ray.cli import main
from bft_ray.model.checksums import write_checksums


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("test.jsonl", "another file than those that are read"),
        ("other/../test.jsonl", "another file than those that are read"),
        ("other", "but must be a file"),
    ],
)
def test_a_page_that_cannot_be_written(tmp_path, monkeypatch, capsys, out, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    prompts = tmp_path / "test.jsonl"
    prompts.write_text('{"prompt": "a", "completion": "b"}\n')
    # the model does not exist: a late look at --out would name the model instead
    assert main(["compare", str(tmp_path / "none"), "--prompts", str(prompts), "--out", out]) == 2
    assert says in capsys.readouterr().err
    assert prompts.read_text().startswith('{"prompt"')


def test_changed_weights_are_named_before_any_model_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    weights = tmp_path / "weights"
    weights.mkdir()
    save_file({"w": torch.zeros(4)}, weights / "model.safetensors")
    write_checksums(weights)
    save_file({"w": torch.ones(4)}, weights / "model.safetensors")
    assert main(["compare", "starter", "weights", "--prompts", "test.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "unchanged since it was written" in said and "asking" not in said
