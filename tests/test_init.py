"""`bft-ray init`: a config from a user's own file that loads and trains as it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bft_ray.config import load_config
from bft_ray.data.rows import Row, read_rows
from bft_ray.errors import BadConfig, BadInput
from bft_ray.operate.init import domain_of, guess_columns, split, write_config


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def questions(num: int) -> list[list[str]]:
    return [[f"Is gene {n} a kinase?", f"Answer number {n} " + "word " * (n % 30)] for n in range(num)]


def rows_of(source) -> list[Row]:
    return [row for row in read_rows(source) if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"prompt": "a", "completion": "b"}, {}),
        ({"Question": "a", "Answer": "b", "pmid": 1}, {"prompt": "Question", "completion": "Answer"}),
        ({"instruction": "a", "output": "b"}, {"prompt": "instruction", "completion": "output"}),
        ({"input": "a", "output": "b"}, {"prompt": "input", "completion": "output"}),
        ({"instruction": "a", "response": "b"}, {"prompt": "instruction", "completion": "response"}),
        ({"messages": [{"role": "user", "content": "a"}]}, {}),
        ({"conversations": [{"role": "user", "content": "a"}]}, {"messages": "conversations"}),
        ({"id": 1, "abstract": "a"}, {"text": "abstract"}),
    ],
)
def test_columns_are_guessed(record, columns):
    assert guess_columns(record, Path("x.jsonl")) == columns


def test_columns_that_mean_nothing_are_listed_with_the_option_that_maps_them(tmp_path):
    path = write_csv(tmp_path / "odd.csv", ["case", "finding"], [["a", "b"], ["c", "d"]])
    with pytest.raises(BadInput) as caught:
        write_config(path, tmp_path / "bft.yaml")
    assert "columns case, finding" in str(caught.value) and "data.train.0.columns" in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_csv_becomes_a_config_that_loads_and_a_split_that_is_whole(tmp_path):
    data = write_csv(tmp_path / "My Genes_train.csv", ["Question", "Answer"], questions(200))
    out = write_config(data, tmp_path / "sub" / "bft.yaml")
    config = load_config(out)
    assert config.domain == "my_genes" and config.data.max_length == 256
    train, validation = rows_of(config.data.train[0]), rows_of(config.data.validation[0])
    assert (len(train), len(validation)) == (180, 20)
    assert {(row.prompt, row.completion) for row in train + validation} == {tuple(row) for row in questions(200)}
    assert not {row.prompt for row in train} & {row.prompt for row in validation}
    assert "20 of the 200 rows" in out.read_text()
    first = out.read_text()
    with pytest.raises(BadInput, match="--force"):
        write_config(data, out)
    assert write_config(data, out, force=True).read_text() == first  # the same file, the same split


def test_every_field_is_commented(tmp_path):
    data = write_csv(tmp_path / "x.csv", ["question", "answer"], questions(20))
    lines = write_config(data, tmp_path / "bft.yaml").read_text().splitlines()
    values = [line for line in lines if ": " in line and not line.startswith("#") and 'path: "/' not in line]
    bare = [line for line in values if "  # " not in line and not line.lstrip().startswith("- {path")]
    assert len(values) > 15 and bare == []


def test_a_validation_file_beside_the_data_is_used(tmp_path):
    train = write_csv(tmp_path / "train.csv", ["question", "answer"], questions(30))
    write_csv(tmp_path / "val.csv", ["question", "answer"], questions(5))
    config = load_config(write_config(train, tmp_path / "bft.yaml", domain="genes"))
    assert config.data.train[0].path == str(train) and len(rows_of(config.data.validation[0])) == 5
    assert config.data.train[0].columns == {"prompt": "question", "completion": "answer"}
    assert config.data.global_batch_size == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bft.yaml", "train.csv", "val.csv"]


def test_messages_text_parquet_and_json(tmp_path):
    turns = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(20)]
    chat = load_config(
        write_config(write_jsonl(tmp_path / "c.jsonl", [{"messages": t} for t in turns]), tmp_path / "c.yaml")
    )
    assert sorted(
        str(row.messages) for source in (chat.data.train + chat.data.validation) for row in rows_of(source)
    ) == sorted(str(turn) for turn in turns)
    (tmp_path / "t.json").write_text(json.dumps([{"abstract": f"text {n}"} for n in range(20)]))
    text = load_config(write_config(tmp_path / "t.json", tmp_path / "t.yaml"))
    assert all(row.text for row in rows_of(text.data.train[0]))

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"input": [f"q{n}" for n in range(20)], "output": [f"a{n}" for n in range(20)]})
    pq.write_table(table, tmp_path / "p.parquet")
    parquet = load_config(write_config(tmp_path / "p.parquet", tmp_path / "p.yaml", model="some/model"))
    assert len(rows_of(parquet.data.train[0])) == 18 and parquet.lora and parquet.model.dtype == "bf16"


def test_ids_that_repeat_and_empty_answers_do_not_stop_it(tmp_path):
    records = [{"id": n % 3, "question": f"q{n}", "answer": f"a{n}"} for n in range(20)]
    records.append({"id": 9, "question": "q", "answer": "  "})
    out = write_config(write_jsonl(tmp_path / "d.jsonl", records), tmp_path / "bft.yaml")
    config = load_config(out)
    assert len(rows_of(config.data.train[0])) + len(rows_of(config.data.validation[0])) == 20
    assert "1 left out" in out.read_text()


def test_equal_prompts_stay_on_one_side():
    rows = [Row(id=str(n), where=str(n), prompt=f"q{n % 10}", completion=f"a{n}") for n in range(100)]
    train, validation = split(rows)
    assert len(train) == 90 and len(validation) == 10 and len({row.prompt for row in validation}) == 1


def test_bad_files_are_refused(tmp_path):
    out = tmp_path / "bft.yaml"
    with pytest.raises(BadInput, match="exists and ends with"):
        write_config(tmp_path / "none.csv", out)
    with pytest.raises(BadInput, match="2 usable rows"):
        write_config(write_csv(tmp_path / "one.csv", ["question", "answer"], questions(1)), out)
    same = write_csv(tmp_path / "same.csv", ["question", "answer"], [["q", "a"], ["q", "b"]])
    with pytest.raises(BadInput, match="2 different prompts"):
        write_config(same, out)
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    with pytest.raises(BadInput, match=r"broken\.jsonl:2"):
        write_config(tmp_path / "broken.jsonl", out)
    alpaca = [{"instruction": f"i{n}", "input": "context" if n == 3 else "", "output": "o"} for n in range(9)]
    with pytest.raises(BadInput, match=r"alpaca\.jsonl:4.*one prompt and one completion"):
        write_config(write_jsonl(tmp_path / "alpaca.jsonl", alpaca), out)
    good = write_csv(tmp_path / "good.csv", ["question", "answer"], questions(20))
    with pytest.raises(BadConfig, match="domain"):
        write_config(good, out, domain="Not A Name")
    assert not out.exists() and not list(tmp_path.glob("bft_*"))


def test_real_file(tmp_path):
    shared = Path(__file__).resolve().parents[1].parent / "shared"  # may be a link
    data = (shared / "data" / "medical_qa" / "train.jsonl").resolve()
    if not data.is_file():
        pytest.skip("../shared/data is not here")
    config = load_config(write_config(data, tmp_path / "bft.yaml", domain="medical_qa"))
    assert config.data.validation[0].path == str(data.with_name("validation.jsonl"))
    assert next(iter(read_rows(config.data.train[0])))


def test_domain_of_a_file_name():
    names = ["train.csv", "My Genes-train.csv", "cell_type_data.jsonl", "GO2024.parquet"]
    assert [domain_of(Path(name)) for name in names] == ["my_data", "my_genes", "cell_type", "go2024"]
