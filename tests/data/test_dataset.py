"""Prepared data: counts, the report, the cache under damage and races, real files."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from bft_ray.config import DataConfig, SourceConfig
from bft_ray.data.dataset import TokenDataset, prepare
from bft_ray.data.report import DataReport, describe_lengths
from bft_ray.errors import BadInput
from tests.support.paths import SHARED
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer


def write_rows(path: Path, rows: list[dict]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def pairs(num: int, length: int = 3) -> list[dict]:
    return [{"id": f"r{i}", "prompt": f"gene {i}?", "completion": "protein " * length + str(i)} for i in range(num)]


def config_for(source: SourceConfig, tmp_path: Path, **fields) -> DataConfig:
    return DataConfig(train=[source], cache_dir=str(tmp_path / "cache"), **fields)


def prepared(sources: list[SourceConfig], tmp_path: Path, tokenizer=None, **fields) -> TokenDataset:
    return prepare(sources, tokenizer or tiny_tokenizer(), config_for(sources[0], tmp_path, **fields))


def error_of(sources: list[SourceConfig], tmp_path: Path, **fields) -> str:
    with pytest.raises(BadInput) as caught:
        prepared(sources, tmp_path, **fields)
    assert not list((tmp_path / "cache").glob("*")), "a failed preparation leaves nothing behind"
    return str(caught.value)


def test_samples(tmp_path):
    tokenizer = tiny_tokenizer()
    data = prepared([write_rows(tmp_path / "r.jsonl", pairs(3))], tmp_path, tokenizer)
    assert (len(data), data.ids) == (3, ["r0", "r1", "r2"])
    for i in range(3):
        tokens, labels = data.tokens(i), data.labels(i)
        assert tokens.dtype == labels.dtype == np.int32 and len(tokens) == len(labels) == data.lengths[i]
        assert tokenizer.decode(tokens) == f"<s>gene {i}?\nprotein protein protein {i}</s>"
        assert labels[0] == -100 and set(labels[labels != tokens]) == {-100}
        assert tokenizer.decode(labels[labels != -100]) == f"protein protein protein {i}</s>"
        assert data.num_supervised[i] == (labels[1:] != -100).sum() and data.num_bytes[i] == 25
    with pytest.raises(ValueError, match=r"read-only"):
        data.tokens(0)[0] = 1


def test_report_counts_every_row(tmp_path):
    rows = [
        {"prompt": "q", "completion": "fits"},
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": "x" * 50},
        {"prompt": "q" * 50, "completion": "out of sight"},
    ]
    source = write_rows(tmp_path / "r.jsonl", rows)
    report = prepared([source], tmp_path, max_length=20).report
    assert report.to_dict()["sources"] == [
        {
            "path": source.path,
            "rows_read": 4,
            "rows_kept": 2,
            "truncated": 1,
            "dropped": {"empty completion": 1, "no supervised token after truncation": 1},
        }
    ]
    assert report.tokens["max"] == 20 and report.tokens["total"] == report.tokens["min"] + 20
    text = report.to_text()
    assert "4 rows read, 2 kept, 1 of them truncated; dropped: 1 empty completion, 1 no supervised token" in text
    assert DataReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report

    dropped = prepared([source], tmp_path, max_length=20, too_long="drop").report.sources[0]
    assert (dropped.rows_kept, dropped.dropped) == (1, {"empty completion": 1, "too long": 2})


def test_describe_lengths():
    described = describe_lengths(np.arange(1, 101))
    assert described == {"min": 1, "p5": 5, "p50": 50, "p95": 95, "max": 100, "mean": 50.5, "total": 5050}


def test_several_sources(tmp_path):
    sources = [write_rows(tmp_path / f"{n}.jsonl", pairs(n)) for n in (2, 3)]
    data = prepared(sources, tmp_path)
    assert data.ids == ["0/r0", "0/r1", "1/r0", "1/r1", "1/r2"]  # both name their rows alike
    assert data.source_index.tolist() == [0, 0, 1, 1, 1]
    assert [source.rows_kept for source in data.report.sources] == [2, 3]


def test_too_long_under_error(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", [*pairs(1), *pairs(1, length=30)])
    message = error_of([source], tmp_path, max_length=24, too_long="error")
    assert ":1 too. Make the ids unique" in message  # two rows of one id come first
    source = write_rows(tmp_path / "r.jsonl", [*pairs(1), {"prompt": "q", "completion": "protein " * 30}])
    message = error_of([source], tmp_path, max_length=24, too_long="error")
    assert message.startswith(f"`{source.path}:2 length` is ") and "at most data.max_length (24) tokens" in message


def test_no_supervised_token_in_the_whole_set(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", [{"prompt": "q", "completion": " "}, {"prompt": "q", "completion": ""}])
    message = error_of([source], tmp_path)
    assert message.startswith(f"`data.train.0` is '{source.path}', but must be a source with a supervised token.")
    assert message.endswith("All 2 rows were dropped: 2 empty completion.")
    source = write_rows(tmp_path / "r.jsonl", [{"prompt": "q", "completion": "protein " * 30}])
    message = error_of([source], tmp_path, max_length=24, too_long="drop")
    assert message.endswith("All 1 rows were dropped: 1 too long. Raise data.max_length.")


def test_empty_set(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", [])
    assert "but must be a source with rows; this one is empty." in error_of([source], tmp_path)


def test_missing_file_and_broken_line(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", pairs(2))
    missing = SourceConfig(path=str(tmp_path / "s.jsonl"))
    assert error_of([source, missing], tmp_path).startswith("`data.train.1.path` is ")
    with open(source.path, "a") as stream:
        stream.write('{"prompt": "q", "completion": "cut o')
    assert error_of([source], tmp_path).startswith(f"`{source.path}:3` is 'broken at column ")


def test_cache_folder_that_cannot_be_written(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", pairs(2))
    config = DataConfig(train=[source], cache_dir=f"{source.path}/below_a_file")
    with pytest.raises(BadInput, match=r"`data.cache_dir` is .* but must be a folder that can be written. Not a dir"):
        prepare([source], tiny_tokenizer(), config)


def entries(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_cache_is_used_again_and_keyed_by_content(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", pairs(4))
    first = prepared([source], tmp_path)
    made = os.stat(first.folder / "tokens.bin").st_mtime_ns
    again = prepared([source], tmp_path)
    assert again.fingerprint == first.fingerprint and os.stat(again.folder / "tokens.bin").st_mtime_ns == made
    (tmp_path / "elsewhere").mkdir()
    moved = write_rows(tmp_path / "elsewhere" / "r.jsonl", pairs(4))
    assert prepared([moved], tmp_path).fingerprint == first.fingerprint
    assert prepared([source.model_copy(update={"ratio": 2.0})], tmp_path).fingerprint == first.fingerprint

    others = [
        prepared([source], tmp_path, max_length=64),
        prepared([source], tmp_path, too_long="drop"),
        prepared([source], tmp_path, tiny_tokenizer(CHATML)),
        prepared([source.model_copy(update={"limit": 3})], tmp_path),
        prepared([write_rows(tmp_path / "r.jsonl", pairs(5))], tmp_path),
    ]
    assert len({first.fingerprint, *(data.fingerprint for data in others)}) == 6 == len(entries(tmp_path))


@pytest.mark.parametrize(
    "name", ["tokens.bin", "supervised.bin", "samples.npy", "ids.json", "meta.json", "sha256.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_cache_is_made_again(tmp_path, caplog, name, damage):
    source = write_rows(tmp_path / "r.jsonl", pairs(4))
    data = prepared([source], tmp_path)
    before = [data.tokens(i).tolist() for i in range(4)]
    file = data.folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x80  # one bit
    file.unlink()
    if damage != "remove":
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        again = prepared([source], tmp_path)
    assert "cannot be used" in caplog.text and "tokenising again" in caplog.text
    assert [again.tokens(i).tolist() for i in range(4)] == before
    assert entries(tmp_path) == [data.fingerprint]  # nothing left beside it
    TokenDataset(again.folder)


def _prepare_and_report(path: str, cache: str, barrier, results) -> None:
    config = DataConfig(train=[SourceConfig(path=path)], cache_dir=cache)
    tokenizer = tiny_tokenizer()
    barrier.wait(60)
    data = prepare(config.train, tokenizer, config)
    results.put((data.fingerprint, int(data.lengths.sum())))


def test_two_processes_at_once(tmp_path):
    source = write_rows(tmp_path / "r.jsonl", pairs(200))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (source.path, str(tmp_path / "cache"), barrier, results)
    processes = [context.Process(target=_prepare_and_report, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=180) for _ in processes]
    for process in processes:
        process.join(60)
    assert found[0] == found[1] and entries(tmp_path) == [found[0][0]]


def test_pickles_as_its_path(tmp_path):
    data = prepared([write_rows(tmp_path / "r.jsonl", pairs(100))], tmp_path)
    packed = pickle.dumps(data)
    assert len(packed) < 500
    assert pickle.loads(packed).tokens(99).tolist() == data.tokens(99).tolist()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not there")
def test_real_rows(tmp_path):
    sources = [
        SourceConfig(path=str(SHARED / "data/gene_interaction/train.jsonl")),
        SourceConfig(path=str(SHARED / "data/medical_qa/train.jsonl"), limit=500),
        SourceConfig(path=str(SHARED / "data/general/text_validation.jsonl")),
    ]
    data = prepared(sources, tmp_path, max_length=1024)
    lines = Path(sources[0].path).read_bytes().count(b"\n")
    assert [source.rows_read for source in data.report.sources] == [lines, 500, 31]
    assert all(s.rows_read == s.rows_kept + sum(s.dropped.values()) for s in data.report.sources)
    assert sum(source.rows_kept for source in data.report.sources) == len(data)
    assert data.lengths.max() == 1024 and data.num_supervised.min() >= 1
    whole = np.flatnonzero((data.lengths < 1024) & (data.source_index == 0))
    with open(sources[0].path, encoding="utf-8") as stream:
        num_bytes = {row["id"]: len(row["completion"].encode()) for row in map(json.loads, stream)}
    assert [data.num_bytes[i] for i in whole] == [num_bytes[data.ids[i].removeprefix("0/")] for i in whole]


def test_rows_that_ask_nothing_are_told(tmp_path):
    source = write_rows(
        tmp_path / "r.jsonl", [{"id": str(i), "a": "" if i else "q", "b": " ", "c": "x"} for i in range(3)]
    )
    source = source.model_copy(update={"columns": {"prompt": "Case: {a} {b}", "completion": "{c}"}})
    report = prepared([source], tmp_path).report
    assert report.notes == [f"{source.path}: 2 of 3 rows have an empty question: their answers are learned without one"]
    assert prepared([write_rows(tmp_path / "s.jsonl", pairs(3))], tmp_path).report.notes == []
