"""The loss benchmark runs, its peers compute one loss, and its figures fit together."""

from __future__ import annotations

import json
import math

import pytest
from torch.nn import functional as F

from bft_ray.loss import bft_loss
from jobs.bench.loss import CONFIG, FORMS, PEERS, Batch, Case, main


def test_peers_compute_the_same_loss():
    batch = Batch(Case(50, 8, (300, 700), 0.9), chunk_tokens=100)
    want = bft_loss(F.linear(batch.hidden, batch.weight), batch.labels, CONFIG).loss
    for name, (peer, _) in PEERS.items():
        if name not in ("cross-entropy", *FORMS):
            assert peer(batch, batch.hidden, batch.weight).item() == pytest.approx(want.item(), rel=1e-5), name
    anchored = PEERS["fused, anchor"][0](batch, batch.hidden, batch.weight).item()
    assert anchored == pytest.approx(want.item(), rel=1e-5)  # to itself
    assert PEERS["fused, power"][0](batch, batch.hidden, batch.weight).item() > 1.01 * want.item()


@pytest.mark.slow
def test_a_small_run(tmp_path):
    out = tmp_path / "result"
    assert main(["--small", "--case", "cpu, dense", "--repeats", "1", "--threads", "1", "--out", str(out)]) == 0
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["machine"]["num_threads"] == 1 and result["machine"]["packages"]["torch"]

    (measured,) = result["cases"].values()
    assert measured["num_tokens"] == 4 * 39
    assert set(measured["peers"]) == set(PEERS)
    for name, row in measured["peers"].items():
        assert all(math.isfinite(value) and value >= 0 for value in row.values())
        matmuls = 3 if name.endswith("trainable") else 2
        assert row["share_of_bound"] * row["time_s"] == pytest.approx(matmuls / 2 * measured["bound_s"])
    assert set(measured["over_bft"]) == set(FORMS) and all(row["time"] > 0 for row in measured["over_bft"].values())
    full_logits_bytes = 4 * 39 * 1999 * 4
    assert measured["peers"]["official"]["memory_bytes"] > full_logits_bytes
    assert measured["peers"]["fused"]["memory_bytes"] < full_logits_bytes
    for dtype, limit in {"float32": 1e-5, "bfloat16": 1e-2}.items():
        errors = result["gradient_error"][dtype]
        assert max(errors["fused"], errors["fused, trainable"]) <= limit
        assert errors["fused"] <= errors["full logits"] * 1.01
