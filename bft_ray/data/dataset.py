"""Sources -> tokens on disk, made once and found again by their content.

A cache entry is a folder named by the sha256 of all that decides its content: the bytes of the sources, the
tokenizer, the settings. It is written beside its final place and renamed, so that several processes may
prepare the same data at once, and its checksums are verified whenever it is opened, because a flipped bit
would load without a word.

    tokens.bin      int32, little-endian, all samples end to end
    supervised.bin  one byte a token: 1 where the token is supervised
    samples.npy     one record a sample: length, num_supervised, num_bytes, source
    ids.json        ids of the samples
    groups.json     groups of the samples (null where a row has none)
    keys.json       `row_key` of the samples
    meta.json       fingerprint, report
    sha256.json     checksums of the others
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import DataConfig, SourceConfig
from bft_ray.data.chat import uses_date
from bft_ray.data.passing import passing_folder
from bft_ray.data.read_as import note_paths
from bft_ray.data.report import DataReport, SourceReport, describe_lengths
from bft_ray.data.rows import BadRow, Row, asks_nothing, read_rows, row_key
from bft_ray.data.tables import content_hash
from bft_ray.data.tokenise import (
    Encoded,
    date_of,
    encode_batch,
    notes_of,
    shorten,
    tokenizer_content,
    uses_chat,
)
from bft_ray.errors import BadInput
from bft_ray.places.cache import cache_folder, require_local
from bft_ray.places.modes import settle
from bft_ray.places.scratch import scratch
from bft_ray.waits import waiting

VERSION = 3  # raise it when the same input would give other tokens or files
ROWS_A_CALL = 256  # rows tokenised by one call: enough to be fast, few enough to hold
SAMPLE = np.dtype([("length", "<i4"), ("num_supervised", "<i4"), ("num_bytes", "<i8"), ("source", "<i4")])
IGNORED = -100  # label of a position without loss
_TOO_LONG, _CUT_OFF = (
    "too long",
    "no supervised token after truncation",
)  # reasons that a larger data.max_length removes
log = logging.getLogger(__name__)


class TokenDataset:
    """Tokenised samples, memory-mapped and read-only. It pickles as its path.

    Attributes:
        ids: id of each sample (with `SOURCE/` before it, counted from 0, where there are several sources).
        lengths: tokens a sample, int32.
        num_supervised: supervised tokens a sample after the shift, int32, at least 1.
        groups: what related rows share, such as a patient; None for a row without one.
        keys: of the rows: equal where two rows differ at most in Unicode form, case and white space.
        num_bytes: UTF-8 bytes of a sample's supervised text, int64.
        source_index: which source a sample comes from, int32.
        fingerprint: sha256 of source content, tokenizer and settings, hex.
        report: what became of the rows.
    """

    def __init__(self, folder: str | Path):
        """Open a folder that `prepare` made; raises ValueError or OSError when it is damaged."""
        self.folder = Path(folder)
        for name, checksum in json.loads((self.folder / "sha256.json").read_text()).items():
            if _sha256(self.folder / name) != checksum:
                raise ValueError(f"{name} is damaged")
        meta = json.loads((self.folder / "meta.json").read_text())
        self.fingerprint: str = meta["fingerprint"]
        self.report = DataReport.from_dict(meta["report"])
        self.ids: list[str] = json.loads((self.folder / "ids.json").read_text())
        self.groups: list[str | None] = json.loads((self.folder / "groups.json").read_text())
        self.keys: list[str] = json.loads((self.folder / "keys.json").read_text())
        samples = np.load(self.folder / "samples.npy", allow_pickle=False)
        self.lengths: np.ndarray = samples["length"].copy()
        self.num_supervised: np.ndarray = samples["num_supervised"].copy()
        self.num_bytes: np.ndarray = samples["num_bytes"].copy()
        self.source_index: np.ndarray = samples["source"].copy()
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._tokens = np.memmap(self.folder / "tokens.bin", dtype="<i4", mode="r")
        self._supervised = np.memmap(self.folder / "supervised.bin", dtype=np.bool_, mode="r")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def samples_per_source(self) -> tuple[int, ...]:
        """Samples of each source, in order: at least one each."""
        return tuple(np.bincount(self.source_index).tolist())

    def __reduce__(self):
        return TokenDataset, (str(self.folder),)

    def tokens(self, index: int) -> np.ndarray:
        """Token ids of a sample, int32 [T]."""
        return self._tokens[self._starts[index] : self._starts[index + 1]]

    def labels(self, index: int) -> np.ndarray:
        """The token where it is supervised, else -100, int32 [T]; not shifted; position 0 is always -100."""
        supervised = self._supervised[self._starts[index] : self._starts[index + 1]]
        return np.where(supervised, self.tokens(index), np.int32(IGNORED))


def prepare(sources: list[SourceConfig], tokenizer: Any, config: DataConfig, field: str = "data.train") -> TokenDataset:
    """The tokenised samples of all sources in order, from the cache when the same input was prepared before.

    Ratios are left to the `BatchPlan`: every row is tokenised once. Samples without a supervised token are
    dropped and counted in the report.

    Args:
        field: dotted name of the sources in the config, for errors.

    Raises:
        BadInput: no such file, a malformed row, a sample longer than `max_length` under `too_long=error`, a
            source that leaves no sample, a cache folder that cannot be written.
    """
    uses_chat(tokenizer, config)  # a missing template is reported before anything is read
    cache = _cache_folder(config)
    with waiting(f"reading {field}"):
        fingerprint = _fingerprint(sources, tokenizer, config, field)
        final = cache / fingerprint
        if (found := _open(final)) is not None:
            return _read_as(found, sources)
    with waiting(f"tokenising {field}"), scratch("data", cache) as temporary:
        _write(temporary, fingerprint, sources, tokenizer, config, field)
        settle(temporary)  # the full text of the rows, as ids
        return _read_as(_publish(temporary, final), sources)


# --- cache ------------------------------------------------------------------------------------------------


def _cache_folder(config: DataConfig) -> Path:
    require_local("data.cache_dir", config.cache_dir or "")
    if config.keep_tokens and not config.cache_dir:
        return cache_folder()
    folder = Path(config.cache_dir or tempfile.gettempdir()).expanduser()
    try:
        if not config.keep_tokens:
            return passing_folder(config.cache_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = f"{error.strerror}. Set data.cache_dir to another folder."
        raise BadInput("data.cache_dir", str(folder), "a folder that can be written", remedy) from None
    return folder


def _fingerprint(sources: list[SourceConfig], tokenizer: Any, config: DataConfig, field: str) -> str:
    parts: dict[str, Any] = {
        "version": VERSION,
        "tokenizer": hashlib.sha256(tokenizer_content(tokenizer).encode()).hexdigest(),
        "settings": config.model_dump(include={"template", "max_length", "too_long"}),
        "date": str(date_of(config)) if uses_chat(tokenizer, config) and uses_date(tokenizer) else None,
        "sources": [
            {**_identity(source), "content": content_hash(source, f"{field}.{index}")}
            for index, source in enumerate(sources)
        ],
    }
    for source in parts["sources"]:  # the folder does not matter; the name does: ids are made of it
        source["path"] = Path(source["path"]).name
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _identity(source: SourceConfig) -> dict[str, Any]:
    """The settings of a source that decide its rows; without wrong answers as if there were no such setting."""
    tree = source.model_dump(exclude={"ratio"})
    if not source.wrong.share:
        del tree["wrong"]
    return tree


def _open(folder: Path) -> TokenDataset | None:
    """The cache entry, or None when there is none or it is damaged."""
    if not folder.exists():
        return None
    try:
        return TokenDataset(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("The tokenised data in %s cannot be used (%s): tokenising again.", folder, error)
        return None


def _read_as(dataset: TokenDataset, sources: Sequence[SourceConfig]) -> TokenDataset:
    """With the paths of now in its report: an earlier reader may have known other ones."""
    for report, source in zip(dataset.report.sources, sources, strict=True):
        report.path = source.path
    note_paths(dataset.folder, [source.path for source in sources])
    return dataset


def _publish(temporary: Path, final: Path) -> TokenDataset:
    """Move the finished entry to its place, unless another process was there first with a whole one."""
    while True:
        try:
            os.rename(temporary, final)
        except OSError:
            if not final.exists():
                raise
        if (dataset := _open(final)) is not None:
            return dataset
        if not temporary.exists():
            rule = "a folder that gives back what was written to it"
            raise BadInput("data.cache_dir", str(final.parent), rule)
        with scratch("damaged", final.parent) as aside, contextlib.suppress(FileNotFoundError):
            os.rename(final, aside)  # unless another process took it away


def _write(
    folder: Path,
    fingerprint: str,
    sources: list[SourceConfig],
    tokenizer: Any,
    config: DataConfig,
    field: str,
) -> None:
    reports = [SourceReport(source.path) for source in sources]
    ids: list[str] = []
    groups: list[str | None] = []
    keys: list[str] = []
    samples: list[tuple[int, int, int, int]] = []
    num_blank = [0] * len(sources)
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "supervised.bin").open("wb") as supervised:
        for index, (source, report) in enumerate(zip(sources, reports, strict=True)):
            prefix = f"{index}/" if len(sources) > 1 else ""
            for row, encoded in _samples(source, report, tokenizer, config, f"{field}.{index}"):
                tokens.write(np.asarray(encoded.input_ids, dtype="<i4").tobytes())
                supervised.write(np.asarray(encoded.supervised, dtype=np.bool_).tobytes())
                ids.append(prefix + row.id)
                groups.append(row.group)
                keys.append(row_key(row))
                num_blank[index] += asks_nothing(row)
                samples.append((len(encoded.input_ids), sum(encoded.supervised), encoded.num_bytes, index))
            _check_not_empty(report, f"{field}.{index}")
    table = np.array(samples, dtype=SAMPLE)
    np.save(folder / "samples.npy", table)
    for name, values in (("ids", ids), ("groups", groups), ("keys", keys)):
        (folder / f"{name}.json").write_text(json.dumps(values))
    notes = notes_of(tokenizer, config)
    notes += [
        f"{report.path}: {blank:,} of {report.rows_kept:,} rows have an empty question: their answers are learned without one"
        for report, blank in zip(reports, num_blank, strict=True)
        if blank
    ]
    for note in notes:
        log.warning("%s", note)
    tokens_each, supervised_each = (describe_lengths(table[name]) for name in ("length", "num_supervised"))
    meta = {"fingerprint": fingerprint, "report": DataReport(reports, tokens_each, supervised_each, notes).to_dict()}
    (folder / "meta.json").write_text(json.dumps(meta))
    checksums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    (folder / "sha256.json").write_text(json.dumps(checksums))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- rows to samples --------------------------------------------------------------------------------------


def _samples(
    source: SourceConfig, report: SourceReport, tokenizer: Any, config: DataConfig, field: str
) -> Iterator[tuple[Row, Encoded]]:
    """The samples of a source that are kept; fills its report."""
    rows = _counted(_with_progress(read_rows(source, field), source.path), report)
    while batch := list(itertools.islice(rows, ROWS_A_CALL)):
        for row, encoded in zip(batch, encode_batch(batch, tokenizer, config), strict=True):
            fitted = _fit(row, encoded, tokenizer, config)
            if fitted is None:
                report.drop(_TOO_LONG)
            elif not any(fitted.supervised):
                report.drop("no supervised token" if fitted is encoded else _CUT_OFF)
            else:
                report.rows_kept += 1
                report.truncated += fitted is not encoded
                yield row, fitted


def _counted(rows: Iterable[Row | BadRow], report: SourceReport) -> Iterator[Row]:
    for row in rows:
        report.rows_read += 1
        if isinstance(row, BadRow):
            report.drop(row.reason)
        else:
            yield row


def _fit(row: Row, encoded: Encoded, tokenizer: Any, config: DataConfig) -> Encoded | None:
    """The sample within `max_length`, or None where it is dropped for its length."""
    length = len(encoded.input_ids)
    if length <= config.max_length or config.too_long == "truncate":
        return shorten(encoded, config.max_length, tokenizer)
    if config.too_long == "drop":
        return None
    raise BadInput(
        f"{row.where} length",
        length,
        f"at most data.max_length ({config.max_length}) tokens",
        "Raise data.max_length, or set data.too_long to truncate or drop.",
    )


def _check_not_empty(report: SourceReport, field: str) -> None:
    if report.rows_kept:
        return
    if not report.rows_read:
        raise BadInput(field, report.path, "a source with rows; this one is empty")
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.dropped.items()))
    is_cut = not report.dropped.keys().isdisjoint((_TOO_LONG, _CUT_OFF))
    raise BadInput(
        field,
        report.path,
        "a source with a supervised token",
        f"All {report.rows_read} rows were dropped: {reasons}." + (" Raise data.max_length." if is_cut else ""),
    )


def _with_progress(rows: Iterable[Row | BadRow], path: str) -> Iterable[Row | BadRow]:
    from tqdm import tqdm

    return tqdm(rows, desc=f"tokenise {path}", unit=" rows", disable=None)  # None: only on a terminal
