"""Datasets of the hub by their id, and folders that `datasets` saved; what can go wrong with them, by name."""

from __future__ import annotations

import ast
import functools
import os
import re
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, enumerate_names


def looks_like_hub_id(path: str) -> bool:
    """`name` or `owner/name`."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) is not None and path[0] != "."


def open_dataset(path: str, split: str | None, name: str | None, revision: str | None, field: str) -> Any:
    """One split, as a `datasets.Dataset`.

    Args:
        split: may be left out where there is only one.
        name: of the configuration; may be left out where there is only one.
        field: dotted name of the source in the config.

    Raises:
        BadInput: a repository that is missing, gated or private, a hub that cannot be reached, an unknown configuration
            or split, or a folder that is no dataset.
    """
    import datasets

    folder = Path(path).expanduser()
    is_saved = folder.is_dir()
    try:
        data = datasets.load_from_disk(folder) if is_saved else _hub_dataset(path, split, name, revision)
    except Exception as error:  # hub, network or disk, of any type: to the user it is bad input
        if is_saved:
            rule = "a folder that `Dataset.save_to_disk` wrote"
            raise BadInput(f"{field}.path", path, rule, _files_in(path) or _said(error)) from error
        raise _named(error, path, split, name, field) from error
    if is_saved and (name or revision):
        asked, value = ("config_name", name) if name else ("revision", revision)
        raise BadInput(f"{field}.{asked}", value, f"null where the path is a folder, such as {path}", "Take it out.")
    if not isinstance(data, datasets.DatasetDict):
        if is_saved and split is not None and split != str(data.split):
            rule = f"null or the split that the folder holds{f', {data.split}' if data.split else '; it names none'}"
            raise BadInput(f"{field}.split", split, rule, "Take it out, or save the DatasetDict with all its splits.")
        return data
    chosen = split or (next(iter(data)) if len(data) == 1 else None)
    if chosen not in data:
        raise _no_such(f"{field}.split", split, list(data), "Name the split of the dataset.")
    return data[chosen]


def _files_in(path: str) -> str:
    """Which files of a folder can be given in its place, as of a dataset's repository that was downloaded."""
    suffixes = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
    inside = sorted(Path(path).rglob("*"))
    tables = [str(file.relative_to(path)) for file in inside if file.suffix.lower() in suffixes and file.is_file()]
    if not tables or (Path(path) / "state.json").exists() or (Path(path) / "dataset_dict.json").exists():
        return ""
    shown = ", ".join(tables[:3]) + (" ..." if len(tables) > 3 else "")
    return f"Give one of its files, or a source for each of them: {shown}."


@functools.lru_cache(maxsize=4)  # its fingerprint is asked for before its rows
def _hub_dataset(path: str, split: str | None, name: str | None, revision: str | None) -> Any:
    import datasets

    # from datasets 4 on it runs no script of the dataset's
    return datasets.load_dataset(path, name, split=split, revision=revision)


def _named(error: Exception, path: str, split: str | None, name: str | None, field: str) -> BadInput:
    """The error of `datasets`, by the field at fault."""
    from huggingface_hub import get_token

    text, has_token = str(error), get_token() is not None
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/datasets/{path}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    if "gated" in text:
        if has_token:
            rule = "but it is gated, and the hub does not let the account of your token in"
            return BadInput(f"{field}.path", path, rule, f"Ask for access at {page}, or use another token (HF_TOKEN).")
        rule = "but it is gated, and there is no token of the hub here"
        return BadInput(f"{field}.path", path, rule, f"Ask for access at {page}, then {log_in}.")
    if "doesn't exist on the Hub" in text:
        rule = "a file or folder that exists, or a dataset of the hub that exists and that you may read"
        private = "or whether your token may read it" if has_token else f"or, for a private one, {log_in}"
        return BadInput(f"{field}.path", path, rule, f"Check the name, {private}.")
    known = _names_in(text)
    if known and ("Config name is missing" in text or "BuilderConfig" in text):
        return _no_such(f"{field}.config_name", name, known, "Name the configuration of the dataset.")
    if known and "split" in text.lower():
        return _no_such(f"{field}.split", split, known, "Name the split of the dataset.")
    remedy = f"{_said(error)}. Check the name, split and network, or download it and give the file."
    if "Offline" in type(error).__name__ or "offline" in text.lower():
        remedy = f"{_said(error)}. `bft-ray fetch CONFIG` brings it where there is a network."
    return BadInput(f"{field}.path", path, "a file that exists, or a dataset of the hub that can be reached", remedy)


def _no_such(field: str, given: str | None, known: list[str], remedy: str) -> BadInput:
    return BadInput(field, given, f"one of {enumerate_names(known)}", remedy)


def _names_in(text: str) -> list[str]:
    """The names of the list that an error ends with."""
    found = re.search(r"\[[^\]]*\]", text)
    try:
        names = ast.literal_eval(found[0]) if found else []
    except (ValueError, SyntaxError):
        return []
    return [str(each) for each in names]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
