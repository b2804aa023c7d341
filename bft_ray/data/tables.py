"""Any table -> its records, each with its place; and the hash of its content."""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from bft_ray.config import SourceConfig
from bft_ray.errors import BadInput

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
STARTER = "starter:"
_KINDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    list: "a list",
    dict: "an object",
}


def read_table(
    path: str,
    split: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    field: str = "source",
) -> Iterator[tuple[str, dict]]:
    """Records of a file, a saved `datasets` folder or a hub dataset, each with its place; at most `limit`.

    Raises:
        BadInput: no such file, or text that cannot be parsed; names the file and the line.
    """
    file = Path(resolve_path(path, f"{field}.path")).expanduser()
    if not file.exists() and not _looks_like_hub_id(path):
        raise _no_such_file(path, field)
    if file.is_file():
        reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(file.suffix)
        if reader is None:
            raise BadInput(f"{field}.path", path, f"a file that ends in {', '.join(SUFFIXES)}")
        records = reader(file, path)
    else:
        records = _dataset_records(path, split, name, revision, field)
    return itertools.islice(records, limit)


def resolve_path(path: str, field: str = "path") -> str:
    """`starter:gene_interaction/train` -> the bundled file; any other path comes back as it is."""
    if not path.startswith(STARTER):
        return path
    folder = Path(str(resources.files("bft_ray"))) / "data" / "starter"
    file = folder / f"{path.removeprefix(STARTER)}.jsonl"
    if not file.is_file():
        known = [f"{STARTER}{f.parent.name}/{f.stem}" for f in sorted(folder.glob("*/*.jsonl"))]
        near = difflib.get_close_matches(path, known, 1)
        hint = f"Did you mean `{near[0]}`?" if near else f"There are: {', '.join(known)}."
        raise BadInput(field, path, "the name of bundled starter data", hint)
    return str(file)


def content_hash(source: SourceConfig, field: str = "source") -> str:
    """sha256 of the bytes of a file or folder; of the `datasets` fingerprint for a hub dataset."""
    file = Path(resolve_path(source.path, f"{field}.path")).expanduser()
    digest = hashlib.sha256()
    if not file.exists():
        if not _looks_like_hub_id(source.path):
            raise _no_such_file(source.path, field)
        dataset = _dataset(source.path, source.split, source.name, source.revision, field)
        digest.update(dataset._fingerprint.encode())
        return digest.hexdigest()
    for part in sorted(file.rglob("*")) if file.is_dir() else [file]:
        if part.is_file():
            digest.update(str(part.relative_to(file)).encode())
            with part.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _looks_like_hub_id(path: str) -> bool:
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) is not None and not path.endswith(SUFFIXES) and path[0] != "."


def _no_such_file(path: str, field: str) -> BadInput:
    file = Path(path).expanduser()
    beside = [f.name for f in file.parent.glob("*")] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, beside, 1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Paths are relative to {Path.cwd()}."
    return BadInput(f"{field}.path", path, "a file or folder that exists, a hub id, or starter:DOMAIN/SPLIT", hint)


def _jsonl(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{label}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip())
            except json.JSONDecodeError as error:
                cut = "" if line.endswith(b"\n") else " The last line has no line end: the file may be cut off."
                raise BadInput(
                    where,
                    f"broken at column {error.colno}",
                    "one whole JSON object on a line",
                    f"{error.msg}.{cut}",
                ) from None
            except UnicodeDecodeError:
                raise _not_utf8(where) from None
            yield where, _object(where, record)


def _json(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    try:
        records = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        where = f"{label}:{error.lineno}"
        raise BadInput(where, f"broken at column {error.colno}", "valid JSON", f"{error.msg}.") from None
    except UnicodeDecodeError:
        raise _not_utf8(label) from None
    if not isinstance(records, list):
        raise BadInput(
            label, kind_of(records), "a list of objects", "One object a line is JSONL: name the file .jsonl."
        )
    for index, record in enumerate(records):
        yield f"{label}[{index}]", _object(f"{label}[{index}]", record)


def _csv(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than an article
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        start = 1
        try:
            header = next(reader, [])
            for name in {name for name in header if header.count(name) > 1}:
                raise BadInput(f"{label}:1", name, "a column name that stands there once")
            start = reader.line_num + 1
            for cells in reader:
                where, start = f"{label}:{start}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise BadInput(where, f"a row of {len(cells)} cells", f"one of {len(header)}, as the header")
                yield where, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise BadInput(f"{label}:{start}", "broken", "valid CSV", f"{str(error).capitalize()}.") from None
        except UnicodeDecodeError:
            raise _not_utf8(f"{label}:{start}") from None


def _parquet(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024)
        records = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for index, record in enumerate(records):
            yield f"{label}[{index}]", record
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadInput(label, "broken", "a whole Parquet file", str(error).splitlines()[0]) from None


def _object(where: str, record: Any) -> dict:
    if not isinstance(record, dict):
        raise BadInput(where, kind_of(record), "a JSON object")
    return record


def _not_utf8(where: str) -> BadInput:
    return BadInput(where, "not UTF-8", "UTF-8 text", "Convert it, for example by `iconv -t UTF-8`.")


def _dataset_records(path: str, split: str | None, name: str | None, revision: str | None, field: str):
    dataset = _dataset(path, split, name, revision, field)
    for index, record in enumerate(dataset):
        yield f"{path}[{index}]", record


@functools.lru_cache(maxsize=4)  # its fingerprint is asked for before its rows
def _hub_dataset(path: str, split: str | None, name: str | None, revision: str | None):
    import datasets

    # from datasets 4 on it runs no script of the dataset's
    return datasets.load_dataset(path, name, split=split, revision=revision)


def _dataset(path: str, split: str | None, name: str | None, revision: str | None, field: str) -> Any:
    import datasets

    folder = Path(path).expanduser()
    is_saved = folder.is_dir()
    try:
        data = datasets.load_from_disk(folder) if is_saved else _hub_dataset(path, split, name, revision)
    except Exception as error:  # hub, network or disk, of any type: to the user it is bad input
        said = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        if is_saved:
            rule = "a folder that `Dataset.save_to_disk` wrote"
            raise BadInput(f"{field}.path", path, rule, said) from error
        raise BadInput(
            f"{field}.path",
            path,
            "a file that exists, or a dataset of the hub that can be reached",
            f"{said}. Check the name, split and network, or download it and give the file.",
        ) from error
    if not isinstance(data, datasets.DatasetDict):
        return data
    chosen = split or (next(iter(data)) if len(data) == 1 else None)
    if chosen not in data:
        raise BadInput(f"{field}.split", split, f"one of {', '.join(data)}", "Name the split of the dataset.")
    return data[chosen]


def is_missing(value: Any) -> bool:
    """None, or NaN: what a table has where nothing was written."""
    return value is None or (isinstance(value, float) and value != value)


def kind_of(value: Any) -> str:
    """What a value is, in words: errors name it in place of the value."""
    return "missing" if is_missing(value) else _KINDS.get(type(value), type(value).__name__)
