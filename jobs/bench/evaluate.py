"""How many multiple-choice items a second are measured, beside a plain loop over options.

    python -m jobs.bench.evaluate [--path FILE ...] [--model starter] [--limit 100] [--repeats 5] [--threads N]
                                  [--batch-tokens 8192] [--max-length 1024] [--device cpu] [--out bench_evaluate]

- loop: what one writes first: for each item, for each option one forward pass of transformers' model over prompt and
  option, all logits, log-softmax, a gather.
- apart: `bft_ray.evaluate.engine.score` with one row an option, in batches of like length.
- shared: the same with the prompt of an item computed once: what `bft-ray evaluate` runs.

Tokens are made beforehand for all three. They take turns; medians count; the answers are compared item by item. Prints a
table and writes OUT.json, with the machine and versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.tasks import ChoiceTask
from bft_ray.evaluate.engine.request import Score, Scores
from bft_ray.evaluate.engine.score import run_score
from bft_ray.evaluate.tasks.choice import encode_items, make_records, read_items
from bft_ray.model.causal_lm import load_model, load_tokenizer
from jobs.bench.machine import machine

STARTER = [
    f"starter:{domain}/choices_validation" for domain in ("gene_interaction", "biological_process", "medical_qa")
]


def loop(model: Any, request: Score, device: str) -> Scores:
    """One option at a time."""
    nll, num_tokens = [], []
    with torch.no_grad():
        for prompt, options in zip(request.prompts, request.continuations, strict=True):
            for option in options:
                ids = torch.tensor([*prompt.tolist(), *option.tolist()], device=device)[None]
                logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
                nll.append(-float(logp.gather(1, ids[0, len(prompt) :, None]).sum()))
                num_tokens.append(len(option))
    return Scores(np.array(nll), np.array(num_tokens), np.zeros(len(nll), dtype=np.int64))


def measure(model: Any, tokenizer: Any, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Items a second of each way, on one set."""
    items = read_items(ChoiceTask(path=path, limit=args.limit))
    data = DataConfig(train=[SourceConfig(path="-")], max_length=args.max_length, micro_batch_tokens=args.max_length)
    request = encode_items(items, tokenizer, data)[0]
    pad_id = tokenizer.pad_token_id or 0

    def score(share: bool) -> Scores:
        return run_score(model, request, args.batch_tokens, args.device, pad_id, share=share)

    ways: dict[str, Callable[[], Scores]] = {
        "loop": lambda: loop(model, request, args.device),
        "apart": lambda: score(False),
        "shared": lambda: score(True),
    }
    predicted = {
        name: [r["predicted"] for r in make_records(items, way())] for name, way in ways.items()
    }  # and warm up
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    speed = {name: len(items) / statistics.median(own) for name, own in times.items()}
    sizes = [
        (len(p), sum(map(len, own)), len(own)) for p, own in zip(request.prompts, request.continuations, strict=True)
    ]
    return {
        "num_items": len(items),
        "mean_prompt_tokens": statistics.mean(prompt for prompt, _, _ in sizes),
        "mean_option_tokens": sum(options for _, options, _ in sizes) / sum(number for _, _, number in sizes),
        "times_s": times,
        "items_per_s": speed,
        "times_the_loop": {name: value / speed["loop"] for name, value in speed.items()},
        "same_answer": {
            name: float(np.mean([a == b for a, b in zip(own, predicted["loop"], strict=True)]))
            for name, own in predicted.items()
        },
    }


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = []
    for path, result in results["sets"].items():
        shape = f"{result['mean_prompt_tokens']:.0f} tokens a prompt, {result['mean_option_tokens']:.1f} an option"
        lines += [
            f"{path}: {result['num_items']} items, {shape}",
            f"  {'':8} {'items/s':>9} {'x loop':>7} {'same answer':>12}",
        ]
        for name, speed in result["items_per_s"].items():
            times, same = result["times_the_loop"][name], result["same_answer"][name]
            lines.append(f"  {name:8} {speed:9.1f} {times:7.2f} {same:12.1%}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", action="append", help="multiple-choice file (default: those of the starter data)")
    parser.add_argument("--model", default="starter", help="folder or hub id")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit", type=int, default=100, help="items of each set")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("bench_evaluate"), help="path of the results, without suffix")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    config = ModelConfig(path=args.model, dtype=args.dtype)
    model, tokenizer = load_model(config).to(args.device).eval(), load_tokenizer(config)
    results = {
        "machine": machine(args.threads),
        "model": {"path": args.model, "dtype": args.dtype, "device": args.device},
        "batch_tokens": args.batch_tokens,
        "sets": {path: measure(model, tokenizer, path, args) for path in args.path or STARTER},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
