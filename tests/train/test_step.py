"""The first promise: one loss and one gradient, however a global batch is laid out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bft_ray.config import make_config
from tests.support.ranks import run_ranks

LOSSES = {
    "sft": {"method": "sft"},
    "bft": {"method": "bft", "window": 8},
    "inverse": {"method": "bft_inverse", "window": 8, "weight_cap": 6.0},  # normalised
    "group": {"method": "bft_group", "window": 4},
    "entropy": {"method": "bft_inverse", "window": 8, "token_weight": "entropy"},
    "prior, anchor": {"method": "bft", "window": 8, "token_weight": "prior", "token_power": 0.5, "anchor": 0.5},
}
RATE = 1000.0
LAYOUTS = [(1, False), (2, False), (8, False), (2, True), (4, True), (8, True)]  # micro-batch size, packing


def move(start: Any) -> None:
    """Make the copy of the starting weights another model: at the true start the anchor pulls nowhere."""
    generator = torch.Generator().manual_seed(5)
    for module in (start._halves.decoder, start._halves.head):
        for parameter in module.parameters():
            parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)


def one_steps(tree: dict, cases: list[tuple[str, str, int, bool]]) -> list[tuple[float, np.ndarray]]:
    """Loss and gradient of step 0 for each case (loss, preset, micro-batch size, packing), through the real engine.

    AdamW is replaced by plain gradient descent, so that the parameters move by the very gradient that DeepSpeed would
    hand to the optimizer: after accumulation, reduction over ranks and the common scale. The rate is large, for the
    gradient to be read off the difference of two fp32 parameters without losing digits.
    """
    import bft_ray.train.engine as engine_module
    from bft_ray.model.causal_lm import load_tokenizer
    from bft_ray.train.engine import Engine
    from bft_ray.train.loop import Data, make_plan, share_of
    from bft_ray.train.start import start_logps
    from bft_ray.train.step import train_step

    engine_module._adamw = lambda model, *_: torch.optim.SGD(model.parameters(), lr=RATE)
    from bft_ray.data.dataset import prepare

    results = []
    for loss, preset, size, packing in cases:
        config = make_config(
            tree
            | {
                "loss": LOSSES[loss],
                "deepspeed": {"preset": preset},
                "optimizer": {"max_grad_norm": None},
                "data": tree["data"] | {"micro_batch_size": size, "packing": packing, "micro_batch_tokens": 1024},
            }
        )
        tokenizer = load_tokenizer(config.model)
        data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
        plan, _ = make_plan(config, data.train)
        engine = Engine(config, torch.device("cpu"))
        if config.loss.reads_prior:
            data = replace(data, start=start_logps(engine, config, data.train, data.pad_id)[0])
        if engine.start is not None:
            move(engine.start)
        before = engine.weights()
        share = share_of(engine, config, data, plan.batch(0))
        metrics = train_step(engine, share, config.loss, step=0, learning_rate=RATE, seed=config.seed)
        after = engine.weights()
        if engine.rank == 0:
            gradient = np.concatenate([(before[name] - after[name]).flatten().numpy() / RATE for name in before])
            norm = metrics["train/grad_norm"]
            assert abs(norm - np.linalg.norm(gradient)) <= 1e-4 * norm  # the logged norm is the gradient's
            results.append((metrics["train/loss"], gradient))
        engine.close()
    return results


@pytest.fixture(scope="module")
def reference():
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_loss_and_gradient_do_not_depend_on_the_layout(make_tree, world_size, reference):
    cases = [(loss, "zero0", 8, False) for loss in LOSSES]
    cases += [(loss, "zero2", size, packing) for loss, (size, packing) in itertools.product(LOSSES, LAYOUTS)]
    cases += [
        (loss, preset, size, packing)
        for loss, preset, (size, packing) in itertools.product(
            ["bft", "inverse"], ["zero0", "zero1", "zero3"], [(1, True), (4, True), (2, False)]
        )
    ]
    results = run_ranks(one_steps, world_size, make_tree(), cases, fresh=True)[0]
    assert len(results) == len(cases)
    for case, result in zip(cases, results, strict=True):
        loss, gradient = result
        reference.setdefault(
            case[0], result
        )  # the first case of each loss: one process, zero0, padded, one micro-batch
        expected_loss, expected = reference[case[0]]
        assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss), case
        assert np.abs(gradient - expected).max() <= 1e-5 * np.abs(expected).max(), case
        assert np.abs(expected).max() > 1e-4


def step_with_infinite_gradient(tree: dict, preset: str) -> tuple[str, bool]:
    """One step whose loss is finite and whose gradient is not; the error, and whether any weight moved."""
    from bft_ray.data.dataset import prepare
    from bft_ray.errors import NonFinite
    from bft_ray.model.causal_lm import load_tokenizer
    from bft_ray.train.engine import Engine
    from bft_ray.train.loop import Data, make_plan, share_of
    from bft_ray.train.step import train_step

    config = make_config(tree | {"deepspeed": {"preset": preset}})
    tokenizer = load_tokenizer(config.model)
    data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
    plan, _ = make_plan(config, data.train)
    engine = Engine(config, torch.device("cpu"))

    def blow_up(module, arguments, output):
        output.register_hook(lambda gradient: gradient * float("inf"))

    engine.module.get_input_embeddings().register_forward_hook(blow_up)
    before = engine.weights()
    share = share_of(engine, config, data, plan.batch(0))
    try:
        train_step(engine, share, config.loss, step=0, learning_rate=0.1, seed=0)
        error = ""
    except NonFinite as caught:
        error = str(caught)
    after = engine.weights()
    return error, bool(before) and any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["zero0", "zero1", "zero2", "zero3"])
def test_an_infinite_gradient_stops_every_rank_before_the_weights_move(make_tree, preset):
    for error, moved in run_ranks(step_with_infinite_gradient, 2, make_tree(), preset):
        assert "the gradient of step 0 is not finite" in error
        assert not moved


def test_a_large_seed_draws_as_any_other():
    from bft_ray.config.base import MAX_SEED
    from bft_ray.train.step import draw_seed

    assert draw_seed(3, 2, 1) == (3 * 1_000_003 + 2) * 65_537 + 1
    seeds = {draw_seed(MAX_SEED - 1 - back, step, rank) for back in range(3) for step in range(3) for rank in range(3)}
    assert len(seeds) == 27
    torch.Generator().manual_seed(max(seeds))
