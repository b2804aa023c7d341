"""TRL's SFTTrainer beside our step: the same model, adapters, token ids, order of samples, optimizer and rate.

    python -m jobs.bench.trl [--model PATH] [--data FILE] [--steps 6] [--lora]

compares the losses of some steps (fp32, CPU), of `sft` and of `dft`; the speed is measured by `jobs.bench.train --peers
bft-ray trl`. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bft_ray.config import Config, make_config
from bft_ray.data.dataset import prepare
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.train.engine import Engine, join_alone
from bft_ray.train.loop import Data, make_plan, share_of
from bft_ray.train.step import train_step

RATE = 1e-3
LOSSES = {"sft": "nll", "dft": "dft"}  # our method -> TRL's loss_type
LIMIT = 1e-5  # relative


def rows_a_pass(config: Config) -> int:
    """Samples that our token budget holds in any case, and that divide the batch: TRL's batch on the device."""
    size = config.data.global_batch_size
    fitting = max(1, config.data.micro_batch_tokens // config.data.max_length)
    return max(rows for rows in range(1, size + 1) if size % rows == 0 and rows <= fitting)


def samples(config: Config, data: Data, steps: range) -> np.ndarray:
    """The samples of these steps, in their order."""
    plan, _ = make_plan(config, data.train)
    return np.concatenate([plan.batch(step) for step in steps])


def in_order(trainer: type) -> Any:
    """A kind of Trainer that takes the rows in their order."""
    from torch.utils.data import SequentialSampler

    class InOrder(trainer):  # type: ignore[valid-type, misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    return InOrder


def make_clock(device: torch.device, warm_up: int) -> Any:
    """A callback of a Trainer: `seconds` of the steps after the `warm_up`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began = seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == warm_up:
                self.began = now(device)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = now(device) - self.began

    return Clock()


def run_trl(
    config: Config, data: Data, device: torch.device, steps: int, *, loss_type: str = "nll", warm_up: int = 0
) -> tuple[float, list[float]]:
    """Seconds of the steps after the `warm_up`, and the loss of each step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    size, chosen = config.data.global_batch_size, samples(config, data, range(steps))
    rows = Dataset.from_dict(
        {
            "input_ids": [data.train.tokens(int(index)).tolist() for index in chosen],
            "labels": [data.train.labels(int(index)).tolist() for index in chosen],
        }
    )
    parts: list[torch.Tensor] = []

    class KeepsLosses(in_order(SFTTrainer)):  # type: ignore[misc]
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(*arguments, **named)
            parts.append(loss[0] if isinstance(loss, tuple) else loss)
            return loss

    clock, on_device = make_clock(device, warm_up), rows_a_pass(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder,
            per_device_train_batch_size=on_device,
            gradient_accumulation_steps=size // on_device,
            max_steps=steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            warmup_steps=0,
            adam_beta1=config.optimizer.betas[0],
            adam_beta2=config.optimizer.betas[1],
            adam_epsilon=config.optimizer.eps,
            weight_decay=0.0,
            max_grad_norm=1.0,
            bf16=config.model.dtype == "bf16",
            gradient_checkpointing=config.model.gradient_checkpointing,
            loss_type=loss_type,
            max_length=None,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            use_cpu=device.type == "cpu",
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        KeepsLosses(
            model=load_model(config.model, config.lora, config.seed),  # type: ignore[arg-type]
            args=arguments,
            train_dataset=rows,
            processing_class=load_tokenizer(config.model),
            callbacks=[clock],
        ).train()
    values = [float(part.detach()) for part in parts]
    each = size // on_device  # every part is divided by the tokens of the whole batch already
    return clock.seconds, [math.fsum(values[step * each : (step + 1) * each]) for step in range(steps)]


def run_ours(config: Config, data: Data, device: torch.device, steps: int) -> list[float]:
    """The loss of each step."""
    join_alone()
    engine, plan = Engine(config, device), make_plan(config, data.train)[0]
    try:
        return [
            train_step(
                engine,
                share_of(engine, config, data, plan.batch(step)),
                config.loss,
                step=step,
                learning_rate=RATE,
                seed=config.seed,
            )["train/loss"]
            for step in range(steps)
        ]
    finally:
        engine.close()


def now(device: torch.device) -> float:
    """Seconds, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(
    model: str, source: str, cache: str, *, steps: int = 6, lora: bool = True, limit: int | None = None
) -> dict:
    """Method -> (our losses, TRL's losses, largest relative difference)."""
    found = {}
    for method, loss_type in LOSSES.items():
        config = make_config(
            {
                "domain": "bench",
                "model": {"path": model, "dtype": "fp32"},
                "lora": {"rank": 4} if lora else None,
                "loss": {"method": method},
                "data": {
                    "train": [{"path": source, "limit": limit}],
                    "max_length": 256,
                    "micro_batch_tokens": 1024,
                    "global_batch_size": 8,
                    "cache_dir": cache,
                },
                "optimizer": {"betas": [0.9, 0.999]},
                "deepspeed": {"preset": "zero0"},
                "checkpoint": {"export": "last"},
            }
        )
        tokenizer = load_tokenizer(config.model)
        data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
        device = torch.device("cpu")
        mine = run_ours(config, data, device, steps)
        theirs = run_trl(config, data, device, steps, loss_type=loss_type)[1]
        found[method] = (mine, theirs, max(abs(a - b) / abs(b) for a, b in zip(mine, theirs, strict=True)))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="folder, hub id or name")
    parser.add_argument("--data", default="starter:medical_qa/train", help="file of rows")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lora", action="store_true", help="adapters instead of all weights")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as cache:
        found = compare(args.model, args.data, cache, steps=args.steps, lora=args.lora)
    for method, (mine, theirs, difference) in found.items():
        for step, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            print(f"{method} step {step}: {a:.7f}, TRL {b:.7f}")
        print(f"{method}: largest relative difference {difference:.1e}")
    return int(max(difference for *_, difference in found.values()) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
