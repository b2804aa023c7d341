"""Equal trials: each rule by hand, and against the weights of the loss itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.config import METHODS, LossConfig, load_config
from bft_ray.config.loss import POWERED
from bft_ray.loss import normalisation
from bft_ray.loss.reference import gather_sums
from bft_ray.loss.weights import weigh
from bft_ray.space.assign import with_overrides
from bft_ray.space.duplicates import canonical, distinct, duplicate_reasons, same_run

LONGEST = 12


def loss(method: str = "bft", **fields) -> LossConfig:
    return LossConfig(method=method, **fields)


EQUAL = [
    # fields that the method does not use
    (loss("sft"), loss("sft", window=7, gamma=2.0, epsilon=0.3, confidence="arithmetic"), "window is not used"),
    (loss("dft", token_cap=0.5), loss("bft_no_sample", aggregate="token"), "token_cap is not used"),
    (loss("bft"), loss("bft", epsilon=0.5, token_epsilon=0.1), "epsilon is not used"),
    (loss("bft"), loss("bft_no_token", token_weight="exp_nll"), "both methods give the same fields"),
    (loss("bft"), loss("bft_group", token_weight="exp_nll", confidence="geometric"), "both methods"),
    (loss("sft", weight_cap=2.0, normalise=True), loss("sft"), "weight_cap is not used"),
    (loss("sft", weight_cap=0.5, normalise=True), loss("sft"), "weight_cap is not used"),
    # windows that hold the longest sample
    (loss("bft", window=12), loss("bft", window=1024), "windows 12 and 1024 both hold the longest sample (12 tokens)"),
    (loss("bft_group", window=12), loss("bft_group", window=13), "windows 12 and 13"),
    (
        loss("bft_group", window=23, window_alignment="centered"),
        loss("bft_group", window=99, window_alignment="centered"),
        "windows 23 and 99",
    ),
    # token weights that are 1 for every token, or the probability
    (loss("bft", token_weight="power", token_power=0.0), loss("bft_no_token"), "power with token_power 0 is 1"),
    (loss("bft", token_weight="prior", token_power=0.0), loss("bft_no_token"), "prior with token_power 0 is 1"),
    (loss("dft", token_weight="entropy", token_power=0.0, entropy_top_k=7), loss("sft"), "entropy with token_power 0"),
    (
        loss("bft", token_weight="entropy", token_power=0.0),
        loss("bft", token_weight="power", token_power=0.0),
        "power with token_power 0 is 1",
    ),
    (loss("bft", token_weight="threshold", token_threshold=0.0), loss("bft_no_token"), "reaches token_threshold 0"),
    (loss("bft", token_weight="power", token_power=1.0), loss("bft"), "power with token_power 1 is exp_nll"),
    (loss("bft", token_power=3.0, token_threshold=0.5, entropy_top_k=5), loss("bft"), "token_power is not used"),
    (loss("bft", anchor=0.0), loss("bft_no_token", token_weight="exp_nll"), "both methods give the same fields"),
    # a cap that is never reached
    (loss("bft_inverse", epsilon=0.125, weight_cap=8.0), loss("bft_inverse", epsilon=0.125, weight_cap=None), "never"),
    (loss("bft_inverse", epsilon=0.125, weight_cap=8.0), loss("bft_inverse", epsilon=0.125, weight_cap=99.0), "never"),
    # a cap that is always reached
    (loss("bft_inverse", epsilon=0.25, weight_cap=0.8), loss("bft_no_sample"), "all weights are equal"),
    (
        loss("bft_inverse", epsilon=0.25, weight_cap=0.8, window=3),
        loss("bft_inverse", epsilon=0.05, weight_cap=0.1, gamma=3.0),
        "all weights are equal",
    ),
]
DIFFERENT = [
    (loss("bft"), loss("dft")),
    (loss("sft"), loss("sft", aggregate="sample")),
    (loss("bft", window=11), loss("bft", window=12)),
    (loss("bft", window=12), loss("bft_group", window=12)),
    (loss("bft", gamma=1.0), loss("bft", gamma=2.0)),
    (loss("bft"), loss("bft", confidence="arithmetic")),
    (loss("bft"), loss("bft", normalise=True)),
    (loss("bft"), loss("bft", weight_cap=0.9)),
    (loss("bft"), loss("bft", token_weight="prob")),
    (loss("bft_group"), loss("bft_group", token_epsilon=1e-3)),
    (loss("bft_group"), loss("bft_group", token_cap=0.5)),
    (
        loss("bft_group", window=22, window_alignment="centered"),
        loss("bft_group", window=23, window_alignment="centered"),
    ),
    (loss("bft_group"), loss("bft_group", window_alignment="centered")),
    (loss("bft_inverse", epsilon=0.1), loss("bft_inverse", epsilon=0.11)),
    (loss("bft_inverse", epsilon=0.125, weight_cap=7.9), loss("bft_inverse", epsilon=0.125, weight_cap=None)),
    (loss("bft_inverse", epsilon=0.25, weight_cap=0.81), loss("bft_no_sample")),
    # without normalising, weights that are all cut scale the loss
    (loss("bft_inverse", epsilon=0.25, weight_cap=0.8, normalise=False), loss("bft_no_sample")),
    (loss("sft", weight_cap=0.5), loss("sft")),
    (loss("bft", token_weight="power", token_power=1.5), loss("bft")),
    (loss("bft", token_weight="prior"), loss("bft")),  # alike at the start alone
    (loss("bft", token_weight="entropy"), loss("bft", token_weight="entropy", entropy_top_k=10)),
    (loss("bft", token_weight="threshold"), loss("bft", token_weight="threshold", token_threshold=0.2)),
    (loss("bft"), loss("bft", anchor=0.1)),
    (loss("bft", anchor=0.1), loss("bft", anchor=0.2)),
]


@pytest.mark.parametrize(("a", "b", "reason"), EQUAL)
def test_equal_by_hand(a, b, reason):
    assert same_run(a, b, LONGEST) and canonical(a, LONGEST) == canonical(b, LONGEST)
    assert reason in "; ".join(duplicate_reasons(a, b, LONGEST))


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_by_hand(a, b):
    assert not same_run(a, b, LONGEST)
    assert duplicate_reasons(a, b, LONGEST) == []


def test_methods_are_runs_of_their_own():
    found = [canonical(loss(method), LONGEST) for method in METHODS]
    assert all(a != b for place, a in enumerate(found) for b in found[:place])


def test_a_setting_is_equal_to_itself_and_the_order_does_not_matter():
    for a, b, _ in EQUAL:
        assert same_run(a, a, LONGEST) and same_run(b, a, LONGEST) == same_run(a, b, LONGEST)
    assert duplicate_reasons(loss(), loss(), LONGEST) == []


def applied(logp: torch.Tensor, sample: torch.Tensor, num_samples: int, config: LossConfig) -> torch.Tensor:
    """Weight of each token in the loss of the batch: as applied, normalised, by the functions of the loss."""
    signal = {"prior": logp.flip(0), "entropy": -logp.exp() * logp}.get(config.token_weight, logp.exp())
    weights = weigh(logp, sample, num_samples, config, signal)
    sums = gather_sums((weights.row * -logp).sum(), logp, torch.zeros_like(sample, dtype=torch.bool), weights)
    return weights.row * normalisation(sums.weight_sum, sums.num_samples, config)


#: values with many collisions, so that equal settings are met often
FIELDS = {
    "token_weight": ["none", "prob", "exp_nll", "group", "power", "prior", "entropy", "threshold"],
    "token_power": [0.0, 0.5, 1.0],
    "token_threshold": [0.0, 0.3],
    "sample_weight": ["none", "complement", "inverse"],
    "confidence": ["geometric", "arithmetic"],
    "window": [1, 3, 11, 12, 13, 22, 23, 24, 40],
    "window_alignment": ["trailing", "centered"],
    "gamma": [0.5, 1.0],
    "epsilon": [0.125, 0.25],
    "weight_cap": [None, 0.25, 0.8, 0.85, 0.9, 4.0, 8.0, 20.0],
    "normalise": [False, True],
    "token_cap": [0.5, 1.0],
    "aggregate": ["sample", "token"],
}


@pytest.mark.slow
def test_what_is_called_equal_has_the_same_weights():
    """All pairs of 4,000 random settings, on samples of 1 to 12 tokens: equal runs differ by rounding alone."""
    draw = torch.Generator().manual_seed(0)
    lengths = [12, 12, 1, 2, 5, 11]
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    logp = -2 * torch.rand(len(sample), generator=draw, dtype=torch.float64) ** 3  # confidences of all sizes
    logp[:12] = -1e-12  # a sample that is sure, and one that is not: caps bind at both ends
    logp[12:24] = -60.0
    groups: dict[str, tuple[LossConfig, torch.Tensor]] = {}
    merged = 0
    for _ in range(4000):
        chosen = {name: values[int(torch.randint(len(values), (), generator=draw))] for name, values in FIELDS.items()}
        if chosen["sample_weight"] == "complement" and (chosen["weight_cap"] or 0) >= 1:
            chosen["weight_cap"] = None
        config = LossConfig(method="bft", **chosen)
        weights = applied(logp, sample, len(lengths), config)
        key = repr(sorted(canonical(config, LONGEST).items()))
        if key not in groups:
            groups[key] = (config, weights)
            continue
        first, expected = groups[key]
        merged += first != config
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12, msg=lambda m: f"{first}\n{config}\n{m}")  # noqa: B023
    assert merged > 1000


@settings(max_examples=200)
@given(
    seed=st.integers(0, 2**32 - 1),
    longest=st.integers(1, 40),
    epsilon=st.floats(1e-3, 2.0),
    share=st.floats(0.01, 1.0),
    gamma=st.sampled_from([0.3, 1.0, 2.0]),
    extra=st.integers(0, 100),
    confidence=st.sampled_from(["geometric", "arithmetic"]),
)
def test_the_rules_hold_for_any_sample_up_to_the_longest(seed, longest, epsilon, share, gamma, extra, confidence):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (5,), generator=draw)
    sample = torch.repeat_interleave(torch.arange(5), lengths)
    logp = -torch.empty(len(sample), dtype=torch.float64).exponential_(0.7, generator=draw)
    common = {"epsilon": epsilon, "gamma": gamma, "confidence": confidence}
    pairs = [
        (loss("bft_inverse", weight_cap=share / (1 + epsilon), **common), loss("bft_no_sample")),
        (
            loss("bft_inverse", weight_cap=1 / epsilon / share, window=longest, **common),
            loss("bft_inverse", weight_cap=None, window=longest + extra, **common),
        ),
        (loss("bft", token_weight="power", token_power=1.0, **common), loss("bft", **common)),
        *(
            (loss("bft", token_weight=weight, token_power=0.0, **common), loss("bft", token_weight="none", **common))
            for weight in POWERED
        ),
        (
            loss("bft", token_weight="threshold", token_threshold=0.0, **common),
            loss("bft", token_weight="none", **common),
        ),
        (loss("bft_group", window=longest, **common), loss("bft_group", window=longest + extra, **common)),
        (
            loss("bft_group", window=2 * longest - 1, window_alignment="centered", **common),
            loss("bft_group", window=2 * longest - 1 + extra, window_alignment="centered", **common),
        ),
    ]
    for a, b in pairs:
        assert same_run(a, b, longest)
        torch.testing.assert_close(applied(logp, sample, 5, a), applied(logp, sample, 5, b), rtol=1e-12, atol=1e-12)


def test_shorter_windows_do_make_a_difference():
    """The bound of the windows is sharp, on both sides."""
    logp = -torch.arange(1, LONGEST + 1, dtype=torch.float64)
    sample = torch.zeros(LONGEST, dtype=torch.int64)
    group = {"sample_weight": "none", "token_cap": 100.0}
    centered = group | {"window_alignment": "centered"}
    for a, b in [
        (loss("bft", window=LONGEST - 1), loss("bft", window=LONGEST)),
        (loss("bft_group", window=LONGEST - 1, **group), loss("bft_group", window=LONGEST, **group)),
        (loss("bft_group", window=2 * LONGEST - 2, **centered), loss("bft_group", window=2 * LONGEST - 1, **centered)),
    ]:
        assert (applied(logp, sample, 1, a) - applied(logp, sample, 1, b)).abs().max() > 1e-9
        assert not same_run(a, b, LONGEST)


def test_equal_trials_are_grouped():
    base = load_config("starter")
    configs = [
        with_overrides(base, {"loss.window": window, **more}, "test")
        for window in (64, 128, 256, 512)
        for more in ({}, {"name": "other"}, {"optimizer.learning_rate": 2e-3})
    ]
    assert distinct(configs, 200) == [[0, 1], [2], [3, 4], [5], [6, 7, 9, 10], [8, 11]]
    assert distinct(configs, None) == [[0, 1], [2], [3, 4], [5], [6, 7], [8], [9, 10], [11]]
    assert distinct(configs, 1) == [[0, 1, 3, 4, 6, 7, 9, 10], [2, 5, 8, 11]]
    assert distinct([], 1) == []
