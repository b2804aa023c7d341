"""A file of JSON lines, JSON, CSV, TSV or Parquet -> its records, each with its place."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bft_ray.data.values import kind_of
from bft_ray.errors import BadInput

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_WRAPPERS = ("data", "rows", "examples", "items", "records", "samples", "train")  # of the list in an object
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # JSON's way to write half of a character beyond 65,535
_TWICE = "Rename all but one of them, or remove them."
log = logging.getLogger(__name__)


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
                    if len(header) == 1:
                        remedy += " If the first line is a title, remove what is above the line of names."
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


#: suffix, in lower case -> reader of (file, its name in errors), which gives each record with its place
READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}


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
