"""Rows of a user's own, written as files."""

from __future__ import annotations

import csv
import json
from pathlib import Path


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def questions(num: int) -> list[list[str]]:
    return [[f"Is gene {n} a kinase?", f"Answer number {n} " + "word " * (n % 30)] for n in range(num)]
