"""A CPU that has no instructions for bf16: found by measuring, told before anything is trained, and avoided by `init`."""

from __future__ import annotations

import pytest
import torch

from bft_ray.config import make_config
from bft_ray.model import check, cpu
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.operate.init.settings import Device


def notes(monkeypatch, make_tree, dtype: str, times: float, **cluster) -> list[str]:
    monkeypatch.setattr(check, "bf16_slowdown", lambda: times)
    stage = {"preset": "zero1"}
    config = make_config(make_tree(cluster={"gpus_per_worker": 0} | cluster, deepspeed=stage))
    config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
    return check.check_model(config, load_tokenizer(config.model))


def test_it_is_measured_on_one_core_and_leaves_the_threads_as_they_were(monkeypatch):
    used, product = set(), cpu._seconds
    monkeypatch.setattr(cpu, "_seconds", lambda dtype: used.add(torch.get_num_threads()) or product(dtype))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        times = cpu.bf16_slowdown.__wrapped__()
        assert 0.05 < times < 1000 and used == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize(("times", "has_bf16"), [(45.2, False), (0.6, True)])
def test_init_asks_the_cpu(monkeypatch, times, has_bf16):
    monkeypatch.setattr(cpu, "bf16_slowdown", lambda: times)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Device.here().has_bf16 == has_bf16
