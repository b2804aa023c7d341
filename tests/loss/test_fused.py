"""The fused loss against the reference: values, gradients, layouts, heads, degenerate input, and what it allocates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from bft_ray.config import METHODS
from bft_ray.errors import BadInput
from bft_ray.loss import LossConfig, loss_sums
from bft_ray.loss.fused import fused_loss_sums, fused_row_sums
from bft_ray.loss.reference import LossSums, Supervised
from bft_ray.loss.start import Start
from tests.support.losses import CONFIGS

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}
NAMES = ["hidden", "weight", "bias"]


def make_batch(seed: int, rows: int, positions: int, packed: bool, keep: float) -> dict[str, Any]:
    """Labels and samples of a padded batch, or of a packed one whose samples lie anywhere in a row."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(VOCABULARY, (rows, positions), generator=generator)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=generator) > keep, -100)
    if not packed:
        index = torch.arange(rows)[:, None].expand(rows, positions)
        return {"labels": labels, "sample_index": index, "num_samples": rows}
    begins = torch.rand(labels.shape, generator=generator) < 0.2
    begins[:, 0] = True
    index = begins.flatten().cumsum(0).view_as(labels) - 1
    shuffled = torch.randperm(int(index.max()) + 1, generator=generator)  # ids in no order of place
    return {
        "labels": labels.masked_fill(begins, -100),
        "sample_index": shuffled[index],
        "num_samples": len(shuffled) + 1,  # and one that is not there
    }


VOCABULARY, HIDDEN = 23, 7


def make_head(seed: int, rows: int, positions: int, dtype: torch.dtype, padded: int = 0) -> dict[str, torch.Tensor]:
    """Hidden states, head and bias such that some tokens are sure and some are not."""
    generator = torch.Generator().manual_seed(seed + 1)
    sizes = {
        "hidden": (rows, positions, HIDDEN),
        "weight": (VOCABULARY + padded, HIDDEN),
        "bias": (VOCABULARY + padded,),
    }
    return {name: torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for name, size in sizes.items()}


def logits_of(hidden, weight, bias, logit_scale=1.0, softcap=None, num_words=None) -> torch.Tensor:
    z = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    if num_words is not None:
        z = z.masked_fill(torch.arange(z.shape[-1]) >= num_words, -torch.inf)
    return z


@torch.no_grad()
def start_of_head(hidden, weight, bias) -> Start:
    """Another model of the same words, with one feature more: a LoRA adapter on a head makes such a difference."""
    more = hidden.new_ones(*hidden.shape[:-1], 1)
    other = torch.cat([0.6 * weight + 0.3 * weight.roll(1, 0), 0.2 * weight[:, :1]], 1)
    return Start(torch.cat([0.8 * hidden + 0.2 * hidden.roll(1, -1), more], -1), other, bias)


def logp_of(logits, labels) -> torch.Tensor:
    """[B, T] log-probability of each label, at its place."""
    targets = labels.clamp(min=0)[:, 1:, None]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    logp = logits[:, :-1].to(dtype).log_softmax(-1).gather(2, targets).squeeze(2)
    return F.pad(logp, (1, 0), value=torch.nan)


def run(fused: bool, tensors, batch, config, learn=tuple(NAMES), chunk_tokens=None, use_bias=True, **head):
    """LossSums and the gradients of 3 x loss_sum, by either path."""
    leaves = {name: tensor.detach().clone().requires_grad_(name in learn) for name, tensor in tensors.items()}
    hidden, weight, bias = leaves["hidden"], leaves["weight"], leaves["bias"] if use_bias else None
    args = batch["labels"], batch["sample_index"], batch["num_samples"], config
    start = start_logits = logp = None
    if config.anchor or config.reads_prior:
        start = start_of_head(hidden, weight, bias)
        start_logits = logits_of(*start, **head)
        logp = logp_of(start_logits, batch["labels"])
    if fused:
        sums = fused_loss_sums(
            hidden, weight, *args, bias=bias, chunk_tokens=chunk_tokens, start=start, start_logp=logp, **head
        )
    else:
        sums = loss_sums(logits_of(hidden, weight, bias, **head), *args, start_logits=start_logits)
    if sums.loss_sum.requires_grad:
        (3 * sums.loss_sum).backward()
    return sums, {name: leaf.grad for name, leaf in leaves.items()}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """max |difference| / max |reference|, with NaN in the same places."""
    assert ours.shape == theirs.shape
    assert torch.equal(ours.isnan(), theirs.isnan())
    difference = (ours.detach().double() - theirs.detach().double()).nan_to_num().abs()
    if not difference.numel() or not difference.max():
        return 0.0
    return float(difference.max() / theirs.detach().double().nan_to_num().abs().max().clamp(min=1e-300))


def num_ties(logits: torch.Tensor, margin: float) -> int:
    """Tokens whose two largest logits differ by rounding alone, as where a softcap saturates: either may be the argmax."""
    first, second = logits.topk(2, -1).values.unbind(-1)
    return int((first - second <= margin).sum())


def assert_same(ours, theirs, tolerance: float, ties: int = 0) -> None:
    (sums, gradients), (expected, expected_gradients) = ours, theirs
    for name in LossSums._fields:
        got, want = getattr(sums, name), getattr(expected, name)
        if want.is_floating_point():
            assert error(got, want) <= tolerance, name
        elif name == "num_correct":
            assert abs(int(got) - int(want)) <= ties, name
        else:
            assert torch.equal(got, want), name
    for name, want in expected_gradients.items():
        if want is None:
            assert gradients[name] is None, name
        else:
            assert gradients[name].dtype == want.dtype
            assert error(gradients[name], want) <= tolerance, f"gradient of {name}"


LEARN = {"frozen": ("hidden",), "trainable": NAMES, "head alone": ("weight",), "bias alone": ("hidden", "bias")}


@example(3382, 4, 11, False, 1.0, "anchor", 1, "bias alone", None, torch.float32, 0, {"softcap": 1.0}, True)  # a tie
@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 4),
    positions=st.integers(1, 19),
    packed=st.booleans(),
    keep=st.sampled_from([0.0, 0.3, 1.0]),
    name=st.sampled_from(sorted(CONFIGS)),
    window=st.sampled_from([1, 3, 256]),
    learn=st.sampled_from(sorted(LEARN)),
    chunk_tokens=st.sampled_from([None, 1, 2, 5, 1000]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    padded=st.sampled_from([0, 9]),
    head=st.sampled_from([{}, {"logit_scale": 0.3}, {"logit_scale": 2.0, "softcap": 3.0}, {"softcap": 1.0}]),
    use_bias=st.booleans(),
)
def test_equals_the_reference(
    seed, rows, positions, packed, keep, name, window, learn, chunk_tokens, dtype, padded, head, use_bias
):
    config = LossConfig(**CONFIGS[name], window=window)
    batch = make_batch(seed, rows, positions, packed, keep)
    tensors = make_head(seed, rows, positions, dtype, padded)
    options = dict(head, num_words=VOCABULARY if padded else None, use_bias=use_bias, learn=LEARN[learn])
    ours = run(True, tensors, batch, config, chunk_tokens=chunk_tokens, **options)
    theirs = run(False, tensors, batch, config, **options)
    exact = {leaf: tensor.double() for leaf, tensor in tensors.items()}
    logits = logits_of(exact["hidden"], exact["weight"], exact["bias"] if use_bias else None, **head)
    assert_same(ours, theirs, TOLERANCE[dtype], num_ties(logits, TOLERANCE[dtype]))


@pytest.mark.parametrize("learn", LEARN)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_samples_longer_than_the_chunk(method, learn):
    """And shorter ones, one of one token, one of none."""
    labels = torch.randint(VOCABULARY, (4, 40), generator=torch.Generator().manual_seed(3))
    labels[1, 6:] = -100
    labels[2, 2:] = -100
    labels[3] = -100
    index = torch.arange(4)[:, None].expand(4, 40)
    batch = {"labels": labels, "sample_index": index, "num_samples": 4}
    tensors, config = make_head(0, 4, 40, torch.float64), LossConfig(method=method, window=4)
    theirs = run(False, tensors, batch, config, learn=LEARN[learn])
    assert theirs[0].num_supervised.tolist() == [39, 5, 1, 0]
    for chunk_tokens in [1, 7, 39, 45]:
        assert_same(run(True, tensors, batch, config, learn=LEARN[learn], chunk_tokens=chunk_tokens), theirs, 1e-10)


@pytest.mark.parametrize("learn", ["frozen", "trainable"])
@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_is_as_good_as_full_logits_in_bf16(name, learn):
    """Against the float64 reference on the same rounded inputs; the confidences of a few tokens amplify most."""
    batch = make_batch(5, 4, 60, packed=False, keep=0.8)
    tensors, config = make_head(5, 4, 60, torch.bfloat16), LossConfig(**CONFIGS[name], window=8)
    exact, exact_gradients = run(False, {k: v.double() for k, v in tensors.items()}, batch, config, learn=LEARN[learn])
    _, plain_gradients = run(False, tensors, batch, config, learn=LEARN[learn])
    ours, gradients = run(True, tensors, batch, config, learn=LEARN[learn], chunk_tokens=50)
    assert error(ours.loss_sum, exact.loss_sum) <= 1e-2
    assert error(ours.confidence, exact.confidence) <= 1e-2
    for leaf in LEARN[learn]:
        assert gradients[leaf].dtype == torch.bfloat16
        limit = max(1e-2, error(plain_gradients[leaf], exact_gradients[leaf]))
        assert error(gradients[leaf], exact_gradients[leaf]) <= limit, leaf


def test_sure_tokens_have_an_exact_gradient():
    """In fp32, at 1 - p = 1e-9, `softmax - onehot` has no digit left."""
    hidden, weight = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[20.7], [0.0], [0.0]])
    batch = {"labels": torch.tensor([[-100, 0]]), "sample_index": torch.zeros(1, 2).long(), "num_samples": 1}
    tensors = {"hidden": hidden, "weight": weight, "bias": torch.zeros(3)}
    config = LossConfig(method="sft")
    _, exact = run(False, {k: v.double() for k, v in tensors.items()}, batch, config)
    for learn in (["hidden"], NAMES):
        for chunk_tokens in (None, 1):
            _, ours = run(True, tensors, batch, config, learn=learn, chunk_tokens=chunk_tokens)
            for name in learn:
                assert error(ours[name], exact[name]) < 1e-5


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_very_large_logits_stay_finite(scale):
    batch, tensors = make_batch(1, 2, 12, False, 1.0), make_head(1, 2, 12, torch.float32)
    tensors["hidden"] *= scale
    config = LossConfig(method="sft")
    for learn in ("frozen", "trainable"):
        ours = run(True, tensors, batch, config, learn=LEARN[learn], chunk_tokens=2)
        assert_same(ours, run(False, tensors, batch, config, learn=LEARN[learn]), 1e-5)


def test_non_finite_hidden_states_are_seen():
    batch, tensors = make_batch(1, 2, 12, False, 1.0), make_head(1, 2, 12, torch.float32)
    for value in (torch.nan, torch.inf):
        tensors["hidden"][1, 3] = value
        for learn in ("frozen", "trainable"):
            assert not run(True, tensors, batch, LossConfig(), learn=LEARN[learn])[0].loss_sum.isfinite()


@pytest.mark.parametrize("learn", ["frozen", "trainable"])
@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_supervised_is_zero_with_a_graph(name, learn):
    batch, tensors = make_batch(0, 2, 5, False, 0.0), make_head(0, 2, 5, torch.float32)
    sums, gradients = run(True, tensors, batch, LossConfig(**CONFIGS[name]), learn=LEARN[learn])
    assert sums.loss_sum.item() == 0 and sums.num_tokens.item() == 0 and sums.loss_sum.requires_grad
    for leaf in LEARN[learn]:
        assert gradients[leaf].shape == tensors[leaf].shape and not gradients[leaf].any()


@pytest.mark.parametrize("learn", ["frozen", "trainable"])
def test_gradcheck_with_constant_weights(learn):
    batch, tensors = make_batch(2, 2, 6, False, 0.7), make_head(2, 2, 6, torch.float64)
    config = LossConfig(token_weight="none", sample_weight="none", aggregate="sample")
    leaves = [tensors[name].requires_grad_(name in LEARN[learn]) for name in NAMES]

    def loss(hidden, weight, bias):
        args = batch["labels"], batch["sample_index"], batch["num_samples"], config
        options: dict[str, Any] = {"bias": bias, "chunk_tokens": 2, "logit_scale": 1.5, "softcap": 4.0}
        return fused_loss_sums(hidden, weight, *args, **options).loss_sum

    assert torch.autograd.gradcheck(loss, leaves, fast_mode=True)


def test_a_kept_graph_gives_the_same_gradient_again():
    batch, tensors = make_batch(2, 2, 9, False, 0.7), make_head(2, 2, 9, torch.float32)
    leaves = [tensors[name].requires_grad_() for name in NAMES]
    args = batch["labels"], batch["sample_index"], batch["num_samples"], LossConfig()
    loss = fused_loss_sums(leaves[0], leaves[1], *args, bias=leaves[2]).loss_sum
    first = [gradient.clone() for gradient in torch.autograd.grad(loss, leaves, retain_graph=True)]
    second = torch.autograd.grad(2 * loss, leaves)
    for once, twice in zip(first, second, strict=True):
        torch.testing.assert_close(twice, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


def test_there_is_no_second_derivative():
    batch, tensors = make_batch(2, 2, 9, False, 0.7), make_head(2, 2, 9, torch.float32)
    hidden = tensors["hidden"].requires_grad_()
    args = batch["labels"], batch["sample_index"], batch["num_samples"], LossConfig()
    loss = fused_loss_sums(hidden, tensors["weight"], *args).loss_sum
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_inside_checkpoint_and_autocast_with_strided_inputs(reentrant, autocast):
    batch, tensors = make_batch(4, 3, 11, True, 0.8), make_head(4, 3, 11, torch.float32)
    args = batch["labels"], batch["sample_index"], batch["num_samples"], LossConfig(window=3)

    def plain(leaf, weight):
        return loss_sums(logits_of(leaf.transpose(0, 1), weight.t(), None), *args).loss_sum

    def fused(leaf, weight):
        return fused_loss_sums(leaf.transpose(0, 1), weight.t(), *args).loss_sum

    def results(function, autocast: bool):
        leaf = tensors["hidden"].transpose(0, 1).contiguous().requires_grad_()
        weight = tensors["weight"].t().contiguous().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = checkpoint(function, leaf, weight, use_reentrant=reentrant)
        value.backward()
        return value, leaf.grad, weight.grad

    exact, reference, ours = results(plain, False), results(plain, autocast), results(fused, autocast)
    for got, other, want in zip(ours, reference, exact, strict=True):
        assert got.dtype == torch.float32
        assert error(got, want) <= (max(1e-2, 1.2 * error(other, want)) if autocast else 1e-5)


def test_two_matmuls_one_without_gradient_three_with_a_trainable_head():
    batch, tensors = make_batch(4, 3, 11, False, 1.0), make_head(4, 3, 11, torch.float32)

    def matmuls(learn, chunk_tokens=100) -> int:
        with Watch() as watch:
            run(True, tensors, batch, LossConfig(), learn=learn, use_bias=False, chunk_tokens=chunk_tokens)
        return watch.multiplied // (30 * VOCABULARY * HIDDEN)

    assert matmuls(()) == 1
    assert matmuls(["hidden"]) == matmuls(["hidden"], 3) == 2
    assert matmuls(["weight"]) == 2
    assert matmuls(["hidden", "weight"]) == matmuls(["hidden", "weight"], 10) == 3  # each sample has 10 rows
    with Watch() as watch:  # 4 + 4 + 2 rows a sample: 8 of 10 are made again
        run(True, tensors, batch, LossConfig(), learn=["hidden", "weight"], use_bias=False, chunk_tokens=4)
    assert watch.multiplied == (3 * 30 + 3 * 8) * VOCABULARY * HIDDEN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learn", ["frozen", "trainable"])
def test_logits_are_never_held_together(learn, dtype):
    batch, tensors = make_batch(4, 4, 30, False, 1.0), make_head(4, 4, 30, dtype)
    with Watch() as watch:
        run(True, tensors, batch, LossConfig(), learn=LEARN[learn], chunk_tokens=29, softcap=5.0)
    num_rows = 4 * 29
    assert watch.largest <= max(29 * VOCABULARY, num_rows * HIDDEN + 4 * HIDDEN) < num_rows * VOCABULARY
    with Watch() as watch:
        run(False, tensors, batch, LossConfig(), learn=LEARN[learn])
    assert watch.largest >= num_rows * VOCABULARY  # the watch does see them


class Watch(TorchDispatchMode):
    """The largest tensor any operation gives, and the multiplications of all matmuls."""

    def __init__(self):
        super().__init__()
        self.largest = self.multiplied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // leaf.itemsize for leaf in tree_leaves(result) if is_tensor(leaf)]
        self.largest = max([self.largest, *sizes])
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            a, b = [arg for arg in args if is_tensor(arg)][-2:]
            self.multiplied += a.numel() * b.shape[1]
        return result


def is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


@pytest.mark.parametrize("learn", sorted(LEARN))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_nothing_waits_for_the_device(name, learn):
    """Fake tensors hold no values: whatever the host asked of them (`item`, `nonzero`, a mask) would raise here."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    lengths = [5, 0, 9, 1]
    with FakeTensorMode():
        hidden = torch.empty(40, 8, requires_grad="hidden" in LEARN[learn])
        weight = torch.empty(50, 8, requires_grad="weight" in LEARN[learn])
        bias = torch.empty(50, requires_grad="bias" in LEARN[learn])
        tokens = [torch.empty(sum(lengths), dtype=torch.long) for _ in range(3)]
        config = LossConfig(**CONFIGS[name], window=4)
        start = Start(torch.empty(40, 9), torch.empty(50, 9))
        supervised = Supervised(*tokens, lengths, torch.empty(sum(lengths)))
        sums = fused_row_sums(hidden, weight, supervised, len(lengths), config, bias=bias, chunk_tokens=6, start=start)
        sums.loss_sum.backward()
        assert (hidden if "hidden" in LEARN[learn] else weight).grad.shape


@pytest.mark.parametrize(("label", "num_words"), [(9, None), (-1, None), (7, 7)])
def test_a_label_that_is_no_word_is_refused(label, num_words):
    """It gave NaN, or the probability of a padded row of the head."""
    hidden, head, labels = torch.randn(1, 3, 4), torch.randn(9, 4), torch.tensor([[0, 1, label]])
    config = LossConfig(method="bft", window=2)
    with pytest.raises(
        BadInput,
        match=rf"`labels` is {label}, but must be -100 or a token of the vocabulary, 0\.\.{(num_words or 9) - 1}\.",
    ):
        fused_loss_sums(hidden, head, labels, torch.zeros(1, 3, dtype=torch.long), 1, config, num_words=num_words)
