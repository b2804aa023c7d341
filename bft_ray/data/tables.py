"""A source, whatever it is (a file, a saved folder, a dataset of the hub) -> its records, each with its place; and its hash."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from bft_ray.config import SourceConfig
from bft_ray.data.files import READERS
from bft_ray.data.hub import looks_like_hub_id, open_dataset
from bft_ray.data.values import STARTER
from bft_ray.errors import BadInput, did_you_mean

_SAVE_AS = {suffix: "Save the sheet as CSV (UTF-8), one file for each sheet." for suffix in (".xlsx", ".xls", ".ods")}


@contextlib.contextmanager
def naming(field: str) -> Iterator[str]:
    """Errors of a table within name `field` itself, where that is its path; of a source they name its `.path`."""
    try:
        yield field
    except BadInput as error:
        raise BadInput(error.field.replace(f"{field}.path", field), error.value, error.rule, error.remedy) from None


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
        reader = READERS.get(file.suffix.lower())
        if reader is None:
            is_packed = file.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst")
            remedy = "Unpack it." if is_packed else _SAVE_AS.get(file.suffix.lower(), "Rename it by what is in it.")
            raise BadInput(f"{field}.path", path, f"a file that ends in {', '.join(READERS)}", remedy)
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
        hint = did_you_mean(path, known) or f"There are: {', '.join(known)}."
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
    return looks_like_hub_id(path) and not path.lower().endswith(tuple(READERS))


def _no_such_file(path: str, field: str) -> BadInput:
    file = Path(path).expanduser()
    beside = [f.name for f in file.parent.glob("*")] if file.parent.is_dir() else []
    hint = did_you_mean(file.name, beside) or f"Paths are relative to {Path.cwd()}."
    return BadInput(f"{field}.path", path, "a file or folder that exists, a hub id, or starter:DOMAIN/SPLIT", hint)
