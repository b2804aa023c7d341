"""The token weights between SFT and BFT, and the anchor, against formulas written down a second time, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from bft_ray.errors import BadInput
from bft_ray.loss import LossConfig, Start, bft_loss, combine, compute_loss_func, fused_loss_sums, loss_sums
from bft_ray.loss.entropy import GROUP_WORDS, TopLogits, largest, relative_entropy

FORMS: dict[str, dict[str, Any]] = {
    "power 0.3": {"token_weight": "power", "token_power": 0.3},
    "power 4": {"token_weight": "power", "token_power": 4.0},
    "prior": {"token_weight": "prior"},
    "prior 0.5": {"token_weight": "prior", "token_power": 0.5},
    "entropy": {"token_weight": "entropy"},
    "entropy of 3, 2": {"token_weight": "entropy", "entropy_top_k": 3, "token_power": 2.0},
    "threshold": {"token_weight": "threshold", "token_threshold": 0.2},
    "anchor": {"anchor": 0.3},
    "anchor, plain": {"token_weight": "none", "sample_weight": "none", "aggregate": "token", "anchor": 2.0},
    "prior, anchor": {"token_weight": "prior", "anchor": 0.1, "sample_weight": "inverse"},
}
#: rows, positions, vocabulary, features, rows of logits held at once
SHAPES = [(1, 2, 2, 1, 1), (3, 17, 23, 5, 2), (5, 31, 337, 7, 64), (4, 9, 1021, 3, None)]


def expected(z: torch.Tensor, z0: torch.Tensor, labels: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """The loss of a batch by its definition: one sample and one token at a time, with autograd."""
    samples = []
    for row, label in enumerate(labels):
        places = [t for t in range(1, len(label)) if label[t] != -100]
        if places:
            logp = torch.stack([z[row, t - 1].log_softmax(0)[label[t]] for t in places])
            samples.append((row, places, logp))
    weights, losses, lengths = [], [], []
    for row, places, logp in samples:
        windows = logp.detach().unfold(0, min(config.window, len(places)), 1)
        c = float(windows.mean(1).min().exp())
        r = {"none": 1.0, "complement": 1 - c, "inverse": 1 / (c + config.epsilon)}[config.sample_weight]
        weights.append(r if config.weight_cap is None else min(r, config.weight_cap))
        total = torch.zeros((), dtype=z.dtype)
        for t, lp in zip(places, logp, strict=True):
            p, p0 = z[row, t - 1].softmax(0), z0[row, t - 1].softmax(0)
            w = token_weight(p.detach(), p0, int(labels[row, t]), config)
            kl = (p0 * (p0.log() - p.log())).sum() if config.anchor else 0.0
            total = total + w * (config.anchor * kl - lp)
        losses.append(total)
        lengths.append(len(places))
    mean = sum(weights) / len(weights) if config.normalise else 1.0
    if config.aggregate == "token":
        return sum(r / mean * loss for r, loss in zip(weights, losses, strict=True)) / sum(lengths)
    parts = [r / mean * loss / n for r, loss, n in zip(weights, losses, lengths, strict=True)]
    return sum(parts) / len(parts)


def token_weight(p: torch.Tensor, p0: torch.Tensor, target: int, config: LossConfig) -> float:
    a = config.token_power
    if config.token_weight == "none":
        return 1.0
    if config.token_weight in ("exp_nll", "power"):
        return float(p[target]) ** (a if config.token_weight == "power" else 1)
    if config.token_weight == "prior":
        return float(p0[target]) ** a
    if config.token_weight == "threshold":
        return float(p[target] >= config.token_threshold)
    likeliest = sorted(p.tolist(), reverse=True)[: config.entropy_top_k]
    shares = [q / sum(likeliest) for q in likeliest]
    return (-sum(q * math.log(q) for q in shares) / math.log(len(shares))) ** a


def inputs(shape: tuple, seed: int = 0) -> dict[str, torch.Tensor]:
    rows, positions, vocabulary, features, _ = shape
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float64)

    labels = torch.randint(vocabulary, (rows, positions), generator=draw)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=draw) > 0.7, -100)
    labels[:, 1] = 0  # each sample has a token
    hidden, weight = normal(rows, positions, features), 2 * normal(vocabulary, features)
    start_hidden, start_weight = hidden + 0.3 * normal(rows, positions, features), weight + 0.2 * normal(*weight.shape)
    return {"labels": labels, "hidden": hidden, "weight": weight, "hidden0": start_hidden, "weight0": start_weight}


def logp_at_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logp = logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[:, 1:, None]).squeeze(2)
    return F.pad(logp, (1, 0))


def error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return float((ours.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max().clamp(min=1e-300))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_values_and_gradients_are_those_of_the_formula(name, shape):
    config = LossConfig(method="bft", window=4, **FORMS[name])
    given, chunk_tokens = inputs(shape), shape[-1]
    labels, index = given["labels"], torch.arange(shape[0])[:, None].expand_as(given["labels"])
    hidden, weight = (given[key].clone().requires_grad_() for key in ("hidden", "weight"))
    start_logits = given["hidden0"] @ given["weight0"].t()
    loss = expected(hidden @ weight.t(), start_logits, labels, config)
    gradients = torch.autograd.grad(loss, [hidden, weight])

    single = {key: tensor.float() for key, tensor in given.items() if key != "labels"}
    start, logp = Start(single["hidden0"], single["weight0"]), logp_at_labels(start_logits, labels).float()
    for learns in (["hidden"], ["hidden", "weight"]):
        leaves = {key: single[key].clone().requires_grad_(key in learns) for key in ("hidden", "weight")}
        sums = fused_loss_sums(
            *leaves.values(), labels, index, shape[0], config, chunk_tokens=chunk_tokens, start=start, start_logp=logp
        )
        ours = combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)
        ours.backward()
        assert error(ours, loss) <= 1e-5
        for key, exact in zip(("hidden", "weight"), gradients, strict=True):
            if key in learns:
                assert error(leaves[key].grad, exact) <= 1e-5, (key, learns)
    x = (single["hidden"] @ single["weight"].t()).requires_grad_()
    plain = bft_loss(x, labels, config, start_logits=start_logits.float(), start_logp=logp)
    assert error(plain.loss, loss) <= 1e-5


def test_entropy_weights_beside_public_code():
    """LLaMA-Factory divides the entropy of the 20 likeliest by 3.0, the rounded ln 20; Axolotl's copy does not divide."""
    z = 3 * torch.randn(50, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    top = z.topk(20, dim=-1).values
    log_q = top - top.logsumexp(-1, keepdim=True)
    entropy = -(log_q.exp() * log_q).sum(-1)
    ours = relative_entropy(largest(z, 20))
    torch.testing.assert_close(ours, entropy / math.log(20))
    torch.testing.assert_close(ours * math.log(20) / 3.0, entropy / 3.0)
    assert abs(math.log(20) / 3.0 - 0.99858) < 1e-5  # LLaMA-Factory's weights by ours
    assert abs(math.log(20) - 2.99573) < 1e-5  # Axolotl's by ours
    uniform, sure = torch.zeros(1, 20), torch.tensor([[200.0] + 19 * [0.0]])
    assert relative_entropy(uniform).item() == pytest.approx(1, abs=1e-6) and relative_entropy(sure).item() == 0


def test_the_anchor_beside_public_code():
    """ASFT's and LLaMA-Factory's `F.kl_div(log_softmax(z), softmax(z0))`, added to the loss of a token without a weight."""
    z, z0 = torch.randn(2, 1, 5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[-100, 3, 1, 9, 10]])
    rows, before, target = z[0, :-1], z0[0, :-1], labels[0, 1:]
    kl = F.kl_div(rows.log_softmax(-1), before.softmax(-1), reduction="none").sum(-1)
    theirs = (F.cross_entropy(rows, target, reduction="none") + 0.1 * kl).mean()
    ours = bft_loss(z, labels, LossConfig(method="sft", anchor=0.1), start_logits=z0)
    torch.testing.assert_close(ours.loss, theirs)
    # with a token weight the KL has it too, which theirs has not
    p = rows.log_softmax(-1).gather(1, target[:, None]).squeeze(1).exp()
    ours = bft_loss(z, labels, LossConfig(method="dft", anchor=0.1), start_logits=z0)
    torch.testing.assert_close(ours.loss, (p * (F.cross_entropy(rows, target, reduction="none") + 0.1 * kl)).mean())


def test_power_has_the_gradient_of_the_published_family():
    """(1 - p^a) / a of arXiv 2510.00526, for a = 0.5 and 2: the loss differs, the gradient does not."""
    z = torch.randn(1, 6, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[-100, 3, 1, 9, 10, 0]])
    for a in (0.5, 2.0):
        logp = z[0, :-1].log_softmax(-1).gather(1, labels[0, 1:, None]).squeeze(1)
        theirs = torch.autograd.grad(((1 - (a * logp).exp()) / a).mean(), z)[0]
        ours = bft_loss(z, labels, LossConfig(method="sft", token_weight="power", token_power=a)).loss
        torch.testing.assert_close(torch.autograd.grad(ours, z)[0], theirs)


@pytest.mark.parametrize("head", [{}, {"logit_scale": 0.3}, {"logit_scale": 2.0, "softcap": 3.0}])
@pytest.mark.parametrize("learns", [["hidden"], ["hidden", "weight"]])
def test_an_anchor_to_itself_pulls_nowhere(head, learns):
    """KL(p || p) is 0 and so is its gradient, to rounding of numbers as large as the logits."""
    given = {key: tensor.float() if key != "labels" else tensor for key, tensor in inputs(SHAPES[2]).items()}
    index = torch.arange(SHAPES[2][0])[:, None].expand_as(given["labels"])
    results = []
    for beta in (0.0, 3.0):
        leaves = [given[key].clone().requires_grad_(key in learns) for key in ("hidden", "weight")]
        start = Start(given["hidden"], given["weight"])
        config = LossConfig(method="sft", anchor=beta)
        sums = fused_loss_sums(
            *leaves, given["labels"], index, len(index), config, chunk_tokens=50, start=start, **head
        )
        sums.loss_sum.backward()
        results.append([sums.loss_sum, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert abs(float(sums.divergence_sum)) < 1e-5 * len(given["labels"])
    for plain, anchored in zip(*results, strict=True):
        assert error(anchored, plain.double()) <= 1e-5


def test_a_power_of_1_is_exp_nll_bit_for_bit():
    given = inputs(SHAPES[1])
    index = torch.arange(3)[:, None].expand_as(given["labels"])
    values = []
    for fields in ({}, {"token_weight": "power", "token_power": 1.0}):
        hidden = given["hidden"].float().requires_grad_()
        config = LossConfig(method="bft", window=3, **fields)
        sums = fused_loss_sums(hidden, given["weight"].float(), given["labels"], index, 3, config)
        sums.loss_sum.backward()
        values.append((sums.loss_sum, hidden.grad))
    assert torch.equal(values[0][0], values[1][0]) and torch.equal(values[0][1], values[1][1])


@pytest.mark.parametrize("width", [1, 19, 20, 21, GROUP_WORDS * 20, GROUP_WORDS * 21, GROUP_WORDS * 21 + 5, 1999])
def test_the_largest_are_found(width):
    z = torch.randn(7, width, generator=torch.Generator().manual_seed(width))
    z[3] = 1.0  # all alike
    torch.testing.assert_close(largest(z, 20).sort(-1).values, z.sort(-1).values[:, -20:])
    top = TopLogits(20)
    for block in z.split(333, 1):
        top.add(block)
    torch.testing.assert_close(top.values.sort(-1).values, z.sort(-1).values[:, -20:])
    z[2, width // 2] = torch.nan
    assert largest(z, 20)[2].isnan().any()  # a loss that is not finite must show


def test_without_the_starting_weights_they_are_refused():
    given = inputs(SHAPES[1])
    index, labels = torch.arange(3)[:, None].expand_as(given["labels"]), given["labels"]
    logits = given["hidden"] @ given["weight"].t()
    for fields, name, name_fused in (
        ({"token_weight": "prior"}, "start_logp", "start_logp"),
        ({"anchor": 0.1}, "start_logits", "start"),
    ):
        config = LossConfig(method="bft", **fields)
        for call, field in (
            (lambda config=config: bft_loss(logits, labels, config), name),
            (lambda config=config: loss_sums(logits, labels, index, 3, config), name),
            (
                lambda config=config: fused_loss_sums(given["hidden"], given["weight"], labels, index, 3, config),
                name_fused,
            ),
        ):
            with pytest.raises(BadInput, match=r"starting weights|with an anchor") as caught:
                call()
            assert caught.value.field == field
        with pytest.raises(BadInput, match="bft-ray train"):
            compute_loss_func(config)
    compute_loss_func(LossConfig(token_weight="prior", token_power=0.0))  # which is 1 for every token
    with pytest.raises(BadInput, match=r"start_logits.*tensor \[3, 17, 23\]"):
        bft_loss(logits, labels, LossConfig(anchor=0.1), start_logits=logits[:, 1:])


def test_a_trainer_takes_the_other_forms():
    logits, labels = torch.randn(2, 5, 30), torch.randint(30, (2, 5))
    for fields in ({"token_weight": "power"}, {"token_weight": "entropy"}, {"token_weight": "threshold"}):
        config = LossConfig(method="dft", **fields)
        ours = compute_loss_func(config)({"logits": logits}, labels, num_items_in_batch=8)
        torch.testing.assert_close(ours, bft_loss(logits, labels, config).loss)
