"""`run.json` beside the checkpoints: the identity of a run, so that its name resumes this run and no other."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bft_ray.config import Config, flatten
from bft_ray.config.base import Section, inputs_of
from bft_ray.data.dataset import TokenDataset
from bft_ray.data.tables import resolve_path
from bft_ray.errors import BadConfig, BadInput
from bft_ray.model.base_weights import weights_fingerprint
from bft_ray.places import storage
from bft_ray.places.addresses import redact_tree
from bft_ray.places.kept import is_damaged, read_kept, write_kept
from bft_ray.places.remote import is_remote
from bft_ray.tracking.begin import status_of
from bft_ray.tracking.resume import MAY_CHANGE, changed_fields, describe_change
from bft_ray.tracking.server import check_server
from bft_ray.train.checkpoint import STEP, checksum

log = logging.getLogger(__name__)

_FILE, _NEEDS = "run.json", ("run_id", "config")
_MOST_REMOVED = 9  # times that other commands may remove a folder before it is held
PACKING = "packing.json"  # file of the folder of a run: the choice that its workers made


@contextlib.contextmanager
def only_one(folder: str, name: str) -> Iterator[None]:
    """Hold the folder of a run while a context lasts; it is free when its process ends, however it ends. Only a folder of a
    file system that has locks is held: in an object store two commands are not told of each other.

    Raises:
        BadInput: another command holds it, or it is a file.
    """
    if is_remote(folder):
        yield
        return
    path = Path(storage.absolute(folder))
    if path.is_file():
        raise BadInput("name", name, f"the name of a folder: {folder} is a file", "Choose another name, or move it.")
    made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        handle = _hold(path)
    except BlockingIOError:
        rule = f"the name of a run that no other command is at work on; one is in {folder}"
        raise BadInput("name", name, rule, "Wait for its end, or choose another name.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # nothing was written: as if it had not been begun
            for each in made:
                each.rmdir()
        os.close(handle)


def _hold(path: Path) -> int:
    """Make a folder and lock it; returns its handle. Another command may just remove the folder that it had made and not
    used: then a lock on it would hold nothing, and it is made again.
    """
    for _ in range(_MOST_REMOVED):
        with contextlib.suppress(FileNotFoundError, FileExistsError):  # removed meanwhile
            path.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise
            except OSError as error:  # some network file systems have no locks on folders
                log.info("the run is not locked against a second command: %s", error)
            if path.is_dir() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
            os.close(handle)
    raise OSError(f"{path} is removed by another process each time it is made")


def read_record(folder: str) -> dict[str, Any]:
    """The record of an earlier start of this run; {} where there was none, or its file is damaged."""
    return read_kept(storage.join(folder, _FILE), _NEEDS) or {}


def is_lost(folder: str) -> bool:
    """Whether there was an earlier start, and its record is damaged."""
    return is_damaged(storage.join(folder, _FILE), _NEEDS)


def with_first_choices(config: Config, record: Mapping[str, Any]) -> Config:
    """The config with the choices that this run made when it began, where the config leaves them open: the date for a chat
    template, and packing (a run of an earlier version always had a value for it).
    """
    first = record.get("config", {})
    settled = {name: first.get(f"data.{name}") for name in ("date", "packing") if getattr(config.data, name) is None}
    kept = {name: value for name, value in settled.items() if value is not None}
    return config.model_copy(update={"data": config.data.model_copy(update=kept)}) if kept else config


def refuse_other_run(record: Mapping[str, Any], config: Config) -> None:
    """Refuse to resume a run with a config that would give neither its own result nor that of the first config.

    Raises:
        BadConfig: the run began with other settings, of those that decide the result.
    """
    if not record:
        return
    new = redact_tree(flatten(config))
    # a version without a field did what its default does
    known, given = {_leaf(field) for field in record["config"]}, flatten(config, only_given=True)
    new = {
        field: value
        for field, value in new.items()
        if field in record["config"] or _leaf(field) in known or field in given
    }
    changed = changed_fields(record["config"], new, MAY_CHANGE)
    if changed:
        lines = [describe_change(field, record["config"], new) for field in changed]
        raise BadConfig(f"the run `{config.name}` exists with other settings; choose another name. It", lines)


def kept_or_anew(
    record: dict[str, Any], refuse: Callable[[], None], folder: str, config: Config, line: Callable[[str], None]
) -> dict[str, Any]:
    """The record of a run that goes on; {} where `refuse` refuses it, and nothing would be lost: it has no checkpoint and does
    not run, so its name is free. What its workers chose is then deleted.

    Args:
        line: called with a note in that case.

    Raises:
        BadConfig: of `refuse`, for a run that has a checkpoint, or runs.
        BadInput: the tracking server, which knows whether it runs, does not answer.
    """
    try:
        refuse()
        return record
    except BadConfig:
        if "step" in record or storage.folders_in(folder, STEP):
            raise
        check_server(config.tracking)
        if status_of(config.tracking, record["run_id"]) == "RUNNING":
            raise
    line(
        f"note: the run {config.name} exists with other settings or data, and has trained nothing: it begins anew; the MLflow run "
        f"{record['run_id']} stays as it is"
    )
    with contextlib.suppress(FileNotFoundError):
        storage.delete(storage.join(folder, PACKING))
    return {}


def identity_of(config: Config, datasets: Mapping[str, TokenDataset]) -> dict[str, str]:
    """Field -> fingerprint of its content: tokenised rows, base weights, the files of tasks.

    A field is left out where nothing can be read here, as for a model that only the hub has.
    """
    found = {f"data.{use}": dataset.fingerprint for use, dataset in datasets.items()}
    found["model.path"] = weights_fingerprint(config.model)
    found |= {f"evaluation.tasks.{task.name}": files_fingerprint(task) for task in config.evaluation.tasks}
    return {field: digest for field, digest in found.items() if digest}


def refuse_other_data(
    record: Mapping[str, Any], identity: Mapping[str, str], config: Config, line: Callable[[str], None]
) -> None:
    """Raise BadConfig where rows, base weights or items are not those that the run began with.

    Args:
        line: called with a note where a run of an earlier version kept no fingerprints; then the present ones are taken.
    """
    if not record:
        return
    if "identity" not in record:
        line(
            f"note: the run {config.name} began with a version of bft-ray that kept no fingerprints of data and weights: "
            "whether they are the same is not known; from now on it is checked"
        )
        return
    changed = changed_fields(record["identity"], identity, ())
    if changed:
        lines = [f"{describe_change(field, record['identity'], identity)}{_of(field, config)}" for field in changed]
        raise BadConfig(
            f"the run `{config.name}` began with other data or weights than those of now; "
            "restore them, or choose another name. It",
            lines,
        )


def _leaf(field: str) -> str:
    return field.rpartition(".")[2]


def _of(field: str, config: Config) -> str:
    """The files behind a fingerprint."""
    if field in ("data.train", "data.validation"):
        paths = [source.path for source in getattr(config.data, field.removeprefix("data."))]
        return f" (fingerprint of the rows of {', '.join(paths)})"
    return f" (fingerprint of the weights in {config.model.path})" if field == "model.path" else " (its files)"


def write_record(folder: str, config: Config, run_id: str, identity: Mapping[str, str], **more: Any) -> None:
    """Write `run.json`, whole or not at all, and with a checksum.

    Args:
        more: what is known of the result: `before`, `after`, `step`.
    """
    text = record_text(config, run_id, identity, **more)
    write_kept(storage.join(folder, _FILE), json.loads(text), indent=1)


def record_text(config: Config, run_id: str, identity: Mapping[str, str], **more: Any) -> str:
    """The text of `run.json`, without the passwords of addresses."""
    record = {"run_id": run_id, "config": flatten(config), "identity": dict(identity)} | more
    return json.dumps(redact_tree(record), indent=1)


def files_fingerprint(task: Section) -> str:
    """Fingerprint of the contents of a task's local files; "" where it has none."""
    named = [str(value) for name in inputs_of(task) if (value := getattr(task, name))]
    files = [path for path in (Path(resolve_path(name)) for name in named) if path.is_file()]
    return hashlib.sha256(" ".join(map(checksum, files)).encode()).hexdigest() if files else ""
