"""The best trial beside the tuned baselines, from records and scores made by hand: who may be called the best."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.config import load_config
from bft_ray.config.load import load_config as load
from bft_ray.space.assign import baseline_config, config_of
from bft_ray.stats.alone import compare_alone
from bft_ray.study.confirm.standing import compared, in_words, leader, standing_of, training_command
from bft_ray.study.report.compare import verdict
from bft_ray.study.report.describe import conclusion, describe
from tests.support.noted import METRIC, baseline, known, space, trial

ALONE = space(confirmation=None)


def study(top: float, sft: float, bft: float = 0.30) -> dict[str, list]:
    """Two trials that differ, one that is stopped, and two baselines of which sft is tuned over two rates."""
    return {
        "baselines": [
            replace(baseline(0, "sft", 0.1, 1e-4), key="sft4"),
            replace(baseline(1, "sft", sft, 1e-3), key="sft3"),
            replace(baseline(2, "bft", bft, 1e-3), key="bft3"),
        ],
        "search": [
            trial(0, top, window=128, key="a"),
            trial(1, 0.2, key="b"),
            trial(2, state="pruned", window=512, num_steps=9, rungs={9: {0: 0.9}}, key="c"),
        ],
    }


def scored(records: dict[str, list], spread: float, count: int = 60, seeds: tuple[int, ...] = (0,)) -> Any:
    """Scores of both compared trials whose means are their values, and whose difference has this spread."""
    draw, found = np.random.default_rng(0), {}
    for record in compared(records, METRIC):
        noise = draw.normal(size=(len(seeds), count)) * spread
        noise += record.value - noise.mean(1, keepdims=True)
        found[record.id] = {
            seed: {f"i{n}": float(v) for n, v in enumerate(row)} for seed, row in zip(seeds, noise, strict=True)
        }
    return found


def test_a_baseline_that_is_ahead_is_said_to_be_so_and_noise_is_told():
    """As a study once called a trial of 0.490 the best though a baseline had 0.492."""
    records = study(0.490, 0.492)
    items = scored(records, 0.06)
    standing = standing_of(records, METRIC, items)
    assert standing is not None and standing.rival is not None and standing.rival.name == "sft lr0.001"
    gain = standing.gain
    values = [items["search/0"][0][f"i{n}"] - items["baselines/1"][0][f"i{n}"] for n in range(60)]
    assert (
        gain is not None
        and gain.gain == pytest.approx(-0.002)
        and gain.se == pytest.approx(np.std(values, ddof=1) / 60**0.5)
    )
    assert in_words(standing, METRIC) == (
        "**No trial is better than the best baseline**, `sft lr0.001` (choices/probability 0.492): the best trial is "
        f"`w128 lr0.001` (0.490), gain -0.0020 [{gain.low:+.4f}, {gain.high:+.4f}], standard error {gain.se:.2g} over 60 "
        "items, one seed (the variation between seeds is not in it): within noise, so neither is shown to be better."
    )
    text = conclusion(known(records, ALONE, items=items))
    assert (
        text.startswith("No trial is better than the best baseline, sft lr0.001") and "No confirmation, so no" in text
    )
    command = text.splitlines()[-1].partition("  # ")[0]
    assert command == ("bft-ray train starter data.max_length=512 loss.method=sft optimizer.learning_rate=0.001"), (
        command
    )
    assert "**No trial is better" in describe(known(records, ALONE, items=items)).splitlines()[0]
    assert "baseline sft" in text and "baseline bft" in text


@pytest.mark.parametrize(
    ("top", "sft", "spread", "begins", "leads"),
    [
        (0.52, 0.49, 0.02, "**`w128 lr0.001` (choices/probability 0.520) is better than the best baseline, `sft lr0.001`", "w128 lr0.001"),
        (0.52, 0.49, 0.20, "**No winner within noise**: the best trial is `w128 lr0.001`", "sft lr0.001"),
        (0.47, 0.49, 0.20, "**No trial is better than the best baseline**, `sft lr0.001`", "sft lr0.001"),
        (0.40, 0.49, 0.02, "**The best baseline is the best of the study**, `sft lr0.001`", "sft lr0.001"),
    ],
)  # fmt: skip
def test_no_winner_is_named_within_noise(top, sft, spread, begins, leads):
    records = study(top, sft)
    standing = standing_of(records, METRIC, scored(records, spread))
    assert standing is not None and in_words(standing, METRIC).startswith(begins)
    found = leader(standing)
    assert found is not None and found.name == leads


def test_what_is_not_known_names_nobody():
    records = study(0.52, 0.49)
    unknown = standing_of(records, METRIC, {})
    assert unknown is not None and unknown.gain is None
    assert verdict(records, ALONE) == in_words(unknown, METRIC) and "**No winner is named**" in verdict(records, ALONE)
    same = study(0.49, 0.49)
    same["search"][0] = replace(same["search"][0], key="sft3", duplicate_of="baselines/1")
    assert verdict(same, ALONE).startswith("**No trial is better than the best baseline**, `sft lr0.001`: the best one")
    assert standing_of({"search": []}, METRIC, {}) is None
    alone = standing_of({"search": [trial(0, 0.4)]}, METRIC, {})
    assert (
        alone is not None and "the only trial that ran to its end" in in_words(alone, METRIC) and leader(alone) is None
    )
    records["baselines"] = []
    assert [record.name for record in compared(records, METRIC)] == ["w128 lr0.001", "w64 lr0.001"]


def test_several_seeds_are_compared_as_a_confirmation_does():
    records = study(0.5, 0.49)
    items = scored(records, 0.05, seeds=(0, 1, 2))
    standing = standing_of(records, METRIC, items)
    rows = [
        [[items[name][seed][f"i{n}"] for n in range(60)] for seed in (0, 1, 2)] for name in ("search/0", "baselines/1")
    ]
    # sorted by name, as the scores are
    order = sorted(range(60), key=lambda n: f"i{n}")
    difference = (np.array(rows[0]) - np.array(rows[1]))[:, order]
    assert standing is not None
    expected = compare_alone("w128 lr0.001", "sft lr0.001", difference, 0.05 / 2)  # the best of two
    assert standing.gain is not None and vars(standing.gain) == pytest.approx(vars(expected), nan_ok=True)
    assert "60 items and 3 seeds" in in_words(standing, METRIC)


@settings(max_examples=40)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(0.001, 0.3))
def test_a_name_is_named_as_better_only_where_its_interval_says_so(top, sft, spread):
    records = study(top, sft)
    standing = standing_of(records, METRIC, scored(records, spread))
    assert standing is not None
    text = in_words(standing, METRIC)
    if standing.gain is None:
        return
    assert ("is better than" in text.split("**")[1] and "No trial" not in text) == (standing.gain.low > 0)
    assert ("is the best of the study" in text) == (standing.gain.high < 0)
    assert standing.gain.detectable > 0


def test_the_command_makes_the_config_that_the_trial_had():
    own = space(
        confirmation=None,
        budget={"trials": 4, "steps": 30},
        domain="d",
        scheduler={"kind": "none"},
        sampler={"kind": "random"},
    )
    base = load_config("starter")
    assignment = {"loss.window": 128, "optimizer.learning_rate": 1e-3, "loss.weight_cap": 2.5}
    record = trial(0, 0.5, assignment=assignment)
    tuned = baseline(0, "bft", 0.5, 1e-4)
    bft = next(one for one in own.baselines if one.name == "bft")
    for one, expected in (
        (record, config_of(base, own, assignment)),
        (tuned, baseline_config(base, own, bft, dict(tuned.assignment))),
    ):
        words = shlex.split(training_command(one, own))
        assert words[:3] == ["bft-ray", "train", "starter"]
        assert load("starter", words[3:]).model_dump(exclude={"name"}) == expected.model_dump(exclude={"name"})
