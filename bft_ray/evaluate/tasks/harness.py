"""Any task of lm-evaluation-harness by name (mmlu, cmmlu, ...), where that library is installed.

The library makes the prompts, asks the model and computes the figures; here they become metrics of the table and
records an item. Its answers are its own: `acc` takes the option of the largest summed log-likelihood, `acc_norm` of the
largest one per character, where `bft_ray.evaluate.tasks.choice` divides by tokens.

Prompts go through the chat template where training's do (`data.template`), and are cut on the left to
`data.max_length`; how many were is counted. Few-shot examples are drawn with the library's own seeds, so that figures
compare with published ones. Data of the library's tasks come from the hub, into the cache of `datasets`; nothing else
is written. A task file in `include_path` may name Python functions, which run: include only what you trust.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import logging
import math
import numbers
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config.tasks import HarnessTask
from bft_ray.data.tokenise import uses_chat
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.request import Context, Measured
from bft_ray.stats.errors import with_error

_RANDOM_SEED, _OTHER_SEED = 0, 1234  # those of the library's command line
_BOOTSTRAP = 1000  # resamples, for the metrics whose standard error the library draws


def prepare(task: HarnessTask, context: Context) -> HarnessTask:
    """The task as it is, for the library asks the model itself. Raises as `check`."""
    check(task)
    return task


def check(task: HarnessTask) -> Any:
    """The library's task manager, once it is sure that it knows all tasks. Loads no data.

    Raises:
        BadInput: the library is not installed, no such folder of task files, or an unknown task.
    """
    field = f"evaluation.tasks.{task.name}"
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput(
            f"{field}.kind",
            "harness",
            "another kind where lm-evaluation-harness is not installed",
            "Install it on all nodes: pip install 'bft-ray[harness]'.",
        )
    if task.include_path is not None and not Path(task.include_path).expanduser().is_dir():
        raise BadInput(f"{field}.include_path", task.include_path, "a folder of task files")
    folder = None if task.include_path is None else str(Path(task.include_path).expanduser())
    with _quiet():
        manager = _own_manager(folder, task.tasks) or _manager(folder)
    for name in task.tasks:
        if not manager.match_tasks([name]):
            near = difflib.get_close_matches(name, manager.all_tasks, 3)
            hint = f"Did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them."
            raise BadInput(f"{field}.tasks", name, "a task of lm-evaluation-harness, or of include_path", hint)
    return manager


def run(task: HarnessTask, model: Any, tokenizer: Any, context: Context) -> Measured:
    """What the library measures on a loaded causal LM.

    Metrics are named `<name>/<task>/<metric>`, with `_se` as the library computes it and `_detectable` (see
    `with_error`); of a requested group the aggregate is given, not its tasks. Records: `set` (`<name>/<task>`), `id` (task
    of the library, number of the item), its metrics, and `scores`, the log-likelihoods of the options, in nats.

    Raises:
        BadInput: see `check`; or data of a task that cannot be read, for example offline.
    """
    manager = check(task)
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    max_length = context.data.max_length
    was_training = model.training
    with _quiet():
        loaded = _load(task, manager)
        lm = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=max(1, context.batch_tokens // max_length),
        )
        try:
            out = evaluate(
                lm=lm,
                task_dict=loaded,
                limit=task.limit,
                bootstrap_iters=_BOOTSTRAP,
                apply_chat_template=uses_chat(tokenizer, context.data),
                fewshot_as_multiturn=True,
            )
        finally:
            model.train(was_training)
    shown = _shown(out["results"], out.get("group_subtasks", {}), task.tasks)
    metrics = _metrics(task.name, {name: out["results"][name] for name in shown})
    records = _records(task.name, out["samples"], shown)
    if not metrics:
        raise BadInput(f"evaluation.tasks.{task.name}.tasks", task.tasks, "tasks that measure a number")
    cut = sum(_is_cut(lm, sample, max_length) for samples in out["samples"].values() for sample in samples)
    counts = {f"{task.name}/num_items": float(len(records)), f"{task.name}/num_truncated": float(cut)}
    return Measured(metrics | counts, records)


def open_data(task: HarnessTask) -> int:
    """Bytes of the datasets that the tasks read, fetched where they are not in the cache; nothing is measured.

    Raises:
        BadInput: see `run`.
    """
    with _quiet():
        loaded = _load(task, check(task))
    parts = [part for own in loaded["tasks"].values() for part in (own.dataset or {}).values()]
    sizes = {
        (info.builder_name, info.dataset_name, info.config_name): info.size_in_bytes
        for info in (part.info for part in parts)
    }
    return sum(size or 0 for size in sizes.values())


def _own_manager(folder: str | None, names: Sequence[str]) -> Any:
    """A manager of the user's tasks alone, where they are enough: the library's own take 10 s to list."""
    from lm_eval.tasks import TaskManager

    if folder is None:
        return None
    manager = TaskManager(include_path=folder, include_defaults=False)
    return manager if set(names) <= set(manager.all_subtasks) else None


@functools.lru_cache(maxsize=2)
def _manager(folder: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def _load(task: HarnessTask, manager: Any) -> Any:
    """The tasks with their data, examples in the prompt as asked."""
    try:
        loaded = manager.load(task.tasks)
    except Exception as error:  # of any type: hub, network, disk, or a task file
        message = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        raise BadInput(
            f"evaluation.tasks.{task.name}.tasks",
            task.tasks,
            "tasks whose data can be read",
            f"{message}. Offline, their data must be in the cache: `bft-ray fetch CONFIG` brings them where there is a network.",
        ) from error
    for own in loaded["tasks"].values():
        fixed = own.get_config("num_fewshot")
        if task.num_fewshot is not None and fixed != 0:  # 0 in a task's file means that it makes no sense with more
            own.set_config(key="num_fewshot", value=task.num_fewshot)
        elif fixed is None:
            own.set_config(key="num_fewshot", value=0)
        own.set_fewshot_seed(seed=_OTHER_SEED)
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """The library's own log held back (it may quote items), and its draws seeded; generators as before afterwards."""
    import torch

    log = logging.getLogger("lm_eval")
    level, states = log.level, (random.getstate(), np.random.get_state())
    log.setLevel(logging.CRITICAL)
    try:
        with torch.random.fork_rng():
            random.seed(_RANDOM_SEED)
            np.random.seed(_OTHER_SEED)
            torch.manual_seed(_OTHER_SEED)
            yield
    finally:
        log.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])


# --- figures ------------------------------------------------------------------------------------------------


def _shown(
    results: Mapping[str, Any], members: Mapping[str, Sequence[str]], asked: Sequence[str]
) -> dict[str, set[str]]:
    """Name of each reported result -> its tasks: members of groups that were asked for are not reported
    by themselves.
    """
    shown: dict[str, set[str]] = {}
    covered: set[str] = set()
    for name in [*(name for name in asked if name in results), *results]:  # the others come from tags and patterns
        if name in shown or (name in covered and name not in asked):
            continue
        inside, queue = {name}, [name]
        while queue:
            fresh = set(members.get(queue.pop(), ())) - inside
            inside |= fresh
            queue += fresh
        shown[name] = inside
        covered |= inside
    return shown


def _metrics(prefix: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, values in results.items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")  # acc,none; acc_stderr,none; exact_match,strict-match
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = values.get(f"{metric}_stderr,{chosen}", 0.0)
            full = f"{prefix}/{_slug(name)}/{_column(metric, chosen)}"
            metrics |= with_error(full, value, error if _is_number(error) else 0.0)
    return metrics


def _records(
    prefix: str, samples: Mapping[str, Sequence[Mapping[str, Any]]], shown: Mapping[str, set[str]]
) -> list[dict[str, Any]]:
    """One record an item, of numbers only."""
    records: dict[str, dict[str, Any]] = {}
    for name, own in samples.items():
        shown_name = next(group for group, inside in shown.items() if name in inside)
        for sample in own:
            key = f"{name}/{sample['doc_id']}"
            record = records.setdefault(key, {"set": f"{prefix}/{_slug(shown_name)}", "id": key})
            for metric in sample["metrics"]:
                if _is_number(sample[metric]):
                    record[_column(metric, sample["filter"])] = float(sample[metric])
            options = sample["filtered_resps"]
            if len(options) > 1 and all(isinstance(one, tuple) and _is_number(one[0]) for one in options):
                record["scores"] = [float(one[0]) for one in options]
    return list(records.values())


def _is_cut(lm: Any, sample: Mapping[str, Any], max_length: int) -> bool:
    """Whether some prompt of an item lost its beginning."""
    for arguments in sample["arguments"]:
        text, rest = arguments[0], arguments[1] if len(arguments) > 1 else ""
        if isinstance(rest, str):  # a continuation, whose last token is not read
            room, text = max_length + 1, text + rest
        else:
            room = max_length - rest.get("max_gen_toks", lm.max_gen_toks)
        if len(lm.tok_encode(text)) > room:
            return True
    return False


def _column(metric: str, chosen: str) -> str:
    """`acc`, or with a filter of the library's `exact_match_strict_match`."""
    return _slug(metric) if chosen == "none" else f"{_slug(metric)}_{_slug(chosen)}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", name.lower())


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_)) and math.isfinite(float(value))
