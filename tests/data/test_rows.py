"""Rows: every format gives the same rows; every malformed one is named by file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bft_ray.config import SourceConfig
from bft_ray.data.rows import BadRow, Row, look, read_choices, read_rows, read_table, resolve_path
from bft_ray.errors import BadInput
from tests.support.paths import SHARED

ROWS = [
    {"id": "a", "prompt": "What binds?", "completion": "A receptor,\nmostly."},
    {"id": "b", "prompt": 'Quote "this"', "completion": "µ-opioid é"},
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path, **fields) -> list:
    return list(read_rows(SourceConfig(path=str(path), **fields), "data.train.0"))


def error_of(path, **fields) -> str:
    with pytest.raises(BadInput) as caught:
        rows_of(path, **fields)
    return str(caught.value)


def as_jsonl(folder: Path) -> Path:
    return write_jsonl(folder / "rows.jsonl", ROWS)


def as_json(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=2))
    return folder / "rows.json"


def as_csv(folder: Path) -> Path:
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["id", "prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / "rows.csv"


def as_parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_folder(folder: Path) -> Path:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    return folder / "saved"


@pytest.mark.parametrize("write", [as_jsonl, as_json, as_csv, as_parquet, as_folder])
def test_formats_agree(write, tmp_path):
    found = rows_of(write(tmp_path))
    assert [(row.id, row.prompt, row.completion) for row in found] == [tuple(row.values()) for row in ROWS]
    assert all(row.messages is None and row.text is None for row in found)


def test_places(tmp_path):
    places = {write: [row.where for row in rows_of(write(tmp_path))] for write in (as_jsonl, as_json, as_csv)}
    assert places[as_jsonl] == [f"{tmp_path}/rows.jsonl:1", f"{tmp_path}/rows.jsonl:2"]
    assert places[as_json] == [f"{tmp_path}/rows.json[0]", f"{tmp_path}/rows.json[1]"]
    assert places[as_csv] == [
        f"{tmp_path}/rows.csv:2",
        f"{tmp_path}/rows.csv:4",
    ]  # the first one takes two lines


def test_saved_folder_with_splits(tmp_path):
    import datasets

    both = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    )
    both.save_to_disk(tmp_path / "saved")
    assert [row.id for row in rows_of(tmp_path / "saved", split="test")] == ["a"]
    message = error_of(tmp_path / "saved")
    assert message.startswith("`data.train.0.split` is None, but must be one of train, test")
    assert error_of(tmp_path / "saved", split="dev").startswith("`data.train.0.split` is 'dev', but must be one of")


@pytest.mark.parametrize("asked", ["split", "config_name", "revision"])
def test_what_names_a_part_of_a_hub_dataset_is_refused_for_a_file(tmp_path, asked):
    """A file is read whole: with `split: test` its training rows would be tested on."""
    message = error_of(as_jsonl(tmp_path), **{asked: "test"})
    assert message.startswith(f"`data.train.0.{asked}` is 'test', but must be null where the path is a file")


def test_a_saved_folder_without_splits(tmp_path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "plain")
    datasets.Dataset.from_list(ROWS, split="train").save_to_disk(tmp_path / "train")
    assert len(rows_of(tmp_path / "plain")) == len(rows_of(tmp_path / "train", split="train")) == len(ROWS)
    for name, split, says in (("plain", "train", "it names none"), ("train", "test", "the folder holds, train")):
        message = error_of(tmp_path / name, split=split)
        assert (
            message.startswith(f"`data.train.0.split` is '{split}', but must be null or the split") and says in message
        )
    assert "config_name` is 'en', but must be null" in error_of(tmp_path / "plain", config_name="en")


def test_folder_that_is_no_dataset(tmp_path):
    message = error_of(tmp_path)
    assert message.startswith("`data.train.0.path` is ") and "a folder that `Dataset.save_to_disk` wrote" in message


def test_hub_without_network(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    message = error_of("no-one/no-such-dataset")
    assert "`data.train.0.path` is 'no-one/no-such-dataset'" in message
    assert "a dataset of the hub that can be reached" in message and "network" in message


def test_forms_and_ids(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    [chat] = rows_of(write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}]))
    assert chat == Row(id="chat.jsonl:1", where=f"{tmp_path}/chat.jsonl:1", messages=turns)
    [text] = rows_of(write_jsonl(tmp_path / "text.jsonl", [{"text": "t", "id": 7}]))
    assert (text.id, text.text) == ("7", "t")
    lists = {"prompt": turns[:1], "completion": turns[1:]}
    [row] = rows_of(write_jsonl(tmp_path / "lists.jsonl", [lists]))
    assert (row.prompt, row.completion) == (turns[:1], turns[1:])
    [row] = rows_of(write_jsonl(tmp_path / "both.jsonl", [{"prompt": "q", "messages": turns}]))
    assert row.messages == turns and row.prompt is None  # a prompt alone makes no form


def test_columns(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"key": 3, "question": "q", "answer": "a", "messages": []}])
    [row] = rows_of(path, columns={"id": "key", "prompt": "question", "completion": "answer"})
    assert (row.id, row.prompt, row.completion, row.messages) == ("3", "q", "a", None)
    message = error_of(path, columns={"promt": "question"})
    assert message.startswith("`data.train.0.columns` is 'promt', but must be among id, prompt")
    assert "Did you mean `prompt`?" in message
    assert error_of(path, columns={"prompt": "question"}).startswith(f"`{path}:1 completion` is 'missing', but must be")


def test_limit_and_blank_lines(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('\ufeff{"text": "a"}\n\n  \n{"text": "b"}\r\n{"text": "c"}', encoding="utf-8")
    assert [row.where[-1] for row in rows_of(path)] == ["1", "4", "5"]
    assert [row.text for row in rows_of(path, limit=2)] == ["a", "b"]


def test_empty_rows_come_back_with_the_reason(tmp_path):
    rows = [
        {"prompt": "q", "completion": " \n"},
        {"prompt": "", "completion": "kept: an empty prompt is allowed"},
        {"prompt": "q", "completion": []},
        {"prompt": "q", "completion": [{"role": "user", "content": "q"}]},
        {"prompt": "q", "completion": [{"role": "assistant", "content": ""}]},
    ]
    found = rows_of(write_jsonl(tmp_path / "r.jsonl", rows))
    assert [row.reason if isinstance(row, BadRow) else "" for row in found] == [
        "empty completion",
        "",
        "no assistant turn",
        "no assistant turn",
        "empty completion",
    ]
    [text] = rows_of(write_jsonl(tmp_path / "t.jsonl", [{"text": " "}]))
    assert text == BadRow(f"{tmp_path}/t.jsonl:1", "empty text")


@pytest.mark.parametrize(("value", "told"), [(None, "missing"), (3, "a number"), (["a"], "a list")])
def test_the_one_row_without_a_text_is_named(tmp_path, value, told):
    """Not the first one, as a row of no known form."""
    rows = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, {"id": "c", "text": value}]
    assert f"t.jsonl:3 text` is '{told}', but must be" in error_of(write_jsonl(tmp_path / "t.jsonl", rows))


GOOD = '{"prompt": "q", "completion": "a"}\n'


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (
            '{"prompt": "secret", "completion": \n',
            ":2` is 'broken at column 35', but must be one whole JSON object",
        ),
        ('{"prompt": "secret", "compl', "the file may be cut off"),
        ("[1, 2]\n", ":2` is 'a list', but must be a JSON object"),
        ('{"prompt": "secret"}\n', ":2 completion` is 'missing', but must be given in every row"),
        ('{"prompt": "secret", "completion": null}\n', ":2 completion` is 'missing', but must be"),
        ('{"prompt": "secret", "completion": NaN}\n', ":2 completion` is 'missing', but must be"),
        (
            '{"prompt": "secret", "completion": 3}\n',
            ":2 completion` is 'a number', but must be text or a list",
        ),
        (
            '{"prompt": {"a": 1}, "completion": "a"}\n',
            ":2 prompt` is 'an object', but must be text or a list",
        ),
        (
            '{"prompt": ["secret"], "completion": "a"}\n',
            ":2 prompt.0` is 'text', but must be an object of role and",
        ),
        (
            '{"prompt": "secret", "completion": [{"role": "assistant", "content": 1}]}\n',
            ":2 completion.0.content` is 'a number', but must be text",
        ),
    ],
)
def test_malformed_row_is_named(tmp_path, second, expected):
    path = tmp_path / "r.jsonl"
    path.write_text(GOOD + second)
    message = error_of(path)
    assert message.startswith(f"`{path}:2") and expected in message
    assert "secret" not in message  # errors do not quote the data


def test_not_utf8(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(GOOD.encode() + '{"text": "é"}\n'.encode("latin-1"))
    assert error_of(path).startswith(f"`{path}:2` is 'not UTF-8', but must be UTF-8 text.")


def test_unknown_form(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"case": "q", "finding": "a"}])
    message = error_of(path)
    assert message.startswith(f"`{path}:1` is 'a row of case, finding', but must be a row of a known form")
    assert "data.train.0.columns" in message


def test_names_of_several_words_are_named(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("Fallnummer,Frage des Arztes,Antwort_2\n17,a,b\n")
    assert "'a row of Fallnummer, Frage des Arztes, Antwort_2'" in error_of(path)


def test_a_table_without_a_line_of_names_is_not_quoted(tmp_path):
    """Its first row stands where the names of columns do."""
    path = tmp_path / "r.csv"
    path.write_text("17,platelets fell fast,sepsis\n18,fever for days,malaria\n")
    assert error_of(path).startswith(
        f"`{path}:2` is 'a row of 3 columns whose names look like cells, or like a title', but"
    )
    assert "If the first line of the file is a title or a row, let it be the names" in error_of(path)
    assert "sepsis" not in error_of(path) and "platelets" not in error_of(path)


def test_wrong_type_of_messages(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"messages": "q"}])
    assert f"`{path}:1 messages` is 'text', but must be a list of messages" in error_of(path)


def test_duplicate_id(tmp_path):
    path = write_jsonl(tmp_path / "r.jsonl", [{"id": 1, "text": "a"}, {"id": "1", "text": "b"}])
    message = error_of(path)
    assert message.startswith(f"`{path}:2 id` is '1', but is at {path}:1 too. Make the ids unique")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("r.json", '[{"text": "a"},\n {"text"]', "r.json:2` is 'broken at column 9', but must be valid JSON"),
        ("r.json", '{"text": "a"}', "is 'an object', but must be a list of objects"),
        ("r.json", '[{"text": "a"}, 1]', "r.json[1]` is 'a number', but must be a JSON object"),
        ("r.csv", "prompt,completion\nq,a\nq\n", "r.csv:3` is 'a row of 1 cells (commas)', but must be one of 2"),
        ("r.csv", 'prompt,completion\nq,"a\nb\n', "r.csv:2` is 'broken', but must be valid CSV"),
        ("r.csv", "text,text\na,b\n", "r.csv:1 text` is 'the name of 2 columns', but must be that of one. Rename"),
        ("r.csv", "prompt,completion\nq,a\nq\n", "Add the cells that are missing, or remove the row"),
        (
            "r.csv",
            "Our study\n\nprompt,completion\nq,a\n",
            "If the first line is a title, remove what is above the line of names",
        ),
        ("r.csv", 'prompt,completion\nq,"a" b\n', "Put such a cell between quotes, with each quote in it twice"),
        ("r.jsonl", '{"text": "a"},\n{"text": "b"},\n', "Remove the comma at the end of each line"),
        ("r.jsonl", '[\n{"text": "a"}\n]\n', "It seems to be one list: name the file .json"),
        ("r.jsonl", '[{"text": "a"}]\n', "a list of rows is a .json file"),
        ("r.json", '{"text": {"0": "a"}, "id": {"0": "b"}}', """as pandas does by `to_json(FILE, orient="records")`"""),
        ("r.json", '{"text": "a"}', "Write it row by row"),
        ("rows", "text", "Rename it by what is in it"),
        ("r.parquet", "no parquet", "is 'broken', but must be a whole Parquet file"),
        ("r.txt", "text", "but must be a file that ends in .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_malformed_file(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert expected in error_of(tmp_path / name)


def test_a_name_of_two_parquet_columns_is_refused(tmp_path):
    """Of a record the last one would stay, without a word."""
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array(["q"]), pyarrow.array(["right"]), pyarrow.array(["wrong"])]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "completion", "completion"])
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    assert "r.parquet completion` is 'the name of 2 columns', but must be that of one. Rename all but one" in error_of(
        tmp_path / "r.parquet"
    )


def test_parquet_null_and_nan(tmp_path):
    import pyarrow
    import pyarrow.parquet

    for column in (["a", None], [1.0, float("nan")]):
        path = tmp_path / "r.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["q", "q"], "completion": column}), path)
        which, kind = (1, "missing") if column[0] == "a" else (0, "a number")
        assert f"r.parquet[{which}] completion` is '{kind}'" in error_of(path)


def test_csv_empty_cell_is_an_empty_completion(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("prompt,completion\nq,\nq,NaN\nq,NaN it is\n")
    empty, missing, kept = rows_of(path)
    assert empty == BadRow(f"{path}:2", "empty completion")
    assert missing == BadRow(f"{path}:3", "missing completion (the word NaN)")
    assert kept.completion == "NaN it is"


def test_missing_file_names_the_nearest(tmp_path):
    as_jsonl(tmp_path)
    message = error_of(tmp_path / "row.jsonl")
    assert "`data.train.0.path`" in message and "Did you mean `rows.jsonl`?" in message


def test_starter_names():
    message = error_of("starter:gene_interaction/trian")
    assert "`data.train.0.path` is 'starter:gene_interaction/trian'" in message
    assert "Did you mean `starter:gene_interaction/train`?" in message
    assert resolve_path("some/file.jsonl") == "some/file.jsonl"
    assert Path(resolve_path("starter:gene_interaction/train")).is_file()
    where, item = next(read_table("starter:medical_qa/choices_validation"))
    assert where == "starter:medical_qa/choices_validation:1" and {"question", "choices", "answer"} <= set(item)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not there")
def test_real_files_count_as_lines():
    files = [p for p in sorted((SHARED / "data").glob("*/*.jsonl")) if p.stem in SPLITS]
    assert len(files) >= 20
    for file in files:
        num_lines = file.read_bytes().count(b"\n")
        found = rows_of(file)
        assert len(found) == num_lines and all(isinstance(row, Row) for row in found), file.name


SPLITS = ("pretrain", "train", "validation", "confirmation", "test")


# --- tables as people have them ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "\ufeffquestion,answer,,\nq,a,,\nr,b,,\n", ""),  # as a spreadsheet leaves it
        ("b.csv", ",question,answer\n0,q,a\n1,r,b\n", ""),  # with the row numbers of a table library
        ("c.csv", "\ufeffquestion;answer\nq;a\nr;b\n", "semicolons"),
        ("d.csv", "question\tanswer\nq\ta\nr\tb\n", "tabs"),
        ("e.tsv", "question\tanswer\nq\ta\nr\tb\n", ""),
        ("f.CSV", "question,answer\nq,a\nr,b\n", ""),
        ("g.json", '{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n', "one object a line"),
        ("h.JSONL", '{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n', ""),
    ],
)
def test_tables_as_people_have_them(tmp_path, caplog, name, text, told):
    (tmp_path / name).write_text(text, encoding="utf-8")
    for _ in range(2):
        assert [(row.prompt, row.completion) for row in rows_of(tmp_path / name)] == [("q", "a"), ("r", "b")]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == bool(told) and all(told in line for line in lines)  # told once, however often it is read


def test_a_column_without_a_name_that_has_content(tmp_path):
    (tmp_path / "r.csv").write_text("question,answer,\nq,a,\nq,a,secret\n")
    message = error_of(tmp_path / "r.csv")
    assert message == (
        f"`{tmp_path}/r.csv:3 column 3` is 'filled', but must be empty, because it has no name. "
        "Name it in the header, or empty it."
    )


def test_half_a_character_is_named_by_file_line_and_column(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"question": "whole \\ud83d\\ude00", "answer": "a"}\n{"question": "q", "answer": "cut \\ud83d"}\n')
    message = error_of(path)
    assert message == (
        f"`{path}:2 answer` is 'half a character (U+D83D)', but must be text of whole characters. "
        "A text was cut within an emoji or the like: cut it elsewhere, or remove the escape."
    )
    (tmp_path / "r.json").write_text('[{"messages": [{"role": "user", "content": "\\ude00"}]}]')
    assert "r.json[0] messages.0.content` is 'half a character (U+DE00)'" in error_of(tmp_path / "r.json")


def test_words_of_a_table_library_for_a_missing_value(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("instruction,input,output\ni,nan,o\ni,x,nan\nNULL,,o\ni,,None\n")
    first, *bad, last = rows_of(path)
    assert first.prompt == "i"  # a part that may be missing
    assert [row.reason for row in bad] == ["missing output (the word nan)", "missing instruction (the word NULL)"]
    assert last.completion == "None"  # a word that people write, too
    assert isinstance(rows_of(write_jsonl(tmp_path / "r.jsonl", [{"prompt": "q", "completion": "nan"}]))[0], BadRow)


CASES = SHARED / "cases" / "rows"


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
@pytest.mark.parametrize(
    ("name", "num_rows", "asked", "answered"),
    [
        ("UP.CSV", 2, "q1", "a1"),
        ("alpaca_caps.jsonl", 12, "Answer this question truthfully (0)\n\nWhich pathway has BRCA1?", "Pathway 0."),
        ("excel.csv", 12, "What does BRCA1 do (0)?", "BRCA1 does 0."),
        ("lines.json", 12, "What does BRCA1 do (0)?", "BRCA1 does 0."),
        ("semi.csv", 12, "What does BRCA1 do (0)?", "BRCA1 does 0."),
        ("pubmedqa.jsonl", 12, "We measured BRCA1 in 0 mice.\n\nDoes BRCA1 matter in trial 0?", "BRCA1 mattered in"),
        ("o1.jsonl", 12, "What does BRCA1 do in cell case 0?", "BRCA1 answer 0."),
        ("llamafactory.jsonl", 12, "Name the function of BRCA1 (0)", "Function 0."),
        ("sharegpt.jsonl", 12, "q BRCA1", "a 0"),
        ("tools.jsonl", 1, "17p13.1", "It lies at 17p13.1."),
    ],
)
def test_the_shared_cases(name, num_rows, asked, answered):
    rows = rows_of(CASES / name)
    assert len(rows) == num_rows and all(isinstance(row, Row) for row in rows)
    first = rows[0]
    turns = first.messages or [{"content": first.prompt}]
    last = first.messages or first.completion
    said = last if isinstance(last, str) else last[-1]["content"]
    assert turns[-2 if first.messages else 0]["content"] == asked and said.startswith(answered)


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
def test_the_shared_cases_that_are_told():
    rows = rows_of(CASES / "nanstr.csv")
    assert sum(isinstance(row, BadRow) and row.reason == "missing answer (the word nan)" for row in rows) == 6
    assert "surrogate.jsonl:4 answer` is 'half a character (U+D83D)'" in error_of(CASES / "surrogate.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv.gz", "", "must be a file that ends in .jsonl, .json, .csv, .tsv, .parquet. Unpack it."),
        ("a.xlsx", "", "Save the sheet as CSV (UTF-8), one file for each sheet."),
        ("a.csv", "Study of 2024,,\nquestion,answer,note\nq,a,n\n", "a.csv:2 column 2` is 'filled', but must be empty"),
        ("b.csv", "sep=,\nquestion,answer\nq,a\n", "The first line seems to be a title: remove what is above the line of names."),
        ("c.csv", 'question,options,answer\nq,"[\'a\', \'b\']",A\n', 'Write it as a JSON list, ["a", "b"], or give each option'),
        ("d.jsonl", '{"question": "q", "answer": true}\n', "Write it as the text that the model is to read or to give"),
        ("e.jsonl", '{"question": "q\\u0000", "answer": "a"}\n', "e.jsonl:1 question` is 'text with a NUL character (U+0000)'"),
        ("f.jsonl", '{"messages": [{"role": "user", "content": "\\u0000"}, {"role": "assistant", "content": "a"}]}\n', "NUL"),
    ],
)  # fmt: skip
def test_what_helps_with_a_table_of_another_make(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    reads = read_choices if name == "c.csv" else read_rows
    with pytest.raises(BadInput) as caught:
        list(reads(SourceConfig(path=str(tmp_path / name))))
    assert told in str(caught.value)


def test_the_files_of_a_downloaded_repository_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"question": "q", "answer": "a"}])
    assert "Give one of its files, or a source for each of them: data/train.jsonl." in error_of(tmp_path)


def test_columns_within_columns(tmp_path):
    row = {"id": 7, "data": {"question": "q", "answers": {"text": ["a", "b"]}, "site": None}, "a.b": "c", "e": {"f": 1}}
    path = write_jsonl(tmp_path / "r.jsonl", [row])
    [read] = rows_of(path, columns={"prompt": "{data.question} {a.b}", "completion": "data.answers.text.0"})
    assert (read.prompt, read.completion) == ("q c", "a")
    used = look(SourceConfig(path=str(path), columns={"prompt": "data.question", "completion": "a.b"}))
    assert used.unused == ("e",)  # and not `data`, of which a part is used
    assert "data.answer` is 'missing'" in error_of(
        path, columns={"prompt": "data.question", "completion": "data.answer"}
    )
    assert "data.site` is 'missing'" in error_of(path, columns={"prompt": "{data.site}", "completion": "a.b"})


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("r.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q", "answer": "a", "answer": "b"}\n', "r.jsonl:2"),
        ("r.json", '{"data": [{"question": "q", "answer": "a"}], "data": []}', "r.json"),
    ],
)
def test_an_object_with_a_name_twice_is_refused(tmp_path, name, text, where):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=rf"{where}` is 'an object with `(answer|data)` twice'"):
        list(read_rows(SourceConfig(path=str(tmp_path / name))))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    ("value", "told"),
    [("9" * 5000, "a number of more than 4,300 digits"), ("[" * 100_000 + "]" * 100_000, "hundreds deep")],
)
def test_what_python_cannot_read_is_named(tmp_path, name, value, told):
    """Also in a column that nothing uses: it ended in Python's own error."""
    row = f'{{"prompt": "a", "completion": "b", "number": {value}}}'
    (tmp_path / name).write_text(f"{row}\n" if name.endswith("l") else f"[{row}]")
    assert told in error_of(tmp_path / name) and name in error_of(tmp_path / name)


@pytest.mark.parametrize("name", ["id", "group"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"patient": "name"}, "an object', but must be text or a number"),
        (["name", 1950], "a list', but must be text or a number"),
        ("a\x1b[2Jb", "the control character U+001B"),
        ("a\u202eb", "the control character U+202E"),
    ],
)
def test_what_is_printed_of_a_row_is_text_that_can_be_printed(tmp_path, name, value, told):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", name: value}]
    text = error_of(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert told in text and f"rows.jsonl:2 {name}" in text and "1950" not in text


def test_an_id_of_two_lines_is_one_line(tmp_path):
    (row,) = rows_of(write_jsonl(tmp_path / "rows.jsonl", [{"id": "a\nb\tc", "prompt": "a", "completion": "b"}]))
    assert row.id == "a b c"
