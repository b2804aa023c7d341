"""Part `commands` of `jobs.chaos`: one damaged file below a whole command, as a user would meet it.

A folder of work is made once: a finished run, an evaluation and a profile of it, a run that was interrupted, a study that was
interrupted. Then, again and again: the folder as it was, one file of those that a command reads back damaged, the command.
It must find to the last bit what it finds with whole files, or end with one error that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bft_ray.errors import BftError
from jobs.chaos_files import damage, restore
from jobs.chaos_kills import compare, records, search_words

_COMMAND_S = 900.0  # bound of a command; one that takes longer hangs
_CONFIG = """\
domain: gene_interaction
name: finished
model: {path: starter, dtype: fp32}
data:
  train: [{path: "starter:gene_interaction/train", limit: 48}]
  validation: [{path: "starter:gene_interaction/validation", limit: 16}]
  max_length: 1024
  micro_batch_tokens: 2048
  global_batch_size: 8
  cache_dir: PLACE/cache
loss: {method: bft, window: 64}
schedule: {steps: 12}
evaluation:
  every_steps: 2
  batch_tokens: 4096
checkpoint: {every_steps: 2, keep: 3}
deepspeed: {preset: zero1}
cluster: {num_workers: 1, gpus_per_worker: 0, storage_path: PLACE/results}
tracking: {uri: "sqlite:///PLACE/mlflow.db"}
"""


@dataclass(frozen=True)
class Command:
    """One command and what it reads back.

    Args:
        words: of `bft-ray`; PLACE stands for the folder of work.
        files: patterns of the files that are damaged, below that folder.
        found: what the command has found, from what it wrote there.
    """

    words: tuple[str, ...]
    files: tuple[str, ...]
    found: Callable[[Path], dict[str, Any]]


def commands() -> dict[str, Command]:
    """By name, in the order in which they take turns."""
    tokens = "cache/*/*"
    export = "results/finished/export"
    run, trial = "results/interrupted", "results/studies/*/*/*/*"
    return {
        "evaluate": Command(
            ("evaluate", "config.yaml", "--model", export, "--out", "after", "--against", "before"),
            (f"{export}/*", "before/*", tokens),
            _evaluated,
        ),
        "train": Command(
            ("train", "config.yaml", "name=interrupted"),
            (f"{run}/*.json", f"{run}/step-*/*", f"{run}/step-*/*/*", tokens),
            _trained,
        ),
        "profile": Command(
            ("profile", "config.yaml", "--out", "again", "--against", "profiled", "--no-mlflow"),
            ("profiled/*.parquet", "cache/profiles/*", tokens),
            _profiled,
        ),
        "search": Command(
            search_words("PLACE"),
            (f"{trial}/*", f"{trial}/state-*/step-*/*", f"{trial}/state-*/step-*/*/*", f"{trial}/weights-*/*", tokens),
            records,
        ),
    }


def _evaluated(place: Path) -> dict[str, Any]:
    return {name: (place / "after" / name).read_text() for name in ("metrics.json", "records.jsonl")}


def _trained(place: Path) -> dict[str, Any]:
    folder = place / "results" / "interrupted"
    record = json.loads((folder / "run.json").read_text())
    weights = hashlib.sha256((folder / "export" / "model.safetensors").read_bytes()).hexdigest()
    return {"step": record["step"], "after": record["after"], "weights": weights}


def _profiled(place: Path) -> dict[str, Any]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (place / "again").glob("*.parquet")}


def run_commands(
    folder: Path, state: dict[str, Any], seed: int, count: int, end: float, save: Callable[[], None]
) -> None:
    """Go on from `state` until so many files were damaged, or it is too late for another command.

    Args:
        state: `undisturbed` (what each command finds), `draws`, and `faulty`: draws with a fault that were done again;
            changed in place.
        end: on the monotonic clock.
        save: called after each command.
    """
    place, whole = folder / "work", folder / "whole"
    if "undisturbed" not in state or not whole.is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        place.mkdir(parents=True)
        _prepare(place)
        shutil.copytree(place, whole, symlinks=True)
        state |= {"undisturbed": {}, "draws": [], "longest_s": 0.0}
        for name, command in commands().items():
            restore(whole, place)
            status, said = _run(command.words, place)
            if status != 0:
                raise BftError(f"`{name}` over whole files ends with status {status}: {said[-800:]}")
            state["undisturbed"][name] = command.found(place)
        save()
    state["faulty"] = state.get("faulty", []) + [draw for draw in state["draws"] if draw["outcome"] == "fault"]
    state["draws"] = [draw for draw in state["draws"] if draw["outcome"] != "fault"]  # these are done again
    done = {draw["number"] for draw in state["draws"]}
    for number in sorted(set(range(count)) - done):
        if time.monotonic() + state["longest_s"] > end:
            break
        began = time.monotonic()
        state["draws"].append(_draw(number, random.Random(f"{seed}/{number}"), whole, place, state["undisturbed"]))
        state["longest_s"] = max(state["longest_s"], time.monotonic() - began)
        save()
        print(told(state["draws"][-1]), flush=True)


def told(draw: dict[str, Any]) -> str:
    """A draw in one line."""
    return "{number}: {command}, {file}, {how}: {outcome} {what}".format(**draw).rstrip()


def _draw(number: int, draw: random.Random, whole: Path, place: Path, undisturbed: dict[str, Any]) -> dict[str, Any]:
    name, command = list(commands().items())[number % len(commands())]
    restore(whole, place)
    pattern = draw.choice([each for each in command.files if _files(place, each)])
    path = draw.choice(_files(place, pattern))
    how = damage(path, draw)
    status, said = _run(command.words, place)
    outcome, what = judge(command, place, path, status, said, undisturbed[name])
    own = {"number": number, "command": name, "file": str(path.relative_to(place)), "how": how}
    return own | {"outcome": outcome, "what": what}


def judge(
    command: Command, place: Path, path: Path, status: int | None, said: str, before: dict[str, Any]
) -> tuple[str, str]:
    """What became of a command, and what is wrong with that ("" where nothing is).

    Args:
        path: the damaged file.
        status: of the command; None where it did not end.
        before: what the command finds with whole files.
    """
    inner = path.relative_to(place)
    names = [str(inner), path.name, *(str(above) for above in inner.parents if len(above.parts) > 1)]
    is_named = any(name in said for name in names)
    if status is None:
        return "fault", f"hangs: {said[-300:]}"
    if "Traceback (most recent" in said:
        return "fault", f"a traceback: {said[-600:]}"
    if status != 0:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        is_clear = len(errors) == 1 and any(name in errors[0] for name in names)
        return ("an error names it", "") if is_clear else ("fault", f"status {status}: {said[-600:]}")
    found = json.loads(json.dumps(command.found(place)))
    if differences := compare(json.loads(json.dumps(before)), found):
        return "fault", f"status 0, and another result: {'; '.join(differences)[:600]}"
    return ("as undisturbed, named" if is_named else "as undisturbed"), ""


def _files(place: Path, pattern: str) -> list[Path]:
    return [
        one for one in sorted(place.glob(pattern)) if one.is_file() and one.name != "README.md" and one.stat().st_size
    ]


# --- the folder of work -----------------------------------------------------------------------------------------------


def _prepare(place: Path) -> None:
    (place / "home").mkdir()
    (place / "config.yaml").write_text(_CONFIG.replace("PLACE", str(place)))
    export = "results/finished/export"
    for words in (
        ("train", "config.yaml"),
        ("evaluate", "config.yaml", "--model", export, "--out", "before"),
        ("profile", "config.yaml", "--out", "profiled", "--no-mlflow"),
    ):
        status, said = _run(words, place)
        if status != 0:
            raise BftError(f"`{' '.join(words)}` ends with status {status}: {said[-800:]}")
    every = commands()
    _interrupt(every["train"].words, place, "results/interrupted/step-00000002")
    _interrupt(every["search"].words, place, "results/studies/*/*/search/*/state-*/step-*")


def _interrupt(words: tuple[str, ...], place: Path, pattern: str) -> None:
    """Ctrl-C as soon as something of this pattern is there."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job, and children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with _start(words, place) as process:
        end = time.monotonic() + _COMMAND_S
        while not list(place.glob(pattern)) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        status = process.wait(120)
    if status != 130:
        raise BftError(
            f"`{' '.join(words)}` was to be interrupted, and ended with status {status}: {_said(place)[-800:]}"
        )


def _start(words: tuple[str, ...], place: Path) -> subprocess.Popen:
    own = {"HOME": str(place / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "bft_ray.cli", *(word.replace("PLACE", str(place)) for word in words)]
    with (place / "log").open("wb") as log:
        return subprocess.Popen(
            line, cwd=place, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _run(words: tuple[str, ...], place: Path) -> tuple[int | None, str]:
    """Status and all that was said; no status where it hangs."""
    with _start(words, place) as process:
        try:
            status: int | None = process.wait(_COMMAND_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = None
    return status, _said(place)


def _said(place: Path) -> str:
    return (place / "log").read_text(errors="replace")
