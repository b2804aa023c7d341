"""The training benchmark runs, and its peers train on the same tokens with the same loss."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from bft_ray.config import LossConfig
from bft_ray.loss import bft_loss
from jobs.bench.loss import official_loss
from jobs.bench.train import beside_trl, main


def test_the_official_formula_is_the_bft_loss():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 30, 50, generator=generator, dtype=torch.float32)
    labels = torch.randint(50, (4, 30), generator=generator)
    labels[:, :5] = -100
    labels[2, 20:] = -100

    expected = bft_loss(logits, labels, LossConfig(method="bft", window=8)).loss
    assert official_loss(logits, labels, 8) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.release
def test_peers_train_on_the_same_tokens(tmp_path, capsys):
    arguments = ["--random", "tiny", "--rounds", "1", "--steps", "1", "--batch", "4", "--max-length", "128"]
    assert main([*arguments, "--threads", "1", "--out", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out.json").read_text())
    tokens = {name: row["tokens_per_s"] * row["step_s"] for name, row in results["peers"].items()}
    assert set(tokens) == {"bft-ray", "bare", "trainer"}
    assert len({round(count) for count in tokens.values()}) == 1
    assert "x trainer" in capsys.readouterr().out


@pytest.mark.slow
def test_trl_computes_our_losses(tiny_model, tiny_data, tmp_path):
    """SFT and DFT over six steps of adapters, given our token ids; TRL's are cut into micro-batches as well."""
    pytest.importorskip("trl", reason="needs the extra `bench`")
    from jobs.bench.trl import compare

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:  # both change their process
        found = pool.submit(compare, str(tiny_model), str(tiny_data), str(tmp_path)).result(timeout=900)
    for method, (mine, theirs, difference) in found.items():
        assert len(mine) == len(theirs) == 6 and mine[0] != mine[-1], method
        assert difference <= 1e-5, (method, mine, theirs)


def test_the_ratios_to_trl():
    def row(tokens: float, size: float) -> dict:
        return {"tokens_per_s": tokens, "peak_memory_bytes": size}

    peers = {"bft-ray": row(420.0, 600e6), "trl": row(240.0, 1000e6)}
    assert beside_trl(peers) == ["bft-ray / TRL: 1.75 x the supervised tokens/s, 0.60 x the memory"]
    assert beside_trl({"bft-ray": row(1.0, 1.0)}) == []
