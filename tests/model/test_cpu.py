"""A CPU that has no instructions for bf16: found by measuring, told before anything is trained, and avoided by `init`."""

from __future__ import annotations

import pytest
import torch

from bft_ray.config import make_config
from bft_ray.model import check, cpu
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.operate.init.config_text import Device

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the sentence is on machines without a GPU")


def notes(monkeypatch, make_tree, dtype: str, times: float, **cluster) -> list[str]:
    monkeypatch.setattr(check, "bf16_slowdown", lambda: times)
    stage = {"preset": "zero1"}
    config = make_config(make_tree(cluster={"gpus_per_worker": 0} | cluster, deepspeed=stage))
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    return check.check_model(config, load_tokenizer(config.model))


def test_it_is_measured_once():
    times = cpu.bf16_slowdown()
    assert 0.05 < times < 1000 and cpu.bf16_slowdown() == times


def test_a_dtype_that_this_cpu_emulates_is_told(monkeypatch, make_tree):
    (note,) = notes(monkeypatch, make_tree, "bf16", 45.2)
    assert note.startswith(
        "model.dtype is bf16, whose matrix products take 45 times as long as those of fp32 on this CPU"
    )
    assert "model.dtype=fp32" in note


@pytest.mark.parametrize(
    ("dtype", "times", "cluster"),
    [
        ("fp32", 45.2, {}),
        ("bf16", 1.2, {}),
        ("bf16", 45.2, {"gpus_per_worker": 1.0}),
        ("bf16", 45.2, {"address": "ray://elsewhere:10001"}),
    ],
    ids=["fp32", "fast", "on a GPU", "on a cluster"],
)
def test_else_there_is_no_note(monkeypatch, make_tree, dtype, times, cluster):
    assert notes(monkeypatch, make_tree, dtype, times, **cluster) == []


@no_gpu
@pytest.mark.parametrize(("times", "has_bf16"), [(45.2, False), (0.6, True)])
def test_init_asks_the_cpu(monkeypatch, times, has_bf16):
    monkeypatch.setattr(cpu, "bf16_slowdown", lambda: times)
    assert Device.here().has_bf16 == has_bf16
