"""Any table -> its records, each with its place; and the hash of its content."""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any
from uuid import UUID

from bft_ray.config import SourceConfig
from bft_ray.data.hub import looks_like_hub_id, open_dataset
from bft_ray.errors import BadInput

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # in upper or lower case
STARTER = "starter:"
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_WRAPPERS = ("data", "rows", "examples", "items", "records", "samples", "train")  # of the list in an object
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # JSON's way to write half of a character beyond 65,535
_SAVE_AS = {suffix: "Save the sheet as CSV (UTF-8), one file for each sheet." for suffix in (".xlsx", ".xls", ".ods")}
_TWICE = "Rename all but one of them, or remove them."
log = logging.getLogger(__name__)
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
        BadInput: no such file, or text that cannot be parsed; names the file and the line. A split, configuration or
            revision of a file, which is read whole.
    """
    file = Path(resolve_path(path, f"{field}.path")).expanduser()
    if not file.exists() and not names_a_hub_dataset(path):
        raise _no_such_file(path, field)
    if file.is_file():
        reader = _READERS.get(file.suffix.lower())
        if reader is None:
            is_packed = file.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst")
            remedy = "Unpack it." if is_packed else _SAVE_AS.get(file.suffix.lower(), "Rename it by what is in it.")
            raise BadInput(f"{field}.path", path, f"a file that ends in {', '.join(SUFFIXES)}", remedy)
        for asked, value in (("split", split), ("config_name", name), ("revision", revision)):
            if value is not None:
                remedy = "Take it out, and give the file of each split its own source."
                raise BadInput(f"{field}.{asked}", value, f"null where the path is a file, such as {path}", remedy)
        records = reader(file, path)
    else:
        records = ((f"{path}[{i}]", row) for i, row in enumerate(open_dataset(path, split, name, revision, field)))
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
        if not names_a_hub_dataset(source.path):
            raise _no_such_file(source.path, field)
        dataset = open_dataset(source.path, source.split, source.config_name, source.revision, field)
        digest.update(dataset._fingerprint.encode())
        return digest.hexdigest()
    for part in sorted(file.rglob("*")) if file.is_dir() else [file]:
        if part.is_file():
            digest.update(str(part.relative_to(file)).encode())
            with part.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def names_a_hub_dataset(path: str) -> bool:
    """Whether a path that is not there is the id of a dataset on the hub."""
    return looks_like_hub_id(path) and not path.lower().endswith(SUFFIXES)


def _no_such_file(path: str, field: str) -> BadInput:
    file = Path(path).expanduser()
    beside = [f.name for f in file.parent.glob("*")] if file.parent.is_dir() else []
    near = difflib.get_close_matches(file.name, beside, 1)
    hint = f"Did you mean `{near[0]}`?" if near else f"Paths are relative to {Path.cwd()}."
    return BadInput(f"{field}.path", path, "a file or folder that exists, a hub id, or starter:DOMAIN/SPLIT", hint)


def _parsed(text: str, where: str) -> Any:
    """JSON; an object that has a name twice, of which the last one would win, is refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadInput(
                where, f"an object with `{twice[:40]}` twice", "one with each name once", "Keep one of them."
            )
        return made

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, BadInput):
        raise
    except ValueError:  # of Python's `int`
        what, remedy = f"a number of more than {sys.get_int_max_str_digits():,} digits", "Write it as text, in quotes."
        raise BadInput(where, what, "numbers that a program can read", remedy) from None
    except RecursionError:
        what, remedy = (
            "lists or objects within each other, hundreds deep",
            "Remove the brackets that do not belong there.",
        )
        raise BadInput(where, what, "a row of fields", remedy) from None


def _jsonl(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{label}:{number}"
            try:
                record = _parsed(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip(), where)
            except json.JSONDecodeError as error:
                remedy = f"{error.msg}.{_hint_of_line(line, number)}"
                raise BadInput(
                    where, f"broken at column {error.colno}", "one whole JSON object on a line", remedy
                ) from None
            except UnicodeDecodeError:
                raise _not_utf8(where) from None
            if _HALF.search(line):
                _check_characters(where, record)
            yield where, _object(where, record)


def _hint_of_line(line: bytes, number: int) -> str:
    """What to do about a line that is no JSON."""
    if line.rstrip().endswith(b","):
        return " Remove the comma at the end of each line."
    if number == 1 and line.startswith(b"["):
        return " It seems to be one list: name the file .json."
    return "" if line.endswith(b"\n") else " The last line has no line end: the file may be cut off."


def _json(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
        records = _parsed(text, label)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_object(text[: error.pos]):  # one object a line, in spite of its name
            _tell(f"{label} holds one object a line: it is read as JSON Lines")
            yield from _jsonl(file, label)
            return
        where = f"{label}:{error.lineno}"
        raise BadInput(where, f"broken at column {error.colno}", "valid JSON", f"{error.msg}.") from None
    except UnicodeDecodeError:
        raise _not_utf8(label) from None
    inner, records = _unwrapped(label, records)
    has_halves = _HALF.search(text.encode()) is not None
    for index, record in enumerate(records):
        where = f"{label}{inner}[{index}]"
        if has_halves:
            _check_characters(where, record)
        yield where, _object(where, record)


def _unwrapped(label: str, records: Any) -> tuple[str, list]:
    """(place, list) of the rows: the whole, or what an object holds under a name that means rows, if there is one such name."""
    if isinstance(records, list):
        return "", records
    lists = {name: value for name, value in records.items() if isinstance(value, list)} if _is_dict(records) else {}
    of_rows = [name for name, value in lists.items() if value and all(map(_is_dict, value))]
    if len(lists) == 1 and of_rows and of_rows[0] in _WRAPPERS:
        _tell(f"{label}: its rows are those of `{of_rows[0]}`")
        return f".{of_rows[0]}", lists[of_rows[0]]
    remedy = "Write it row by row, as in [{...}, {...}]."
    if of_rows:
        remedy = f"Extract the list, for example by `jq '.{of_rows[0]}' FILE.json > ROWS.json`."
    elif lists or (_is_dict(records) and records and all(map(_is_dict, records.values()))):
        remedy = 'It seems to hold columns: write it row by row, as pandas does by `to_json(FILE, orient="records")`.'
    raise BadInput(label, kind_of(records), "a list of objects, or one object a line", remedy)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def _csv(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(2**31 - 1)  # the default of 131,072 characters is less than an article
    start = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = _delimiter(stream.readline(), file, label)
            stream.seek(0)
            reader = csv.reader(stream, strict=True, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            for name in {name for name in header if name and header.count(name) > 1}:
                raise BadInput(f"{label}:1 {name}", f"the name of {header.count(name)} columns", "that of one", _TWICE)
            start = reader.line_num + 1
            for cells in reader:
                where, start = f"{label}:{start}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    remedy = "Put cells that hold the separator between quotes."
                    if len(cells) < len(header):
                        remedy = "Add the cells that are missing, or remove the row: the file may be cut off."
                    rule = f"one of {len(header)}, as the header"
                    raise BadInput(where, f"a row of {len(cells)} cells ({_DELIMITERS[delimiter]})", rule, remedy)
                yield where, _named_cells(where, header, cells)
    except csv.Error as error:
        remedy = f"{str(error).capitalize()}. Put such a cell between quotes, with each quote in it twice."
        raise BadInput(f"{label}:{start}", "broken", "valid CSV", remedy) from None
    except UnicodeDecodeError:  # raised for a block of lines
        raise _not_utf8(f"{label}:{_first_not_utf8(file)}") from None


def _first_not_utf8(file: Path) -> int:
    """Number of the line, from 1."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _delimiter(header: str, file: Path, label: str) -> str:
    """What separates the columns: that of the three which gives the header most of them."""
    found = {delimiter: len(next(csv.reader([header], delimiter=delimiter), [])) for delimiter in _DELIMITERS}
    best = max(found, key=lambda delimiter: found[delimiter])  # commas in a tie
    if file.suffix.lower() == ".tsv" and found[best] == 1:
        best = "\t"
    if best != ("\t" if file.suffix.lower() == ".tsv" else ","):
        _tell(f"{label}: its columns are separated by {_DELIMITERS[best]}")
    return best


@functools.lru_cache(maxsize=1024)
def _tell(line: str) -> None:
    log.warning("%s", line)  # once a process, however often a file is read


def _named_cells(where: str, header: list[str], cells: list[str]) -> dict[str, str]:
    """A row. Columns without a name are left out: empty ones as a spreadsheet adds them, and numbers of rows."""
    for column, (name, cell) in enumerate(zip(header, cells, strict=True), 1):
        if not name and cell.strip() and not cell.strip().isdigit():
            remedy = "Name it in the header, or empty it."
            if sum(map(bool, header)) <= 1 < sum(map(bool, cells)):  # such as a title, or Excel's `sep=,`
                remedy = "The first line seems to be a title: remove what is above the line of names."
            raise BadInput(f"{where} column {column}", "filled", "empty, because it has no name", remedy)
    return {name: cell for name, cell in zip(header, cells, strict=True) if name}


def _parquet(file: Path, label: str) -> Iterator[tuple[str, dict]]:
    import pyarrow
    import pyarrow.parquet

    index = -1
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        names = opened.schema_arrow.names
        for name in {name for name in names if names.count(name) > 1}:  # of a record the last one would stay
            raise BadInput(f"{label} {name}", f"the name of {names.count(name)} columns", "that of one", _TWICE)
        batches = opened.iter_batches(batch_size=1024)
        records = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for index, record in enumerate(records):
            yield f"{label}[{index}]", record
    except UnicodeDecodeError:
        raise _not_utf8(f"{label}[{index + 1}] or after it") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadInput(label, "broken", "a whole Parquet file", str(error).splitlines()[0]) from None


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


def _object(where: str, record: Any) -> dict:
    if not isinstance(record, dict):
        remedy = "Write each row as an object of names and values, as in {...}; a list of rows is a .json file."
        raise BadInput(where, kind_of(record), "a JSON object", remedy)
    return record


def _check_characters(where: str, value: Any, inner: str = "") -> None:
    """Refuse half a character: it can be neither tokenised nor written."""
    if isinstance(value, str):
        if found := re.search(r"[\ud800-\udfff]", value):
            half = f"half a character (U+{ord(found[0]):X})"
            remedy = "A text was cut within an emoji or the like: cut it elsewhere, or remove the escape."
            raise BadInput(f"{where}{inner}", half, "text of whole characters", remedy)
    elif isinstance(value, dict):
        for name, each in value.items():
            _check_characters(where, each, f" {name}" if not inner else f"{inner}.{name}")
            _check_characters(where, name, " (a name)")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            _check_characters(where, each, f"{inner}.{index}")


def _not_utf8(where: str) -> BadInput:
    remedy = "Convert it: `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`, or -f UTF-16 or whatever wrote it."
    return BadInput(where, "not UTF-8", "UTF-8 text", remedy)


def is_missing(value: Any) -> bool:
    """None, or NaN: what a table has where nothing was written."""
    return value is None or (isinstance(value, float) and value != value)


def kind_of(value: Any) -> str:
    """What a value is, in words: errors name it in place of the value."""
    return "missing" if is_missing(value) else _KINDS.get(type(value), type(value).__name__)


def as_name(value: Any, where: str) -> str:
    """An id or group as text: a blank stands for tabs and line ends. It is printed, and goes into records and files of results.

    Raises:
        BadInput: a list or object, which may hold what must not be printed; characters that steer a terminal.
    """
    if not isinstance(value, str | int | float | Decimal | date | UUID):
        remedy = "Take a column of short texts or numbers, or leave it out."
        raise BadInput(where, kind_of(value), "text or a number", remedy)
    text = re.sub(r"[\t\n\r\v\f]+", " ", str(value))
    if control := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text):
        what, remedy = f"text with the control character U+{ord(control[0]):04X}", "Remove it."
        raise BadInput(where, what, "text of characters that can be printed", remedy)
    return text


def row_id(given: Any, where: str) -> str:
    """The id of a row: its own, or else its place without folders. All ids of samples and items come from here."""
    if given not in (None, ""):
        return as_name(given, f"{where} id")
    return where if where.startswith(STARTER) else where.rsplit("/", 1)[-1]


class Ids:
    """The ids of a table's rows, each with its place, so that the second one of a name is refused."""

    def __init__(self, column: str = "id", remedy: str = "Make the ids unique."):
        self._column, self._remedy = column, remedy
        self._places: dict[str, str] = {}

    def add(self, name: str, where: str) -> None:
        """Note the id of the row at `where`.

        Raises:
            BadInput: another row has it.
        """
        if name in self._places:
            raise BadInput(f"{where} {self._column}", name, f"but is at {self._places[name]} too", self._remedy)
        self._places[name] = where
