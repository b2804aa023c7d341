"""What training reads of the weights that it starts from: made once, found again, the same after a resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from bft_ray.config import make_config
from bft_ray.data.dataset import prepare
from bft_ray.errors import BadConfig, BadInput
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.model.start_logps import path_of, read
from bft_ray.profile.tokens import token_logps
from tests.support.alone import run_alone
from tests.support.ranks import run_ranks

PRIOR = {"method": "bft", "window": 8, "token_weight": "prior", "token_power": 0.5}
ANCHOR = {"method": "bft", "window": 8, "anchor": 2.0}


def in_turn(tree: dict, runs: list[tuple[str, dict, int | None, bool]]) -> list[dict]:
    """Runs (folder, loss, stop after, whether the kept log-probabilities are lost before)."""
    results = []
    for folder, loss, stop, lost in runs:
        if lost:
            shutil.rmtree(Path(tree["data"]["cache_dir"]) / "profiles")
        results.append(run_alone(tree | {"loss": loss}, folder, stop))
    return results


def told(result: dict, event: str) -> dict:
    return next(values for name, values in result["events"] if name == event)


def steps_of(result: dict, name: str) -> list[float]:
    return [values[name] for event, values in result["events"] if event == "step"]


def same(a: dict, b: dict) -> bool:
    assert a["weights"].keys() == b["weights"].keys() and a["weights"]
    return all((value == b["weights"][name]).all() for name, value in a["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_resumed_run_has_the_same_start(make_tree, tmp_path, lora):
    """Bit for bit, and also where the kept numbers are lost: they are made again before the checkpoint is loaded."""
    tree = make_tree(lora=lora, optimizer={"learning_rate": 1e-2}, data={"cache_dir": str(tmp_path / "cache")})
    both = PRIOR | {"anchor": 2.0}
    runs = [
        (str(tmp_path / "calm"), both, None, False),
        (str(tmp_path / "cut"), both, 5, False),
        (str(tmp_path / "cut"), both, None, True),
        (str(tmp_path / "power"), PRIOR | {"token_weight": "power", "anchor": 2.0}, None, False),
        (str(tmp_path / "free"), PRIOR, None, False),
    ]
    calm, cut, resumed, power, free = run_ranks(in_turn, 1, tree, runs)[0]
    assert told(resumed, "resume")["step"] == 4 and same(calm, resumed)
    found = [told(result, "prior")["found"] for result in (calm, cut, resumed, free)]
    assert found == [False, True, False, True]
    # at the first step p0 is p; later it is not
    loss = steps_of(calm, "train/loss"), steps_of(power, "train/loss")
    assert loss[0][0] == pytest.approx(loss[1][0], rel=1e-5) and abs(loss[0][-1] - loss[1][-1]) > 1e-3 * loss[0][-1]
    kl = steps_of(calm, "train/anchor_kl")
    assert abs(kl[0]) < 1e-5 < 1e-3 < kl[-1]
    assert "train/anchor_kl" not in free["events"][-1][1] and not same(calm, free)
    cost = told(calm, "start")["anchor"]
    assert cost.startswith("; anchor 2: one more forward pass of each micro-batch")
    assert ("adapters off" in cost) == bool(lora) and ("frozen copy of 0.1 MB" in cost) == (not lora)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [ANCHOR, PRIOR], ids=["anchor", "prior"])
def test_ranks_and_zero3_change_nothing(make_tree, tmp_path, loss):
    """Adapters on two ranks under ZeRO-3, against one rank under ZeRO-0: losses and KL of all steps."""
    results = {}
    for world_size, preset in [(1, "zero0"), (2, "zero3"), (2, "zero2")]:
        cache = tmp_path / f"{world_size}{preset}"
        tree = make_tree(
            lora={"rank": 4},
            optimizer={"learning_rate": 1e-2},
            deepspeed={"preset": preset},
            data={"cache_dir": str(cache)},
            loss=loss,
            checkpoint={"every_steps": 3},
        )
        results[preset] = run_ranks(run_alone, world_size, tree, str(cache / "run"))[0]
    for name in ("train/loss", "train/nll", *(["train/anchor_kl"] if "anchor" in loss else [])):
        expected = np.array(steps_of(results["zero0"], name))
        for preset in ("zero2", "zero3"):
            found = np.array(steps_of(results[preset], name))
            assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max(), (name, preset)


@pytest.mark.slow
def test_the_profile_and_training_find_each_others_numbers(make_tree, tmp_path):
    tree = make_tree(loss=PRIOR, data={"cache_dir": str(tmp_path / "cache")})
    config = make_config(tree)
    dataset = prepare(config.data.train, load_tokenizer(config.model), config.data)
    profiled, cached = token_logps(config, dataset)
    assert not cached
    trained, again = run_ranks(
        in_turn, 1, tree, [(str(tmp_path / "a"), PRIOR, 1, False), (str(tmp_path / "b"), PRIOR, 1, True)]
    )[0]
    assert told(trained, "prior")["found"] and not told(again, "prior")["found"]
    kept = read(path_of(config.model, dataset))
    for own, other in ((kept.logp, profiled.logp), (kept.entropy, profiled.entropy)):
        assert np.abs(own - other).max() <= 1e-5 * np.abs(other).max()
    assert token_logps(config, dataset)[1]
    for index in (0, 7):
        assert len(kept.of(index)) == dataset.num_supervised[index]


def test_what_an_anchor_cannot_have_is_refused_before_a_worker_starts(make_tree, tmp_path):
    with pytest.raises(BadConfig, match=r"loss\.anchor.*all weights train under zero3.*zero2"):
        make_config(make_tree(loss=ANCHOR, deepspeed={"preset": "zero3"}))
    make_config(make_tree(loss=ANCHOR, deepspeed={"preset": "zero3"}, lora={"rank": 4}))
    tree = make_tree(loss=ANCHOR)
    model = load_model(make_config(tree).model, make_config(make_tree(lora={"rank": 2})).lora)
    model.save_pretrained(tmp_path / "adapter")
    adapter = {"model": tree["model"] | {"adapter": str(tmp_path / "adapter")}}
    with pytest.raises(BadConfig, match=r"loss\.anchor.*an adapter is trained on.*Merge"):
        make_config(tree | adapter)
    config = make_config(tree | {"model": tree["model"] | {"path": str(tmp_path / "adapter")}})
    with pytest.raises(BadInput, match=r"loss\.anchor.*an adapter is trained on"):
        check_model(config, load_tokenizer(make_config(tree).model))
