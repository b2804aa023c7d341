"""What an evaluation measured, in memory and as a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput
from bft_ray.places.kept import read_kept, write_kept, write_text

_METRICS, _RECORDS, _SETTINGS, _CHECKSUMS = "metrics.json", "records.jsonl", "settings.json", "sha256.json"


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name (see `bft_ray.metrics`), one record an item: `set`, `id`, numbers, never text; and how each set was measured
    (`bft_ray.evaluate.alike.settings_of`), where that is known."""

    metrics: dict[str, float]
    records: list[dict[str, Any]]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """`metrics.json`, `records.jsonl` and `settings.json`, and their checksums: each whole or not at all."""
        texts = {
            _METRICS: json.dumps(self.metrics, indent=1) + "\n",
            _SETTINGS: json.dumps(self.settings, indent=1) + "\n",
            _RECORDS: "".join(json.dumps(record) + "\n" for record in self.records),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _CHECKSUMS).unlink(missing_ok=True)  # of what lay here before
        for name, text in texts.items():
            write_text(folder / name, text)
        write_kept(folder / _CHECKSUMS, {name: _sha256(text.encode()) for name, text in texts.items()}, indent=1)

    @staticmethod
    def read(folder: Path) -> EvaluationResult:
        """What `write` wrote; an earlier version wrote no checksums.

        Raises:
            BadInput: that is not so, or it is damaged: somebody asks for this evaluation, and there is no other.
        """
        again = "Write one with `bft-ray evaluate CONFIG --out FOLDER`"
        rule = f"an evaluation: {_METRICS} and {_RECORDS}"
        names = [_METRICS, _RECORDS] + [_SETTINGS] * (folder / _SETTINGS).exists()  # earlier versions wrote none
        try:
            contents = {name: (folder / name).read_bytes() for name in names}
        except OSError as error:
            why = f"{Path(error.filename or '').name}: {error.strerror or type(error).__name__}"
            raise BadInput("folder", folder, rule, f"{why}. {again}.") from None
        sums = read_kept(folder / _CHECKSUMS, [_METRICS, _RECORDS])
        changed = [
            name for name in {*names, *(sums or {})} if sums and sums.get(name) != _sha256(contents.get(name, b""))
        ]
        if changed or (sums is None and (folder / _CHECKSUMS).exists()):
            unchanged = f"unchanged since it was written (its checksum in {_CHECKSUMS} differs)"
            known = (_METRICS, _RECORDS, _SETTINGS)  # another name is damage in the checksums themselves
            files = [name if name in known else _CHECKSUMS for name in changed] or [_CHECKSUMS]
            raise BadInput("folder", folder / min(files), unchanged, f"{again}.")
        place = _METRICS
        try:
            metrics = _numbers(json.loads(contents[_METRICS]))
            place = _SETTINGS
            settings = _object(json.loads(contents.get(_SETTINGS, b"{}")))
            records = []
            for number, line in enumerate(contents[_RECORDS].splitlines(), 1):
                place = f"{_RECORDS}:{number}"
                records.append(_record(json.loads(line), metrics))
        except (ValueError, RecursionError):  # of an earlier version, or of somebody else
            raise BadInput("folder", folder / place, rule, f"What is there is no JSON of that form. {again}.") from None
        return EvaluationResult(metrics, records, settings)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(value)
    return value


def _numbers(value: Any) -> dict[str, Any]:
    if not all(isinstance(each, int | float) for each in _object(value).values()):
        raise ValueError(value)
    return value


def _record(value: Any, metrics: Mapping[str, float]) -> dict[str, Any]:
    """A record: text for `set` and `id`, a number in a column that has the name of a metric."""
    record = _object(value)
    name = record.get("set")
    is_named = isinstance(name, str) and isinstance(record.get("id"), str)
    if not is_named or not all(
        isinstance(x, int | float) for column, x in record.items() if f"{name}/{column}" in metrics
    ):
        raise ValueError(value)
    return record


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
