"""Fetch what configs need from the hub, and prove that it opens without a network."""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bft_ray.config import ModelConfig
from bft_ray.config.tasks import HarnessTask
from bft_ray.errors import BadInput, BftError, first_line
from bft_ray.operate.clean import size_text
from bft_ray.operate.fetch.needs import Need, configs_of, needs_of
from bft_ray.places.addresses import redact
from bft_ray.places.disk import free_bytes, full_disk
from bft_ray.places.mounts import is_own_disk
from bft_ray.waits import waiting

_OFFLINE_S = 1800.0  # for all of them: headers and indices are read, no weights
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_BESIDE = (".json", ".jinja", ".model", ".tiktoken", ".txt")  # configuration and tokenizer
_OFF = {"", "0", "off", "no", "false"}


def fetch(sources: Sequence[str], overrides: Sequence[str], line: Callable[[str], None]) -> None:
    """Bring everything of the hub that configs and search spaces name into the hub's cache. What is there is not fetched again.

    Each is then opened by a process with HF_HUB_OFFLINE=1, as a compute node opens it: tokenizer, configuration and the
    headers of all weights; every split; every task of the harness.

    Args:
        line: called with each line for the user: what, how large, how much of it is new, and where.

    Raises:
        BadInput, BadConfig: see `configs_of`; HF_HUB_OFFLINE is set; no room.
        DiskFull: no room, found while fetching.
        BftError: something could not be fetched or does not open. The others have been fetched.
    """
    needs = needs_of(configs_of(sources, overrides))
    if not needs:
        line("nothing of the hub is named; `bft-ray doctor CONFIG` looks at files and folders")
        return
    if os.environ.get("HF_HUB_OFFLINE", "").lower() not in _OFF:
        rule = "left unset: this fetches from the hub"
        raise BadInput(
            "HF_HUB_OFFLINE", os.environ["HF_HUB_OFFLINE"], rule, "Give HF_HUB_OFFLINE=0 before the command."
        )
    faults: dict[Need, str] = {}
    for need in needs:
        try:
            with waiting(f"fetching {need.name}"):
                line(f"{need}: {_bring(need)}")
        except BadInput as error:
            faults[need] = str(error)
    for text in _places():
        line(text)
    fetched = [need for need in needs if need not in faults]
    with waiting("opening all of it without the hub"):
        found = _offline(fetched)
    faults |= {need: error for need, error in zip(fetched, found, strict=True) if error}
    num_open = len(needs) - len(faults)
    line(f"checked   {num_open} of {len(needs)} open with HF_HUB_OFFLINE=1")
    if faults:
        raise BftError("not fetched:\n" + "\n".join(f"  - {redact(text)}" for text in faults.values()))


def files_of_a_model(names: Iterable[str], runs_code: bool) -> list[str]:
    """Those files of a repository that reading its model and tokenizer needs, sorted.

    One copy of the weights, in safetensors: `model.safetensors`, else its numbered parts. Other forms of the same weights,
    folders, pictures and licences are left out.
    """
    names = [name for name in names if "/" not in name]
    whole = [name for name in names if name == "model.safetensors"]
    weights = whole or [name for name in names if _SHARD.fullmatch(name)]
    beside = [name for name in names if name.endswith(_BESIDE) or (runs_code and name.endswith(".py"))]
    if whole:
        beside = [name for name in beside if name != "model.safetensors.index.json"]
    return sorted({*weights, *beside})


def _bring(need: Need) -> str:
    """Fetch it; returns how large it is."""
    if need.kind in ("model", "encoder"):
        return _bring_model(need)
    if need.kind == "tasks":
        from bft_ray.evaluate.tasks.harness import open_data

        return f"{_size(open_data(task_of(need)))} of data"
    from bft_ray.data.hub import open_dataset

    opened = [open_dataset(need.name, split or None, need.part, need.revision, need.field) for split in need.splits]
    rows = sum(map(len, opened))
    return f"{rows:,} rows, {_size(opened[0].info.dataset_size or 0)} with all splits"


def _bring_model(need: Need) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    from bft_ray.model.unreadable import unreadable

    try:
        info = HfApi().model_info(need.name, revision=need.revision, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        wanted = [glob.escape(name) for name in files_of_a_model(sizes, need.runs_code)]
        if not any(name.endswith(".safetensors") for name in wanted):
            raise OSError(f"{need.name} does not appear to have a file named model.safetensors")
        plan = snapshot_download(need.name, revision=need.revision, allow_patterns=wanted, dry_run=True)
        cut = [file for file in plan if file.is_cached and _is_cut(file.local_path, sizes[file.filename])]
        new = sum(sizes[file.filename] or 0 for file in plan if file.will_download or file in cut)
        _require_room(need, new)
        for file in cut:  # the hub's client looks at names alone, and would keep it
            Path(file.local_path).resolve().unlink(missing_ok=True)
            Path(file.local_path).unlink(missing_ok=True)
        snapshot_download(need.name, revision=need.revision, allow_patterns=wanted)
    except BadInput:
        raise
    except Exception as error:  # hub, network or disk, of any type
        if full := full_disk(error, {"HF_HUB_CACHE": HF_HUB_CACHE}):
            raise full from None
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and status >= 500:
            remedy = "Try again later: what is here already is not fetched again."
            raise BadInput(need.field, need.name, f"on a hub that serves it: it answers {status}", remedy) from None
        raise unreadable(need.field, need.name, need.name, need.kind, error) from None
    total = sum(sizes[file.filename] or 0 for file in plan)
    return f"{len(plan)} files, {_size(total)}, {_size(new)} of it new"


def _is_cut(path: str, num_bytes: int | None) -> bool:
    return num_bytes is not None and (not os.path.exists(path) or os.path.getsize(path) != num_bytes)


def _size(num_bytes: int) -> str:
    return size_text(num_bytes) or "0 kB"


def _require_room(need: Need, new: int) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    free = free_bytes(HF_HUB_CACHE)
    if new > free:
        rule = f"on a disk with room for {_size(new)} of {need.name}: {_size(free)} are free"
        raise BadInput("HF_HUB_CACHE", HF_HUB_CACHE, rule, "Free some, or set HF_HOME to a folder on another disk.")


def _places() -> list[str]:
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    lines = [f"where     {HF_HUB_CACHE} (models), {HF_DATASETS_CACHE} (data)"]
    if is_own_disk(Path(HF_HUB_CACHE)):
        lines.append(
            "note: that is a disk of this machine; other nodes see it only if HF_HOME is a folder that all of them have"
        )
    return lines


def _offline(needs: Sequence[Need]) -> list[str]:
    """For each, why it does not open in a process that has no hub; "" where it does."""
    if not needs:
        return []
    command = [sys.executable, "-m", "bft_ray.operate.fetch.offline"]
    own = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    asked = json.dumps([asdict(need) for need in needs])
    try:
        done = subprocess.run(command, input=asked, env=own, capture_output=True, text=True, timeout=_OFFLINE_S)
    except subprocess.TimeoutExpired:
        raise BftError(f"what was fetched could not be opened within {_OFFLINE_S:g} s without the hub") from None
    if done.returncode:
        last = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise BftError(f"the check without the hub ended with status {done.returncode}: {redact(last)}")
    return json.loads(done.stdout.splitlines()[-1])


def open_offline(need: Need) -> None:
    """Open one, as a run does before it starts. For a process that has HF_HUB_OFFLINE=1.

    Raises:
        BadInput: it cannot be opened.
    """
    if need.kind not in ("model", "encoder"):
        _bring(need)
        return
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig

    from bft_ray.evaluate.clients.encoder import check_encoder
    from bft_ray.model.causal_lm import load_tokenizer
    from bft_ray.model.check import check_headers
    from bft_ray.model.unreadable import reading, unreadable

    if need.kind == "encoder":
        check_encoder(need.name, need.field)
    else:
        load_tokenizer(ModelConfig(path=need.name, revision=need.revision, trust_remote_code=need.runs_code))
    with reading(partial(unreadable, need.field, need.name, need.name, need.kind)):
        AutoConfig.from_pretrained(need.name, revision=need.revision, trust_remote_code=need.runs_code)
    # not by snapshot_download: it asks for the whole repository, also for what was left out
    kept = try_to_load_from_cache(need.name, "config.json", revision=need.revision)
    if not isinstance(kept, str):
        raise BadInput(need.field, need.name, f"a {need.kind} with a config.json in the cache", "Fetch it again.")
    check_headers(Path(kept).parent, need.field)


def task_of(need: Need) -> HarnessTask:
    """The tasks of the harness, without settings that no data depends on."""
    return HarnessTask(name=need.field.rpartition(".")[2], tasks=need.name.split(","), include_path=need.part)


def error_of(need: Need) -> str:
    """Why it cannot be opened; "" where it can."""
    try:
        open_offline(need)
    except BadInput as error:
        return str(error)
    except Exception as error:  # of any library, of any type: it must not hide the others
        return f"{need.field}: {need.name}: {type(error).__name__}: {first_line(error)}"
    return ""
