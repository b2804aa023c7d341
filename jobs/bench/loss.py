"""What the loss costs, from hidden states to their gradient, beside what people use today.

    python -m jobs.bench.loss [--small] [--forms] [--case NAME ...] [--repeats 5] [--threads N] [--out bench_loss]

Every peer but those forms computes the same loss (BFT, window 256; `cross-entropy` plain SFT, for scale) and the gradient of the
hidden states, those named `trainable` that of the head too. Peers take turns, and medians count. Prints a table
and writes OUT.json, with the machine, and OUT.png.

- official: the operations of the published code: all logits in fp32, log-softmax for the confidence, a second
  cross-entropy, a loop over samples with a convolution.
- cross-entropy: full logits, F.cross_entropy.
- chunked: prompt and padding dropped, chunks of `--chunk-tokens` rows recomputed by checkpoint.
- fused: `bft_ray.loss.fused`; with the same chunk, and `default` with its own.
- fused, power ... fused, anchor: the other token weights, and the anchor, whose starting weights have a head and hidden states of their
  own; beside `fused, default`, which is BFT.
- liger, cut: on GPU and where installed, their losses a token, with BFT's weights.

Bound: the two matmuls (three: the same and half more) over the supervised rows alone, in blocks that suit caches,
timed as one more peer. Memory is the peak above the inputs: on a CPU of a process that ran this peer only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bft_ray.config import LossConfig
from bft_ray.loss.fused import fused_loss_sums
from bft_ray.loss.reference import combine, loss_sums, supervised_positions
from bft_ray.loss.start import Start
from bft_ray.loss.weights import weigh
from jobs.bench.machine import machine

CONFIG = LossConfig(method="bft", window=256)
SFT = LossConfig(method="sft")
MATMULS = "two matmuls"
BFT = "fused, default"
#: the other forms of the loss -> their settings beside BFT's
FORMS: dict[str, dict[str, Any]] = {
    "fused, power": {"token_weight": "power", "token_power": 0.5},
    "fused, threshold": {"token_weight": "threshold"},
    "fused, prior": {"token_weight": "prior", "token_power": 0.5},
    "fused, entropy": {"token_weight": "entropy"},
    "fused, anchor": {"anchor": 0.1},
}


@dataclass(frozen=True)
class Case:
    """Shapes of one measurement; of the `lengths` positions of each sample the last `keep` are supervised."""

    vocabulary: int
    hidden: int
    lengths: tuple[int, ...]
    keep: float
    device: str = "cpu"
    dtype: str = "float32"


CASES = {
    "cpu, skewed": Case(151_936, 896, (300, 800, 1400, 2048), 0.25),
    "cpu, dense": Case(151_936, 896, (256,) * 4, 1.0),
    "gpu": Case(248_320, 2048, (2049,) * 8, 1.0, "cuda", "bfloat16"),
}
SMALL = {
    "cpu, skewed": Case(1999, 32, (20, 45, 70, 90), 0.25),
    "cpu, dense": Case(1999, 32, (40,) * 4, 1.0),
    "gpu": Case(8192, 128, (65,) * 8, 1.0, "cuda", "bfloat16"),
}
#: gradients are compared with float64 here
ERROR_CASE = Case(4096, 128, (60, 120, 250, 400), 0.5)


@dataclass
class Batch:
    """Logits as peaked as a trained model's: the probability of the targets is anywhere in 0..1."""

    case: Case
    chunk_tokens: int
    seed: int = 0
    hidden: Tensor = field(init=False)
    weight: Tensor = field(init=False)
    labels: Tensor = field(init=False)
    sample_index: Tensor = field(init=False)
    start_logp: Tensor = field(init=False)

    def __post_init__(self) -> None:
        case, num_samples, longest = self.case, len(self.case.lengths), max(self.case.lengths)
        device, dtype = torch.device(case.device), getattr(torch, case.dtype)
        generator = torch.Generator(device).manual_seed(self.seed)
        weight = torch.empty(case.vocabulary, case.hidden, device=device, dtype=dtype)
        self.weight = weight.normal_(0, case.hidden**-0.5, generator=generator)
        tokens = torch.randint(case.vocabulary, (num_samples, longest), generator=generator, device=device)
        sure = 25 * torch.rand(num_samples, longest, 1, generator=generator, device=device)
        noise = torch.randn(num_samples, longest, case.hidden, generator=generator, device=device)
        self.hidden = (2 * noise + sure * self.weight[tokens.roll(-1, 1)]).to(dtype)
        length = torch.tensor(case.lengths, device=device)[:, None]
        place = torch.arange(longest, device=device)
        supervised = (place >= (length * (1 - case.keep)).long()) & (place < length)
        self.labels = tokens.masked_fill(~supervised, -100)
        self.labels[:, 0] = -100
        self.sample_index = torch.arange(num_samples, device=device)[:, None].expand_as(tokens)
        self.start_logp = -5 * torch.rand(num_samples, longest, generator=generator, device=device)

    @property
    def samples(self) -> tuple[Tensor, Tensor, int]:
        return self.labels, self.sample_index, len(self.labels)

    @property
    def num_tokens(self) -> int:
        return int((self.labels != -100).sum())


# ---- peers: (batch, hidden, weight) -> loss ---------------------------------------------------------------------


def official_loss(logits: Tensor, labels: Tensor, window: int) -> Tensor:
    """The official formula with its operations: a mean over the samples of a batch."""
    logits = logits[:, :-1].float().contiguous()
    labels = labels[:, 1:].contiguous()
    with torch.no_grad():
        logp = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    nll = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
    token_loss = nll * nll.detach().neg().exp()
    losses = []
    for row, target, own in zip(logp, labels, token_loss.view_as(labels), strict=True):
        values = row[target != -100]
        if len(values) > window:
            kernel = values.new_full((1, 1, window), 1 / window)
            least = F.conv1d(values[None, None], kernel).min()
        else:
            least = values.mean()
        losses.append((1 - least.exp()) * own[target != -100].mean())
    return torch.stack(losses).mean()


def official(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    return official_loss(F.linear(hidden, weight).float(), batch.labels, CONFIG.window)


def cross_entropy(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    logits = F.linear(hidden, weight)[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits.float(), batch.labels[:, 1:].flatten(), ignore_index=-100)


def weighted(batch: Batch, hidden: Tensor, nll_of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """BFT from any function (rows, targets) -> -logp."""
    position, sample, target, *_ = supervised_positions(batch.labels, batch.sample_index)
    nll = nll_of(hidden.flatten(0, 1)[position - 1], target).float()
    row = weigh(-nll.detach(), sample, len(batch.labels), CONFIG).row
    return (row * nll).sum() / len(batch.labels)


def chunked(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    def one(x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), target, reduction="none")

    def nll_of(x: Tensor, target: Tensor) -> Tensor:
        chunks = zip(x.split(batch.chunk_tokens), target.split(batch.chunk_tokens), strict=True)
        return torch.cat([checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks])

    return weighted(batch, hidden, nll_of)


def fused(batch: Batch, hidden: Tensor, weight: Tensor, default: bool = False, config: LossConfig = CONFIG) -> Tensor:
    chunk_tokens = None if default else batch.chunk_tokens
    start = Start(batch.hidden, batch.weight) if config.anchor else None  # itself: the numbers do not change the cost
    sums = fused_loss_sums(
        hidden, weight, *batch.samples, config, chunk_tokens=chunk_tokens, start=start, start_logp=batch.start_logp
    )
    return combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config)


def liger(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")
    return weighted(batch, hidden, lambda x, target: loss(weight, x, target))


def cut(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return weighted(batch, hidden, lambda x, target: linear_cross_entropy(x, weight, target, reduction="none"))


@torch.no_grad()
def two_matmuls(batch: Batch, hidden: Tensor, weight: Tensor) -> Tensor:
    position = supervised_positions(batch.labels, batch.sample_index).position
    x = hidden.flatten(0, 1)[position - 1]
    out, z = torch.zeros_like(x), x.new_empty(2048 * 2048)
    for rows, total in zip(x.split(2048), out.split(2048), strict=True):
        for words in weight.split(2048):
            logits = z[: len(rows) * len(words)].view(len(rows), -1)
            total.addmm_(torch.mm(rows, words.t(), out=logits), words)
    return out


#: name -> (function, whether the head learns)
PEERS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "official": (official, False),
    "cross-entropy": (cross_entropy, False),
    "chunked": (chunked, False),
    "fused": (fused, False),
    BFT: (partial(fused, default=True), False),
    **{
        name: (partial(fused, default=True, config=LossConfig(method="bft", window=256, **fields)), False)
        for name, fields in FORMS.items()
    },
    "chunked, trainable": (chunked, True),
    "fused, trainable": (fused, True),
}
if torch.cuda.is_available() and find_spec("liger_kernel"):
    PEERS["liger"] = (liger, False)
if torch.cuda.is_available() and find_spec("cut_cross_entropy"):
    PEERS["cut"] = (cut, False)


def run_once(peer: str, batch: Batch) -> tuple[float, list[Tensor]]:
    """Seconds of one forward and backward pass, and the gradients."""
    function, head_learns = (two_matmuls, False) if peer == MATMULS else PEERS[peer]
    leaves = [batch.hidden.detach().requires_grad_(), batch.weight.detach().requires_grad_(head_learns)]
    _wait(batch.case.device)
    begin = time.perf_counter()
    loss = function(batch, *leaves)
    if loss.requires_grad:
        loss.backward()
    _wait(batch.case.device)
    return time.perf_counter() - begin, [leaf.grad for leaf in leaves if leaf.grad is not None]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# ---- measurements ------------------------------------------------------------------------------------------------


def times_s(batch: Batch, peers: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Seconds of each peer in each round; they take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {peer: [] for peer in peers}
    for turn in range(repeats + 1):
        for peer in peers:
            second, _ = run_once(peer, batch)
            if turn:
                seconds[peer].append(second)
    return seconds


def peak_bytes(peer: str, case: Case, chunk_tokens: int, threads: int) -> int:
    """Peak memory of one pass above what was there before it, inputs included. On a CPU call it in a new process."""
    if case.device == "cuda":
        batch = Batch(case, chunk_tokens)
        run_once(peer, batch)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(peer, batch)
        return torch.cuda.max_memory_allocated() - before
    torch.set_num_threads(threads)
    run_once(peer, Batch(Case(64, 16, (8, 8), 0.5), 4))  # libraries and threads are there before
    batch = Batch(case, chunk_tokens)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins again here
    before = _status_bytes("VmRSS")
    run_once(peer, batch)
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def memory_bytes(case: Case, peers: Sequence[str], chunk_tokens: int, threads: int) -> dict[str, int]:
    if case.device == "cuda":
        return {peer: peak_bytes(peer, case, chunk_tokens, threads) for peer in peers}
    context = multiprocessing.get_context("forkserver")  # imports torch once, then forks: nothing else ran there
    context.set_forkserver_preload(["bft_ray.loss.fused"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return {peer: pool.submit(peak_bytes, peer, case, chunk_tokens, threads).result() for peer in peers}


def gradient_errors(dtype: str, chunk_tokens: int) -> dict[str, float]:
    """max |difference| / max |reference| of the gradients, against the reference in float64 on the same inputs.

    `full logits` is the reference itself in this dtype.
    """
    batch = Batch(Case(**(asdict(ERROR_CASE) | {"dtype": dtype})), chunk_tokens)

    def reference(hidden: Tensor, weight: Tensor) -> list[Tensor]:
        leaves = [hidden.detach().requires_grad_(), weight.detach().requires_grad_()]
        sums = loss_sums(F.linear(*leaves), *batch.samples, CONFIG)
        combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, CONFIG).backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    exact = reference(batch.hidden.double(), batch.weight.double())
    ours = {"full logits": reference(batch.hidden, batch.weight)}
    ours |= {peer: run_once(peer, batch)[1] for peer in PEERS if peer not in ("cross-entropy", *FORMS)}
    return {
        peer: max(
            float((got.double() - want).abs().max() / want.abs().max())
            for got, want in zip(gradients, exact, strict=False)
        )
        for peer, gradients in ours.items()
    }


def measure(case: Case, chunk_tokens: int, repeats: int, threads: int, peers: Sequence[str]) -> dict[str, Any]:
    batch = Batch(case, chunk_tokens)
    rounds = times_s(batch, [*peers, MATMULS], repeats)
    seconds = {peer: statistics.median(values) for peer, values in rounds.items()}
    bound = seconds[MATMULS]
    num_tokens = batch.num_tokens
    del batch
    memory = memory_bytes(case, peers, chunk_tokens, threads)
    return {
        "case": asdict(case),
        "num_tokens": num_tokens,
        "chunk_tokens": chunk_tokens,
        "bound_s": bound,
        "over_bft": {  # medians of the ratios within a round
            form: {
                "time": statistics.median(a / b for a, b in zip(rounds[form], rounds[BFT], strict=True)),
                "memory": memory[form] / max(memory[BFT], 1),
            }
            for form in FORMS
            if form in peers
        },
        "bound_flops_per_s": 4 * num_tokens * case.hidden * case.vocabulary / bound,
        "peers": {
            peer: {
                "time_s": seconds[peer],
                "share_of_bound": bound * (1.5 if PEERS[peer][1] else 1) / seconds[peer],
                "memory_bytes": memory[peer],
            }
            for peer in peers
        },
    }


# ---- report ------------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    lines = []
    for name, result in results["cases"].items():
        case, peers = result["case"], result["peers"]
        shapes = f"{result['num_tokens']:,} tokens, head {case['vocabulary']:,} x {case['hidden']:,}, {case['dtype']}"
        speed = f"two matmuls {result['bound_s']:.4g} s, {result['bound_flops_per_s'] / 1e9:,.0f} GFLOP/s"
        lines += [
            f"{name}: {shapes}; {speed}",
            f"  {'':20} {'time, s':>10} {'/ fused':>8} {'of bound':>9} {'memory, MB':>11} {'/ fused':>8}",
        ]
        for peer, row in peers.items():
            peer_row = peers.get("fused, trainable" if PEERS[peer][1] else "fused", peers[BFT])
            lines.append(
                f"  {peer:20} {row['time_s']:10.4g} {row['time_s'] / peer_row['time_s']:8.2f} {row['share_of_bound']:9.1%}"
                f" {row['memory_bytes'] / 1e6:11,.1f} {row['memory_bytes'] / max(peer_row['memory_bytes'], 1):8.2f}"
            )
        over = ", ".join(f"{form} {row['time']:.3f} ({row['memory']:.2f})" for form, row in result["over_bft"].items())
        lines.append(f"  time (memory) by that of bft, round by round: {over}")
    for dtype, errors in results["gradient_error"].items():
        lines.append(f"gradient error, {dtype}: " + ", ".join(f"{peer} {value:.1e}" for peer, value in errors.items()))
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3 * len(results["cases"])), layout="constrained")
    axes = figure.subplots(len(results["cases"]), 2, squeeze=False)
    for (name, result), (left, right) in zip(results["cases"].items(), axes, strict=True):
        peers = result["peers"]
        left.barh(list(peers), [row["time_s"] for row in peers.values()])
        left.axvline(result["bound_s"], color="black", linestyle=":")
        left.set(title=f"{name}: time, s (dotted: two matmuls)", xscale="log")
        right.barh(list(peers), [row["memory_bytes"] / 1e6 for row in peers.values()])
        right.set(title="peak memory above the inputs, MB", xscale="log", yticks=[])
        left.invert_yaxis()
        right.invert_yaxis()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--forms", action="store_true", help="only BFT and the other forms of the loss")
    parser.add_argument("--case", action="append", choices=list(CASES), help="default: all that this machine can run")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--chunk-tokens", type=int, help="rows of logits in a chunk (default: 256; small: 16)")
    parser.add_argument("--out", type=Path, default=Path("bench_loss"), help="path of the results, without suffix")
    args = parser.parse_args(argv)
    cases = SMALL if args.small else CASES
    names = args.case or [name for name in cases if cases[name].device == "cpu" or torch.cuda.is_available()]
    chunk_tokens = args.chunk_tokens or (16 if args.small else 256)
    peers = [BFT, *FORMS] if args.forms else list(PEERS)
    torch.set_num_threads(args.threads)
    results = {
        "machine": machine(args.threads, ["liger-kernel", "cut-cross-entropy", "triton"]),
        "config": CONFIG.model_dump(),
        "cases": {name: measure(cases[name], chunk_tokens, args.repeats, args.threads, peers) for name in names},
        "gradient_error": {dtype: gradient_errors(dtype, 64) for dtype in ("float32", "bfloat16")},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, args.out.with_suffix(".png"))
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
