"""The page of `bft-ray compare` is refused where it would replace what is read, or could not be written, before a model answers."""

from __future__ import annotations

import pytest

from bft_ray.cli import main


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
