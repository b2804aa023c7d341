"""A config of an earlier version, whose field has another name now."""

from __future__ import annotations

import pytest

from bft_ray.config import make_config
from bft_ray.config.renamed import RENAMED
from bft_ray.errors import BadConfig


def test_an_old_name_is_told_its_new_one_also_within_a_list(monkeypatch):
    monkeypatch.setitem(RENAMED, "loss.span", "loss.window")
    monkeypatch.setitem(RENAMED, "data.train.file", "data.train.path")
    tree = {"domain": "d", "loss": {"span": 64}, "data": {"train": [{"path": "a.jsonl", "file": "b.jsonl"}]}}
    with pytest.raises(BadConfig) as caught:
        make_config(tree)
    assert caught.value.problems == [
        "`data.train.0.file` was renamed: it is `data.train.path` now.",
        "`loss.span` was renamed: it is `loss.window` now.",
    ]
