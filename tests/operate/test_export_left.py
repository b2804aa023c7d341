"""An export that ends before its checks leaves nothing that looks like one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bft_ray.config import make_config
from bft_ray.errors import BadInput, BftError
from bft_ray.operate import export
from bft_ray.tracking.registry import Champion


def champion(source: Path) -> Champion:
    return Champion("test", "1", "bft-test", {}, "", "run", str(source), 0.0)


def test_what_is_not_checked_does_not_stay(make_tree, tmp_path, monkeypatch):
    source, out = tmp_path / "weights", tmp_path / "out"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "none_such"}))
    with pytest.raises(BftError, match="transformers does not load"):
        export._export(champion(source), make_config(make_tree()), out, None, print)
    assert not out.exists()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "check_release", stopped)
    with pytest.raises(KeyboardInterrupt):
        export._export(champion(source), make_config(make_tree()), out, None, print)
    assert not out.exists() and (source / "config.json").is_file()


def test_weights_without_a_config_are_named_before_they_are_copied(make_tree, tmp_path):
    source, out = tmp_path / "weights", tmp_path / "out"
    source.mkdir()
    with pytest.raises(BadInput, match=r"`source` .* config.json or adapter_config.json"):
        export._export(champion(source), make_config(make_tree()), out, None, print)
    assert not out.exists()
