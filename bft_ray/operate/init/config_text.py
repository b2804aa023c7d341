"""The text of a config for the splits of a user's rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from bft_ray.config.load import scalar
from bft_ray.operate.init.plan import StudyPlan
from bft_ray.operate.init.split import TRAIN, VALIDATION
from bft_ray.space.draft import window_grid


def config_text(plan: StudyPlan, about: Sequence[str]) -> str:
    """The YAML text.

    Args:
        about: comments for its top.
    """
    settings = plan.settings
    lora = (
        "lora: {rank: 16, alpha: 32.0}  # trains adapters only; null trains all weights (far more memory)"
        if settings.lora
        else "lora: null  # null trains all weights; {rank: 16, alpha: 32.0} trains adapters only"
    )
    if plan.is_choice:
        measured = "  validation: []  # what counts is measured by the choice task below\n"
        tasks = f"  tasks:\n    - {{kind: choice, path: {_quoted(plan.paths[VALIDATION])}}}\n"
        checkpoint = "  export: last  # the weights of the last step\n"
    else:
        measured = f"  validation:\n    - {{path: {_quoted(plan.paths[VALIDATION])}}}\n"
        tasks = "  tasks: []  # what else is measured, e.g. [{kind: choice, path: exam.jsonl}]; docs/evaluation.md lists the kinds\n"
        checkpoint = "  metric: validation/nll  # decides which checkpoint is exported: nats a token, lower is better\n"
    comments = "".join(f"# {line}\n" for line in about)
    text = f"""\
{comments}# Check it: bft-ray doctor FILE. Change a field for one run: bft-ray train FILE loss.window=64.
# All fields: bft-ray config --schema.
domain: {scalar(plan.domain)}  # names the MLflow experiment, bft/<domain>
seed: 0  # of the batch order and of LoRA's first weights
model:
  path: {_quoted(plan.request.model)}  # folder or hub id of any causal language model; starter: the small bundled one
  dtype: {settings.dtype}  # of weights and computation; bf16 halves the memory
{lora}
data:
  train:
    - {{path: {_quoted(plan.paths[TRAIN])}}}
{measured}  max_length: {settings.max_length}  # tokens a row; longer ones are handled as too_long says
  too_long: truncate  # or drop, or error; counted in the data report
  global_batch_size: {settings.batch}  # rows a step, over all workers: part of the result
  micro_batch_tokens: {settings.micro_batch_tokens}  # tokens a worker handles at once: memory and speed, never the result
loss:
  method: bft  # sft, dft, bft, bft_group, bft_inverse ...: compare them on your data
  window: {settings.window}  # tokens of the confidence window; at or above the longest answer it is the whole answer
optimizer:
  learning_rate: {settings.rates[len(settings.rates) // 2]}  # peak; try a third and three times of it
schedule:
  epochs: {settings.epochs}  # passes over the training rows
  warmup_ratio: 0.1  # share of the steps in which the rate rises
deepspeed:
  preset: zero1  # zero2, zero3: spread more of the memory over the workers
evaluation:
{tasks}  batch_tokens: {max(settings.micro_batch_tokens, settings.max_length)}  # tokens a worker evaluates at once
cluster:
  address: null  # null: this machine; auto or host:port: a Ray cluster
  num_workers: 1  # one a GPU, or a few cores; the result stays the same
  cpus_per_worker: {settings.cpus_per_worker}  # cores of each worker
  storage_path: bft_results  # checkpoints and exports; on a cluster a folder that all nodes share, or a URI
checkpoint:
{checkpoint}profile:
  windows: {window_grid(plan.answer_tokens[-1])}  # tokens; what `bft-ray profile` looks at
tracking:
  uri: sqlite:///mlflow.db  # or http://host:port of an MLflow server
"""
    return "".join(map(_align, text.splitlines(keepends=True)))


def _quoted(path: Path | str) -> str:
    return json.dumps(str(path.resolve() if isinstance(path, Path) else path), ensure_ascii=False)


def _align(line: str) -> str:
    value, mark, comment = line.partition("  # ")
    return f"{value:<32}{mark}{comment}" if mark else line
