"""Supervised tokens a second of a training step, beside transformers' Trainer and a bare PyTorch loop.

    python -m jobs.bench.train [--data FILE] [--lora] [--model PATH | --random SHAPE] [--rounds 3] [--steps 8]
    python -m jobs.bench.train --peers bft-ray trl --lora --config FILE [--threads 2]

All peers train the same model on the same global batches with the same number of threads, and take turns; medians
over rounds count. Prints a table and writes OUT.json, with the machine, and OUT.png.

- bft-ray: the DeepSpeed engine and the step, in this process.
- bare: the same micro-batches and the same fused loss in a plain PyTorch loop: what DeepSpeed costs.
- trainer: transformers' Trainer with the official formula as its loss, rows padded to the longest of the batch:
  all logits in fp32, log-softmax for the confidence, a second cross-entropy, a loop over samples.
- trl: TRL's SFTTrainer (`jobs.bench.trl`; the extra `bench`) on the same token ids, its batch on the device as many rows as
  our token budget holds in any case. It trains plain SFT, which costs it least.
- ray: the same through Ray Train and MLflow (`--peers ... ray`); time between the logged steps. Beside `bare`, what all costs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from bft_ray.config import Config, LoraConfig, load_config, make_config
from bft_ray.data.dataset import TokenDataset, prepare
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.host_memory import SHAPE_CACHES
from bft_ray.model.packing import Rows
from bft_ray.train.engine import Engine, join_alone
from bft_ray.train.loop import Data, make_plan, share_of
from bft_ray.train.loss_model import LossModel
from bft_ray.train.ranks import world_size
from bft_ray.train.step import train_step
from jobs.bench.loss import official_loss
from jobs.bench.machine import machine
from jobs.bench.trl import in_order, make_clock, now, run_trl, samples

WARM_UP = 2  # steps of each turn that do not count
#: random weights in the shape of models that people use
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen-0.5b": (
        "Qwen2Config",
        dict(
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
    ),
    "llama-1b": (
        "LlamaConfig",
        dict(
            vocab_size=128_256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=True,
        ),
    ),
    "tiny": (
        "LlamaConfig",
        dict(
            vocab_size=4096,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
    ),
}


Peer = Callable[[Config, Data, torch.device, int], tuple[float, int]]

# ---- peers: (config, data, device, steps) -> (seconds, supervised tokens) of the steps that count ----------------


def ours(config: Config, data: Data, device: torch.device, steps: int) -> tuple[float, int]:
    join_alone()
    engine = Engine(config, device)
    plan, _ = make_plan(config, data.train)
    began, tokens = 0.0, 0
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            began = now(device)
        share = share_of(engine, config, data, plan.batch(step))
        train_step(engine, share, config.loss, step=step, learning_rate=1e-5, seed=0)
        tokens += share.num_tokens if step >= WARM_UP else 0
    seconds = now(device) - began
    engine.close()
    return seconds, tokens


def bare(config: Config, data: Data, device: torch.device, steps: int) -> tuple[float, int]:
    model = LossModel(load_model(config.model, config.lora, config.seed)).to(device).train()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=device.type == "cuda")
    plan, _ = make_plan(config, data.train)
    rank = dist.get_rank() if dist.is_initialized() else 0
    seat: Any = SimpleNamespace(rank=rank, world_size=world_size(), rows=Rows(bool(config.data.packing)), device=device)
    began, tokens = 0.0, 0
    for step in range(steps + WARM_UP):
        if step == WARM_UP:
            began = now(device)
        share = share_of(seat, config, data, plan.batch(step))
        optimizer.zero_grad()
        for micro in share.micro_batches:
            (model(micro.to(device), config.loss).loss_sum / share.num_samples).backward()
        if seat.world_size > 1:
            _add_up([p.grad for p in learning if p.grad is not None])
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        tokens += share.num_tokens if step >= WARM_UP else 0
    return now(device) - began, tokens


def _add_up(gradients: list[Tensor]) -> None:
    """Sum gradients over ranks: one all-reduce of all of them, the least that a plain loop can do."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def trainer(config: Config, data: Data, device: torch.device, steps: int) -> tuple[float, int]:
    from transformers import Trainer, TrainingArguments

    rows = [_row(data.train, int(index)) for index in samples(config, data, range(steps + WARM_UP))]
    clock = make_clock(device, WARM_UP)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        return official_loss(outputs.logits, labels, config.loss.window)

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=config.data.global_batch_size,
            max_steps=steps + WARM_UP,
            learning_rate=1e-5,
            use_cpu=device.type == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        in_order(Trainer)(
            load_model(config.model, config.lora, config.seed),  # type: ignore[arg-type]
            arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=lambda batch: _padded(batch, data.pad_id),
            compute_loss_func=loss,
            callbacks=[clock],
        ).train()
    return clock.seconds, _counted(config, data, steps)


def trl(config: Config, data: Data, device: torch.device, steps: int) -> tuple[float, int]:
    seconds, _ = run_trl(config, data, device, steps + WARM_UP, warm_up=WARM_UP)
    return seconds, _counted(config, data, steps)


def on_ray(config: Config, data: Data, device: torch.device, steps: int) -> tuple[float, int]:
    """Seconds between the steps as MLflow has them: waiting, logging and all."""
    import mlflow

    from bft_ray.train.launch import train

    with tempfile.TemporaryDirectory() as folder:
        tree = config.model_dump()
        tree["name"] = "bench"
        tree["schedule"]["steps"] = steps + WARM_UP
        tree["cluster"] |= {"storage_path": folder, "cpus_per_worker": float(torch.get_num_threads())}
        tree["checkpoint"]["every_steps"] = steps + WARM_UP
        tree["tracking"] |= {"uri": f"sqlite:///{folder}/mlflow.db", "log_model": False}
        result = train(make_config(tree))
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        logged = sorted(client.get_metric_history(result.run_id, "train/loss"), key=lambda metric: metric.step)
    seconds = (logged[-1].timestamp - logged[WARM_UP - 1].timestamp) / 1000
    return seconds, _counted(config, data, steps)


def _counted(config: Config, data: Data, steps: int) -> int:
    """Supervised tokens of the steps that count."""
    return int(data.train.num_supervised[samples(config, data, range(WARM_UP, steps + WARM_UP))].sum())


def _row(dataset: TokenDataset, index: int) -> dict[str, Tensor]:
    return {
        "input_ids": torch.from_numpy(dataset.tokens(index).astype("int64")),
        "labels": torch.from_numpy(dataset.labels(index).astype("int64")),
    }


def _padded(batch: list[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([row["input_ids"] for row in batch], batch_first=True, padding_value=pad_id),
        "labels": pad([row["labels"] for row in batch], batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(row["labels"]) for row in batch], batch_first=True),
    }


# ---- measuring and reporting --------------------------------------------------------------------------------------


PEERS: dict[str, Peer] = {"bft-ray": ours, "bare": bare, "trainer": trainer, "trl": trl, "ray": on_ray}


#: what a peer imports only when it is asked: not counted as its memory
_LIBRARIES = {
    "bft-ray": ("deepspeed", "peft"),
    "bare": ("peft",),
    "trainer": ("peft", "transformers.trainer"),
    "trl": ("datasets", "peft", "trl.trainer.sft_trainer"),
}


def turn(name: str, config: Config, steps: int, threads: int) -> tuple[float, int, int]:
    """One turn of a peer, in a process of its own: seconds, supervised tokens, peak bytes.

    Bytes on the GPU; or on CPU what the process takes above what it had when libraries and data were there.
    """
    if name not in ("bft-ray", "ray"):  # as people run it: what we bound for ourselves is as the libraries have it
        os.environ.update(dict.fromkeys(SHAPE_CACHES, "1024"))
    torch.set_num_threads(threads)
    for library in _LIBRARIES.get(name, ()):
        importlib.import_module(library)
    tokenizer = load_tokenizer(config.model)
    data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
    on_gpu = torch.cuda.is_available()
    before = psutil.Process().memory_info().rss
    seconds, tokens = PEERS[name](config, data, torch.device("cuda" if on_gpu else "cpu"), steps)
    if on_gpu:
        return seconds, tokens, torch.cuda.max_memory_allocated()
    return seconds, tokens, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measure(config: Config, names: Sequence[str], rounds: int, steps: int, threads: int) -> dict[str, dict[str, Any]]:
    """Supervised tokens a second of each peer, by round, and seconds a step; peers take turns."""
    turns: dict[str, list[tuple[float, int, int]]] = {name: [] for name in names}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for number in range(rounds):
            for name in names:
                seconds, tokens, peak = pool.submit(turn, name, config, steps, threads).result()
                turns[name].append((seconds, tokens, peak))
                print(f"round {number + 1}, {name}: {tokens / seconds:,.0f} supervised tokens/s", flush=True)
    return {
        name: {
            "tokens_per_s": statistics.median(tokens / seconds for seconds, tokens, _ in own),
            "step_s": statistics.median(seconds / steps for seconds, _, _ in own),
            "rounds": [tokens / seconds for seconds, tokens, _ in own],
            "peak_memory_bytes": max(peak for _, _, peak in own),
        }
        for name, own in turns.items()
    }


def table(results: dict[str, Any]) -> str:
    peers = results["peers"]
    slowest = peers["trainer"]["tokens_per_s"] if "trainer" in peers else None
    plain = peers["bare"]["step_s"] if "bare" in peers else None
    heads = ("tokens/s", "s/step", "x trainer", "over bare")
    lines = [f"{results['what']}", f"{'':8} {heads[0]:>10} {heads[1]:>8} {heads[2]:>10} {heads[3]:>10} {'peak MB':>8}"]
    for name, row in peers.items():
        against = f"{row['tokens_per_s'] / slowest:10.2f}" if slowest else f"{'':10}"
        over = f"{row['step_s'] / plain - 1:.1%}" if plain else ""
        lines.append(
            f"{name:8} {row['tokens_per_s']:10,.0f} {row['step_s']:8.3f} {against} {over:>10} {row['peak_memory_bytes'] / 1e6:8,.0f}"
        )
    return "\n".join(lines + beside_trl(peers))


def beside_trl(peers: dict[str, dict[str, Any]]) -> list[str]:
    """Our step's speed and memory as multiples of TRL's, where both were measured."""
    if not {"bft-ray", "trl"} <= peers.keys():
        return []
    mine, theirs = peers["bft-ray"], peers["trl"]
    speed = mine["tokens_per_s"] / theirs["tokens_per_s"]
    memory = mine["peak_memory_bytes"] / theirs["peak_memory_bytes"]
    return [f"bft-ray / TRL: {speed:.2f} x the supervised tokens/s, {memory:.2f} x the memory"]


def plot(results: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5), layout="constrained")
    axes = figure.subplots()
    peers = results["peers"]
    axes.barh(list(peers), [row["tokens_per_s"] for row in peers.values()])
    for place, row in enumerate(peers.values()):
        axes.plot(row["rounds"], [place] * len(row["rounds"]), "k|")
    axes.set(title=results["what"], xlabel="supervised tokens/s (bars: medians; ticks: rounds)")
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def random_model(shape: str, folder: Path, tokenizer_of: str) -> Path:
    """A model of random weights with the words of another tokenizer."""
    import transformers

    kind, sizes = SHAPES[shape]
    torch.manual_seed(0)
    described = getattr(transformers, kind)(**sizes, max_position_embeddings=4096)
    transformers.AutoModelForCausalLM.from_config(described, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(make_config({"domain": "bench", "model": {"path": tokenizer_of}} | _NO_DATA).model).save_pretrained(
        folder
    )
    return folder


_NO_DATA: dict[str, Any] = {"data": {"train": [{"path": "none"}]}, "checkpoint": {"export": "last"}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="starter:medical_qa/train", help="file of rows (default: the starter's)")
    parser.add_argument("--model", default="starter", help="folder or hub id")
    parser.add_argument("--random", choices=list(SHAPES), help="random weights of this shape instead of --model")
    parser.add_argument("--lora", action="store_true", help="adapters of rank 16 instead of all weights")
    parser.add_argument(
        "--config", type=Path, help="a run's config, as `bft-ray init` writes it, instead of what follows"
    )
    parser.add_argument("--packing", action="store_true", help="pack rows (for flash attention; default: by length)")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2", "flash_attention_3"])
    parser.add_argument("--batch", type=int, default=16, help="rows of a global batch")
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", nargs="+", default=["bft-ray", "bare", "trainer"], choices=list(PEERS))
    parser.add_argument("--out", type=Path, default=Path("bench_train"), help="path of the results, without suffix")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = str(random_model(args.random, Path(folder), args.model)) if args.random else args.model
        config = (
            _of_file(args.config, args.lora, f"{folder}/cache") if args.config else _of_arguments(args, path, folder)
        )
        what = (
            f"{args.config or args.random or args.model}, {'LoRA' if config.lora else 'full'}, "
            f"{config.data.train[0].path}, batches of {config.data.global_batch_size}"
        )
        results = {
            "what": what,
            "arguments": {name: str(value) for name, value in vars(args).items()},
            "machine": machine(args.threads, ["accelerate", "peft"]),
            "peers": measure(config, args.peers, args.rounds, args.steps, args.threads),
        }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n")
    plot(results, args.out.with_suffix(".png"))
    print(table(results))
    return 0


def _of_arguments(args: argparse.Namespace, path: str, folder: str) -> Config:
    on_gpu = torch.cuda.is_available()
    return make_config(
        {
            "domain": "bench",
            "model": {"path": path, "dtype": "bf16" if on_gpu else "fp32", "attention": args.attention},
            "lora": {"rank": 16} if args.lora else None,
            "data": {
                "train": [{"path": args.data}],
                "max_length": args.max_length,
                "global_batch_size": args.batch,
                "micro_batch_tokens": args.micro_batch_tokens,
                "packing": args.packing,
                "cache_dir": f"{folder}/cache",
            },
            "deepspeed": {"preset": "zero1" if on_gpu else "zero0"},
            "checkpoint": {"export": "last"},
        }
    )


def _of_file(path: Path, lora: bool, cache: str) -> Config:
    """A config as it is, without what a bench has no use for."""
    config = load_config(path)
    changes: dict[str, Any] = {"data": config.data.model_copy(update={"cache_dir": cache})}
    if lora and config.lora is None:
        changes["lora"] = LoraConfig(rank=16)
    return config.model_copy(update=changes)


if __name__ == "__main__":
    raise SystemExit(main())
