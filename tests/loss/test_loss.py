"""The loss against a naive twin that loops over samples and tokens; layouts, gradients, degenerate input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bft_ray.errors import BadInput
from bft_ray.loss import BftLoss, LossConfig, combine, loss_sums, window_confidence
from bft_ray.loss import bft_loss as whole_loss
from bft_ray.loss.weights import group_weights
from tests.support.losses import CONFIGS, start_of


def bft_loss(logits: torch.Tensor, labels: torch.Tensor, config: LossConfig) -> BftLoss:
    """With the starting weights, of which only some settings read."""
    return whole_loss(logits, labels, config, start_logits=start_of(logits))


# ---- the naive twin: float64, one sample and one token at a time ---------------------------------------


def naive_confidence(logp: list[float], window: int, mean: str) -> float:
    g = min(window, len(logp))
    windows = [logp[j : j + g] for j in range(len(logp) - g + 1)]
    if mean == "geometric":
        return math.exp(min(sum(w) / g for w in windows))
    return min(sum(math.exp(x) for x in w) / g for w in windows)


def naive_entropy(z: np.ndarray, k: int) -> float:
    top = np.sort(z)[::-1][:k]
    q = np.exp(top - top.max()) / np.exp(top - top.max()).sum()
    return float(-(q * np.log(q)).sum() / math.log(len(top)))


def naive_divergence(z0: np.ndarray, z: np.ndarray) -> float:
    logp0, logp = z0 - np.logaddexp.reduce(z0), z - np.logaddexp.reduce(z)
    return float((np.exp(logp0) * (logp0 - logp)).sum())


def naive_token_weights(
    logp: list[float], config: LossConfig, rows: list[np.ndarray], starts: list[np.ndarray], targets: list[int]
) -> list[float]:
    p = [math.exp(x) for x in logp]
    if config.token_weight == "none":
        return [1.0] * len(p)
    if config.token_weight == "power":
        return [x**config.token_power for x in p]
    if config.token_weight == "threshold":
        return [float(x >= config.token_threshold) for x in p]
    if config.token_weight == "entropy":
        return [naive_entropy(z, config.entropy_top_k) ** config.token_power for z in rows]
    if config.token_weight == "prior":
        before = [z[target] - np.logaddexp.reduce(z) for z, target in zip(starts, targets, strict=True)]
        return [math.exp(x) ** config.token_power for x in before]
    if config.token_weight != "group":
        return p
    weights = []
    for t in range(len(p)):
        if config.window_alignment == "trailing":
            group = p[max(0, t - config.window + 1) : t + 1]
        else:
            group = p[max(0, t - config.window // 2) : t + (config.window - 1) // 2 + 1]
        weights.append(min(p[t] / (sum(group) / len(group) + config.token_epsilon), config.token_cap))
    return weights


#: row, place of the logits, target, and what its -log p counts in the loss
Factor = tuple[int, int, int, float]


def naive_factors(
    logits: np.ndarray, starts: np.ndarray, labels: np.ndarray, config: LossConfig
) -> tuple[list[Factor], np.ndarray, np.ndarray]:
    """What each supervised token counts, confidences, and weights as applied."""
    confidence: list[float] = []
    weight: list[float] = []
    samples: list[tuple[int, list, list[float]]] = []
    for row, targets in enumerate(labels):
        tokens: list[tuple[int, int, float]] = []  # (position of the logits, target, logp)
        for t in range(1, len(targets)):
            if targets[t] != -100:
                z = logits[row, t - 1]
                tokens.append((t - 1, targets[t], float(z[targets[t]] - np.logaddexp.reduce(z))))
        if not tokens:
            confidence.append(math.nan)
            weight.append(math.nan)
            continue
        logp = [x for _, _, x in tokens]
        c = naive_confidence(logp, config.window, config.confidence)
        r = {
            "none": 1.0,
            "complement": 1 - c**config.gamma,
            "inverse": 1 / (c**config.gamma + config.epsilon),
        }[config.sample_weight]
        r = r if config.weight_cap is None else min(r, config.weight_cap)
        confidence.append(c)
        weight.append(r)
        places, targets = [t for t, _, _ in tokens], [target for _, target, _ in tokens]
        of_token = naive_token_weights(logp, config, list(logits[row, places]), list(starts[row, places]), targets)
        samples.append((row, tokens, of_token))
    mean = float(np.nanmean(weight)) if samples else 0.0
    if config.normalise and mean > 0:
        weight = [r / mean for r in weight]
    num_tokens, factors = sum(len(tokens) for _, tokens, _ in samples), []
    for row, tokens, token_weight in samples:
        count = len(samples) * len(tokens) if config.aggregate == "sample" else num_tokens
        factors += [
            (row, t, target, weight[row] * w / count) for (t, target, _), w in zip(tokens, token_weight, strict=True)
        ]
    return factors, np.array(confidence), np.array(weight)


def naive_loss(
    logits: np.ndarray, labels: np.ndarray, config: LossConfig
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Loss, confidences, weights as applied, and the gradient of the logits with constant weights."""
    starts = start_of(torch.from_numpy(logits)).numpy()
    factors, confidence, weight = naive_factors(logits, starts, labels, config)
    loss, gradient = 0.0, np.zeros_like(logits)
    for row, t, target, factor in factors:
        z, z0 = logits[row, t], starts[row, t]
        p, p0 = np.exp(z - np.logaddexp.reduce(z)), np.exp(z0 - np.logaddexp.reduce(z0))
        loss += factor * (np.logaddexp.reduce(z) - z[target] + config.anchor * naive_divergence(z0, z))
        gradient[row, t] += factor * (p + config.anchor * (p - p0))
        gradient[row, t, target] -= factor
    return loss, confidence, weight, gradient


def close(ours: torch.Tensor, theirs, tolerance: float, rounding: float = 0.0) -> None:
    """max |difference| <= tolerance * max |reference| + rounding, with NaN in the same places."""
    got, expected = ours.detach().double().numpy(), np.asarray(theirs, dtype=np.float64)
    assert got.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    if np.isfinite(expected).any():
        assert np.nanmax(np.abs(got - expected)) <= tolerance * np.nanmax(np.abs(expected)) + rounding


def batch(seed: int, num_samples: int, num_positions: int, vocabulary: int = 13, keep: float = 0.6):
    """float64 logits [B, T, V] of varied sureness, labels [B, T] with -100, in whole rows too."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocabulary, (num_samples, num_positions), generator=generator)
    logits = 2 * torch.randn(num_samples, num_positions, vocabulary, generator=generator, dtype=torch.float64)
    sure = 5 * torch.rand(num_samples, num_positions - 1, 1, generator=generator, dtype=torch.float64)
    logits[:, :-1].scatter_add_(2, labels[:, 1:, None], sure)
    masked = torch.rand(labels.shape, generator=generator) > keep
    return logits, labels.masked_fill(masked, -100)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=15, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    num_samples=st.integers(1, 5),
    num_positions=st.integers(2, 24),
    window=st.sampled_from([1, 2, 3, 4, 7, 30]),
    keep=st.sampled_from([0.1, 0.5, 1.0]),
)
def test_equals_the_naive_twin(name, seed, num_samples, num_positions, window, keep):
    config = LossConfig(**CONFIGS[name], window=window)
    logits, labels = batch(seed, num_samples, num_positions, keep=keep)
    loss, confidence, weight, gradient = naive_loss(logits.numpy(), labels.numpy(), config)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        x = logits.to(dtype, copy=True).requires_grad_()
        result = bft_loss(x, labels, config)
        result.loss.backward()
        assert result.loss.dtype == result.confidence.dtype == result.sample_weight.dtype == dtype
        # -log p of a token that is all but sure is a small difference of numbers as large as the logits
        close(result.loss, loss, tolerance, rounding=torch.finfo(dtype).eps * float(logits.abs().max()))
        close(result.confidence, confidence, tolerance)
        close(result.sample_weight, weight, tolerance)
        # and its gradient `p - 1` of numbers near 1
        close(x.grad, gradient, tolerance, rounding=torch.finfo(dtype).eps / 8)


def test_counts_and_unweighted_sums():
    logits, labels = batch(3, 4, 20)
    labels[2] = -100
    config = LossConfig(method="bft_inverse", window=4, weight_cap=2.0)
    index = torch.arange(4)[:, None].expand(4, 20)
    sums = loss_sums(logits, labels, index, 4, config)
    targets, logp = labels[:, 1:], logits[:, :-1].log_softmax(-1)
    kept = targets != -100
    per_token = logp.gather(2, targets.clamp(min=0)[..., None]).squeeze(2)[kept]
    assert sums.num_samples == 3
    assert sums.num_tokens == kept.sum()
    assert sums.num_supervised.tolist() == kept.sum(1).tolist()
    assert sums.num_correct == (logits[:, :-1].argmax(-1) == targets)[kept].sum()
    assert 0 < sums.num_correct < sums.num_tokens
    close(sums.nll_sum, -per_token.sum(), 1e-12)
    close(sums.token_weight_sum, per_token.exp().sum(), 1e-12)
    uncapped = 1 / (sums.confidence + config.epsilon)
    assert sums.num_capped == (uncapped > 2.0).sum()
    assert sums.num_capped > 0
    close(sums.weight_sum, sums.sample_weight.nansum(), 1e-12)
    close(bft_loss(logits, labels, config).nll, -per_token.mean(), 1e-12)


# ---- one loss, however it is laid out ------------------------------------------------------------------


def pack(logits: torch.Tensor, labels: torch.Tensor, lengths: list[int]):
    """The rows, cut to their lengths, one behind the other: [1, sum, V], [1, sum], [1, sum]."""
    parts = [(logits[s, :n], labels[s, :n].clone(), torch.full((n,), s)) for s, n in enumerate(lengths)]
    for _, label, _ in parts:
        label[0] = -100
    return tuple(torch.cat(pieces)[None] for pieces in zip(*parts, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_padded_packed_and_one_by_one_agree(name):
    config = LossConfig(**CONFIGS[name], window=5)
    lengths = [24, 9, 1, 17, 2, 24]
    logits, labels = (x.float() if x.is_floating_point() else x for x in batch(11, 6, 24))
    for s, n in enumerate(lengths):
        labels[s, n:] = -100
    labels[4, 1] = -100  # nothing supervised in rows 2 and 4

    x = logits.clone().requires_grad_()
    padded = bft_loss(x, labels, config)
    padded.loss.backward()
    assert padded.num_samples == 4

    packed_logits, packed_labels, packed_index = pack(logits, labels, lengths)
    y = packed_logits.clone().requires_grad_()
    sums = loss_sums(y, packed_labels, packed_index, 6, config, start_logits=start_of(y))
    loss = combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)
    loss.backward()
    close(loss, padded.loss.detach(), 1e-6)
    close(sums.confidence, padded.confidence, 1e-6)
    close(y.grad[0], torch.cat([x.grad[s, :n] for s, n in enumerate(lengths)]), 1e-6)

    for size in (1, 2, 4):  # micro-batches
        index = torch.arange(size)[:, None].expand(size, 24)
        z = logits.clone().requires_grad_()
        parts = [
            loss_sums(
                z[s : s + size],
                labels[s : s + size],
                index[: len(z[s : s + size])],
                size,
                config,
                start_logits=start_of(z[s : s + size]),
            )
            for s in range(0, 6, size)
        ]
        total = {
            field: sum(getattr(part, field) for part in parts)
            for field in ("loss_sum", "weight_sum", "num_samples", "num_tokens")
        }
        loss = combine(**total, config=config)
        loss.backward()
        close(loss, padded.loss.detach(), 1e-6)
        close(z.grad, x.grad, 1e-6)


def test_samples_may_lie_in_any_order():
    config = LossConfig(method="bft_inverse", window=3)
    logits, labels = batch(5, 4, 12)
    permuted = torch.tensor([2, 0, 3, 1])
    sums = loss_sums(logits[permuted], labels[permuted], permuted[:, None].expand(4, 12), 4, config)
    expected = bft_loss(logits, labels, config)
    loss = combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)
    close(loss, expected.loss, 1e-12)
    close(sums.confidence, expected.confidence, 1e-12)


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("window", [1, 16, 256])
def test_confidence_keeps_its_digits_over_long_rows(mean, window):
    generator = torch.Generator().manual_seed(0)
    logp = -8 * torch.rand(200_000, generator=generator)  # float32, a sum of about 800,000
    sample = (torch.arange(len(logp)) >= 150_000).long()
    ours = window_confidence(logp, sample, 2, window, mean)
    values = logp.double() if mean == "geometric" else logp.double().exp()
    for s in range(2):
        least = values[sample == s].unfold(0, window, 1).mean(-1).min()
        expected = (least.exp() if mean == "geometric" else least).item()
        assert ours[s].item() == pytest.approx(expected, rel=1e-7)


def test_group_weights_look_neither_ahead_nor_at_neighbours():
    logp = torch.log(torch.tensor([0.5, 0.1, 0.9, 0.2, 0.8]))
    sample = torch.tensor([0, 0, 0, 1, 1])
    config = LossConfig(method="bft_group", window=2, token_cap=10.0, token_epsilon=1e-12)
    trailing = [0.5 / 0.5, 0.1 / 0.3, 0.9 / 0.5, 0.2 / 0.2, 0.8 / 0.5]
    close(group_weights(logp, sample, 2, config), trailing, 1e-6)
    config = LossConfig(method="bft_group", window=3, token_cap=10.0, token_epsilon=1e-12, window_alignment="centered")
    centered = [0.5 / 0.3, 0.1 / 0.5, 0.9 / 0.5, 0.2 / 0.5, 0.8 / 0.5]
    close(group_weights(logp, sample, 2, config), centered, 1e-6)


# ---- gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", [-math.inf, math.nan, -1e20])
def test_what_a_sample_holds_is_in_no_other_sample(spoilt):
    """One sum over all samples gives each window: a probability of 0 in the first sample made the others' confidence NaN."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.tensor([0] * 6 + [1] * 6 + [2] * 6)
    logp = -torch.rand(18, generator=generator, dtype=torch.float64)
    hurt = torch.cat([logp[:3], torch.tensor([spoilt], dtype=torch.float64), logp[4:]])
    for mean in ("geometric", "arithmetic"):
        calm, after = (window_confidence(values, sample, 3, 2, mean) for values in (logp, hurt))
        assert torch.allclose(calm[1:], after[1:], rtol=1e-8)
        assert torch.isnan(after[0]) if math.isnan(spoilt) else after[0] < calm[0]
    for alignment in ("trailing", "centered"):
        config = LossConfig(method="bft_group", window=4, window_alignment=alignment)
        calm, after = (group_weights(values, sample, 3, config) for values in (logp, hurt))
        assert torch.allclose(calm[6:], after[6:], rtol=1e-8)


def test_gradcheck_where_nothing_is_weighted():
    logits, labels = batch(1, 3, 7, vocabulary=5)
    config = LossConfig(method="sft")
    assert torch.autograd.gradcheck(lambda x: bft_loss(x, labels, config).loss, logits.requires_grad_())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_is_that_of_the_loss_with_the_weights_held(name):
    """By central differences of `sum_t factor_t (-log p_t + anchor KL(p0_t || p_t))`, the factors those of the naive twin."""
    logits, labels = batch(1, 3, 7, vocabulary=5, keep=0.9)
    config, start = LossConfig(**CONFIGS[name], window=3), start_of(logits)  # held too
    factors, _, _ = naive_factors(logits.numpy(), start.numpy(), labels.numpy(), config)

    def held(z: torch.Tensor) -> torch.Tensor:
        """[K, B, T, V] -> [K]."""
        logp, logp0 = z.log_softmax(-1), start.log_softmax(-1)
        divergence = (logp0.exp() * (logp0 - logp)).sum(-1)
        parts = [f * (config.anchor * divergence[:, row, t] - logp[:, row, t, y]) for row, t, y, f in factors]
        return torch.stack(parts).sum(0)

    step = 1e-5
    moves = step * torch.eye(logits.numel(), dtype=logits.dtype).view(-1, *logits.shape)
    differences = (held(logits + moves) - held(logits - moves)).view_as(logits) / (2 * step)
    loss = whole_loss(logits.requires_grad_(), labels, config, start_logits=start).loss
    close(loss, held(logits[None])[0].detach(), 1e-12)
    close(torch.autograd.grad(loss, logits)[0], differences.detach(), 1e-8)


def test_weights_and_statistics_carry_no_gradient():
    logits, labels = batch(2, 3, 9)
    config = LossConfig(method="bft_group", normalise=True, window=2)
    result = bft_loss(logits.requires_grad_(), labels, config)
    assert result.loss.requires_grad
    assert not result.confidence.requires_grad
    assert not result.sample_weight.requires_grad
    assert not result.nll.requires_grad


# ---- degenerate input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_no_supervised_token_gives_a_zero_attached_to_the_graph(name):
    logits, labels = batch(4, 2, 6)
    labels[:, 1:] = -100  # a label at position 0 has nothing to predict it from
    labels[:, 0] = 3
    x = logits.requires_grad_()
    result = bft_loss(x, labels, LossConfig(**CONFIGS[name], window=2))
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert x.grad is not None and not x.grad.any()
    assert result.num_samples == 0 and result.num_tokens == 0 and result.nll == 0
    assert result.confidence.isnan().all() and result.sample_weight.isnan().all()


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_without_supervised_tokens_count_in_nothing(name):
    config = LossConfig(**CONFIGS[name], window=2)
    logits, labels = batch(6, 3, 8, keep=1.0)
    alone = bft_loss(logits, labels, config)
    more = bft_loss(torch.cat([logits, logits]), torch.cat([labels, torch.full_like(labels, -100)]), config)
    close(more.loss, alone.loss, 1e-14)
    close(more.sample_weight[:3], alone.sample_weight, 1e-14)


def test_no_samples_at_all():  # the dummy micro-batch of a rank that has nothing left
    logits = torch.randn(1, 2, 5, requires_grad=True)
    index = torch.full((1, 2), -1)
    sums = loss_sums(logits, torch.full((1, 2), -100), index, 0, LossConfig(method="bft_inverse"))
    sums.loss_sum.backward()
    assert sums.loss_sum.item() == 0.0 and sums.weight_sum.item() == 0.0 and sums.num_samples == 0
    assert sums.confidence.shape == (0,)
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("method", ["bft", "bft_inverse", "bft_group"])
def test_one_token_samples_have_their_own_probability_as_confidence(method):
    logits, labels = batch(8, 3, 2, keep=1.0)
    p = logits[:, 0].softmax(-1).gather(1, labels[:, 1:]).squeeze(1)
    for window in (1, 256):
        result = bft_loss(logits, labels, LossConfig(method=method, window=window))
        close(result.confidence, p, 1e-12)


def test_all_weights_zero_are_left_as_they_are():
    logits = torch.zeros(2, 4, 5, dtype=torch.float64)
    logits[..., 2] = 1000.0  # certain and right: c = 1, 1 - c = 0
    x = logits.requires_grad_()
    result = bft_loss(x, torch.full((2, 4), 2), LossConfig(method="bft", normalise=True))
    result.loss.backward()
    assert result.sample_weight.tolist() == [0.0, 0.0]
    assert result.loss.item() == 0.0
    assert x.grad is not None and not x.grad.any()


def test_nan_outside_the_supervised_tokens_changes_nothing():
    logits, labels = batch(9, 2, 6)
    labels[0, 3], labels[1] = -100, -100
    spoilt = logits.clone()
    spoilt[0, 2], spoilt[1] = torch.nan, torch.nan
    config = LossConfig(method="bft_inverse", window=2)
    close(bft_loss(spoilt, labels, config).loss, bft_loss(logits, labels, config).loss, 1e-14)


def test_nan_in_a_supervised_token_shows_in_the_loss():
    logits, labels = batch(9, 2, 6, keep=1.0)
    logits[1, 3] = torch.nan
    for fields in CONFIGS.values():
        assert not bft_loss(logits, labels, LossConfig(**fields)).loss.isfinite()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_logits_stay_close_to_fp32(name, dtype, tolerance):
    config = LossConfig(**CONFIGS[name], window=4)
    logits, labels = batch(10, 4, 24)
    full = bft_loss(logits.float(), labels, config)
    x = logits.to(dtype).requires_grad_()
    half = bft_loss(x, labels, config)
    half.loss.backward()
    assert half.loss.dtype == torch.float32 and x.grad.dtype == dtype
    assert x.grad.isfinite().all()
    close(half.loss, full.loss, tolerance)
    close(half.confidence, full.confidence, tolerance)


def test_prob_is_rounded_by_the_dtype_of_the_logits_and_exp_nll_is_not():
    logits, labels = batch(12, 4, 24)
    x = logits.bfloat16()
    prob = bft_loss(x, labels, LossConfig(method="dft", token_weight="prob")).loss
    exp_nll = bft_loss(x, labels, LossConfig(method="dft")).loss
    exact = bft_loss(x.double(), labels, LossConfig(method="dft")).loss
    assert abs(exp_nll - exact) < 1e-6 < abs(prob - exact)


# ---- bad input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logits, labels, field, says",
    [
        (torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int64), "logits", r"float32\[2, 4\]"),
        (torch.zeros(2, 4, 5).long(), torch.zeros(2, 4).long(), "logits", "floating-point"),
        (None, torch.zeros(2, 4, dtype=torch.int64), "logits", "NoneType"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 4), "labels", "integer"),
        (torch.zeros(2, 4, 5), None, "labels", "NoneType"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 3, dtype=torch.int64), "labels", r"of shape \[2, 4\]"),
        (torch.zeros(2, 4, 5), torch.zeros(8, dtype=torch.int64), "labels", "not flattened"),
        (torch.zeros(2, 4, 5), torch.full((2, 4), 5), "labels", r"is 5, but must be -100 or .* 0\.\.4"),
        (torch.zeros(2, 4, 5), torch.full((2, 4), -1), "labels", "is -1"),
        (torch.zeros(2, 4, 0), torch.zeros(2, 4).long(), "logits", r"float32\[2, 4, 0\]"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 4, dtype=torch.uint16), "labels", "uint16"),
        (torch.zeros(2, 4, 5), torch.zeros(2, 4, dtype=torch.complex64), "labels", "complex64"),
    ],
)
def test_bad_input_is_named(logits, labels, field, says):
    with pytest.raises(BadInput, match=says) as error:
        whole_loss(logits, labels, LossConfig())
    assert error.value.field == field


def test_bad_settings_and_start_are_named():
    logits, labels = torch.zeros(2, 4, 5), torch.zeros(2, 4).long()
    with pytest.raises(BadInput, match="`config` is 'dict', but must be a LossConfig"):
        whole_loss(logits, labels, {"method": "bft"})
    with pytest.raises(BadInput, match=r"`start_logits` is 'list', but must be a floating-point tensor \[2, 4, 5\]"):
        whole_loss(logits, labels, LossConfig(anchor=1.0), start_logits=[])
