"""What the front matter of a card says of the base model; the hub links it by that name."""

from __future__ import annotations

import pytest

from bft_ray.config import make_config
from bft_ray.model.card import model_card, release_card


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("org/model", "base_model: org/model"),
        ("gpt2", "base_model: gpt2"),  # no folder here: a model of the hub
        ("starter", None),
        ("smollm2", None),
        ("s3://bucket/gpt2", None),
        ("./gpt2.gguf", None),
        ("/models/gpt2", None),
        ("mine/gpt2", None),  # a folder of this test
    ],
)
def test_the_name_of_a_folder_is_no_model_of_the_hub(make_tree, tmp_path, monkeypatch, path, line):
    """A random model in models/gpt2 would be shown as one that was made of OpenAI's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "gpt2").mkdir(parents=True)
    config = make_config(make_tree() | {"model": {"path": path}})
    made = model_card(config, kind="model", folder="f", fingerprints={}, before={}, after={}, run_id="r", step=1)
    released = release_card(config, name="bft-d/1", evidence={}, checks={}, settings={})
    for card in (made, released):
        front = card.split("---")[1].splitlines()
        assert [each for each in front if each.startswith("base_model")] == ([line] if line else [])
