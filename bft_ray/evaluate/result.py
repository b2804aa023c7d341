"""What an evaluation measured, in memory and as a folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput
from bft_ray.places.kept import read_kept, write_kept, write_text

_METRICS, _RECORDS, _CHECKSUMS = "metrics.json", "records.jsonl", "sha256.json"


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics by name (see `bft_ray.metrics`), one record an item: `set`, `id`, numbers, never text."""

    metrics: dict[str, float]
    records: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        """`metrics.json` and `records.jsonl`, and their checksums: each whole or not at all."""
        texts = {
            _METRICS: json.dumps(self.metrics, indent=1) + "\n",
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
        try:
            contents = {name: (folder / name).read_bytes() for name in (_METRICS, _RECORDS)}
        except OSError as error:
            why = f"{Path(error.filename or '').name}: {error.strerror or type(error).__name__}"
            rule = f"an evaluation: {_METRICS} and {_RECORDS}"
            raise BadInput("folder", folder, rule, f"{why}. {again}.") from None
        sums = read_kept(folder / _CHECKSUMS, list(contents))
        changed = [name for name, content in contents.items() if sums and sums[name] != _sha256(content)]
        if changed or (sums is None and (folder / _CHECKSUMS).exists()):
            rule = f"unchanged since it was written (its checksum in {_CHECKSUMS} differs)"
            raise BadInput("folder", folder / (changed or [_CHECKSUMS])[0], rule, f"{again}.")
        name = _METRICS
        try:
            metrics = json.loads(contents[name])
            name = _RECORDS
            records = [json.loads(line) for line in contents[name].splitlines()]
        except ValueError:  # of an earlier version, or of somebody else
            rule = f"an evaluation: {_METRICS} and {_RECORDS}"
            raise BadInput("folder", folder / name, rule, f"What is there is no JSON. {again}.") from None
        return EvaluationResult(metrics, records)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
