"""`bft-ray init`: from a user's own rows to a study that loads, trains and searches as it is."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
import yaml

from bft_ray.cli import main
from bft_ray.config import SourceConfig, load_config
from bft_ray.data.rows import Row, read_choices, read_rows
from bft_ray.errors import BadConfig, BadInput
from bft_ray.operate import configured
from bft_ray.operate.init.look import _TRAIN
from bft_ray.operate.init.request import Request
from bft_ray.operate.init.settings import Device, longest_positions
from bft_ray.operate.init.space_text import SPACE
from bft_ray.operate.init.study import domain_of, write_study
from bft_ray.space.load import load_space, load_study
from tests.support.paths import SHARED
from tests.support.rows import questions, write_csv, write_jsonl

CPU = Device(is_gpu=False, has_bf16=True, num_cores=2)
GPU = Device(is_gpu=True, has_bf16=True, num_cores=16)
CASES = SHARED / "cases" / "rows"


def records_of(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def rows_of(source) -> list[Row]:
    return [row for row in read_rows(source) if isinstance(row, Row)]


def init(data: Path, out: Path, device: Device = CPU, **options) -> str:
    return write_study(Request(data=str(data), out=out, **options), device)


def test_a_table_of_thousands_of_columns_is_told_in_a_line(tmp_path):
    """Such as counts of genes beside the question and the answer of each cell."""
    genes = {f"gene{n}": n % 7 for n in range(3000)}
    write_jsonl(tmp_path / "cells.jsonl", [{"question": f"q {n}", "answer": f"a {n}"} | genes for n in range(12)])
    [line] = [line for line in init(tmp_path / "cells.jsonl", tmp_path / "bft.yaml").splitlines() if "gene29" in line]
    assert line.startswith("not used     gene0, gene1,") and line.endswith(" and 2,970 more")


ROW = {"question": "What is it about?", "answer": "An answer."}
TURN = {"role": "assistant", "content": "a", "weight": 0}
OPTIONS = {"question": "Which one?", "options": ["a x", "b y", "c z"]}


@pytest.mark.parametrize(
    ("name", "rows", "told"),
    [
        (
            "wide.jsonl",
            [*[ROW] * 59, ROW | {"note": "a long text with more than six words in it"}],
            "wide.jsonl:60 note` is",
        ),
        (
            "weights.jsonl",
            [{"messages": [{"role": "user", "content": "q"}, TURN]}] * 3,
            "weights.jsonl` is '3 rows: 3 with only assistant turns of weight 0', but must be data with rows that can be "
            "taught. Set `weight` to 1",
        ),
        (
            "numbers.jsonl",
            [ROW | {"answer": 7}],
            "numbers.jsonl:1 answer` is 'a number', but must be text or a list of messages. Write it as text, or let a "
            "template do it: --prompt '{question}' --completion '{answer}' (",
        ),
        (
            "options.jsonl",
            [OPTIONS | {"answer": "d secret"}],
            "options.jsonl:1 answer` is 'a text that is none of the 3 options', but must be the right option: its letter or "
            "label, its index from 0, or its text, the same as in the options. Compare the two",
        ),
        (
            "stated.jsonl",
            [OPTIONS | {"answer_idx": "A", "answer": "b y"}],
            "stated.jsonl:1 answer` is 'another text than the option that the answer names', but must be the text of that "
            "option. Correct",
        ),
        (
            "twice.csv",
            "question,answer,answer\nq,a,b\n",
            "twice.csv:1 answer` is 'the name of 2 columns', but must be that",
        ),
        (
            "inside.json",
            {"version": 1, "cases": [ROW]},
            "inside.json` is 'an object', but must be a list of objects, or one object a line. Extract the list, for "
            "example by `jq '.cases' FILE.json > ROWS.json`.",
        ),
        ("columns.json", {"question": ["q"], "answer": ["a"]}, "It seems to hold columns: write it row by row"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:14] else "",
)
def test_what_is_wrong_with_rows_is_told_with_its_place_and_a_remedy(name, rows, told, tmp_path):
    path = tmp_path / name
    if isinstance(rows, str):
        path.write_text(rows)
    else:
        path.write_text(json.dumps(rows)) if name.endswith(".json") else write_jsonl(path, rows)
    with pytest.raises(BadInput, match=re.escape(told)) as caught:
        init(path, tmp_path / "bft.yaml")
    assert "secret" not in str(caught.value) and [each.name for each in tmp_path.iterdir()] == [name]


def test_what_a_remedy_says_helps(tmp_path, caplog):
    """Numbers by a template; and rows in an object are read."""
    numbers = [{"question": f"How many, in sample {index}?", "answer": index} for index in range(80)]
    templates = {"prompt": "{question}", "completion": "{answer}"}
    init(write_jsonl(tmp_path / "numbers.jsonl", numbers), tmp_path / "a" / "bft.yaml", **templates)
    assert {row["completion"] for split in split_of(tmp_path / "a").values() for row in split} == {
        str(n) for n in range(80)
    }
    (tmp_path / "inside.json").write_text(json.dumps({"data": [row | {"answer": "one"} for row in numbers]}))
    init(tmp_path / "inside.json", tmp_path / "b" / "bft.yaml")
    assert sum(map(len, split_of(tmp_path / "b").values())) == 80
    assert f"{tmp_path}/inside.json: its rows are those of `data`" in caplog.text


def split_of(folder: Path, name: str = "bft") -> dict[str, list[dict]]:
    """Split -> the records of its file, of those that exist."""
    names = ("train", "validation", "confirmation", "test")
    return {split: records_of(path) for split in names if (path := folder / f"{name}_{split}.jsonl").is_file()}


def test_a_csv_becomes_a_study_that_loads_and_splits_that_are_whole(tmp_path):
    data = write_csv(
        tmp_path / "My Genes_train.csv", ["Question", "Answer", "pmid"], [[*r, "7"] for r in questions(201)]
    )
    folder = tmp_path / "sub"
    said = init(data, folder / "bft.yaml")
    space, base = load_study(folder / "search_space.yaml")
    assert space.config == str(folder / "bft.yaml") and base.domain == "my_genes" == space.name
    assert base.data.max_length == 256 and base.schedule.epochs == 3.0 and base.schedule.steps is None
    parts = split_of(folder)
    assert {name: len(rows) for name, rows in parts.items()} == {
        "train": 131, "validation": 20, "confirmation": 30, "test": 20
    }  # fmt: skip
    every = [row for rows in parts.values() for row in rows]
    assert sorted((row["prompt"], row["completion"]) for row in every) == sorted(map(tuple, questions(201)))
    assert len({row["prompt"] for row in every}) == 201
    # what is written is what trains, and is judged
    assert [row.prompt for row in rows_of(base.data.train[0])] == [row["prompt"] for row in parts["train"]]
    assert base.data.validation[0].path == str(folder / "bft_validation.jsonl")
    assert space.confirmation.overrides == {"data.validation.0.path": str(folder / "bft_confirmation.jsonl")}
    assert space.confirmation.test == {"data.validation.0.path": str(folder / "bft_test.jsonl")}
    assert len(space.confirmation.seeds) == 5 and space.scheduler.kind == "asha"
    assert [baseline.name for baseline in space.baselines] == ["sft", "dft", "bft"]
    assert space.objective.metric == "validation/token_accuracy"
    assert "not used     pmid" in said and "131 rows" in said
    assert "confirmation    30 independent items, for the choice: differences of 25 points and more" in said
    config, name = folder / "bft.yaml", folder / "search_space.yaml"
    assert [line.split("bft-ray ")[1] for line in said.splitlines()[-4:]] == [
        f"doctor '{config}'" if " " in str(config) else f"doctor {config}",
        f"evaluate {config} --out before",
        f"profile {config}",
        f"search {name}",
    ]


def test_the_same_file_gives_the_same_files_and_others_are_not_overwritten(tmp_path):
    data = write_csv(tmp_path / "x.csv", ["question", "answer"], questions(50))
    init(data, tmp_path / "bft.yaml")
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BadInput, match=r"`--out` is .*must be a file that does not exist yet\. Give --force"):
        init(data, tmp_path / "bft.yaml")
    init(data, tmp_path / "bft.yaml", force=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    # of a smaller file there is no test split, nor an old one that nobody would look for
    write_csv(data, ["question", "answer"], questions(30))
    said = init(data, tmp_path / "bft.yaml", force=True)
    assert set(split_of(tmp_path)) == {"train", "validation", "confirmation"}
    assert "30 independent items are too few for a test" in said
    assert load_study(tmp_path / "search_space.yaml")[0].confirmation.test == {}


def test_the_data_are_never_overwritten(tmp_path):
    data = write_csv(tmp_path / "bft_train.csv", ["question", "answer"], questions(50))
    moved = write_jsonl(tmp_path / "bft_train.jsonl", [{"question": q, "answer": a} for q, a in questions(50)])
    kept = moved.read_bytes()
    with pytest.raises(BadInput, match=r"another file than the data, which it would overwrite\. Give --out"):
        init(moved, tmp_path / "bft.yaml", force=True)
    assert moved.read_bytes() == kept and sorted(tmp_path.iterdir()) == [data, moved]


@pytest.mark.parametrize("size", [2, 5, 12, 19, 20, 37, 40, 101, 250, 513, 1999])
@pytest.mark.parametrize("words", [0, 1, 60])
def test_every_size_has_a_config_and_a_space_that_fit_each_other(tmp_path, size, words):
    rows = [[f"What is {n}?", " ".join(["word"] * (words and 1 + n % words)) or "y"] for n in range(size)]
    said = init(write_csv(tmp_path / "x.csv", ["question", "answer"], rows), tmp_path / "bft.yaml")
    parts = split_of(tmp_path)
    assert all(parts.values()) and sum(map(len, parts.values())) == size
    if size < 8:  # a validation of one row
        assert load_config(tmp_path / "bft.yaml") and not (tmp_path / SPACE).exists()
        return
    space, base = load_study(tmp_path / SPACE)  # with `check_space`
    assert base.data.global_batch_size <= max(1, len(parts["train"]) // 10) or base.data.global_batch_size == 16
    windows = space.parameters["loss.window"].finite() if "loss.window" in space.parameters else []
    longest = max(len(row["completion"]) for row in parts["train"]) / 3.5
    assert all(window < longest + 1 for window in windows)
    assert bool(windows) == (words > 1)
    assert (space.confirmation is None) == (size < 20) == ("too few for a confirmation" in said)
    if size >= 20:
        assert len(space.confirmation.seeds) == 5 and bool(space.confirmation.test) == (size >= 40)


@pytest.mark.parametrize("words", [1, 60])
def test_the_families_of_token_weights(tmp_path, words):
    rows = [[f"What is {n}?", " ".join(["word"] * (1 + n % words))] for n in range(60)]
    init(write_csv(tmp_path / "x.csv", ["question", "answer"], rows), tmp_path / "bft.yaml", space="families")
    space, base = load_study(tmp_path / "search_space.yaml")  # with `check_space`
    shipped = load_space("families")
    for name in ("token_weight", "token_power", "token_threshold", "anchor", "sample_weight", "epsilon", "weight_cap"):
        assert space.parameters[f"loss.{name}"] == shipped.parameters[f"loss.{name}"]
    assert ("loss.window" in space.parameters) == (words > 1) and "loss.method" not in space.parameters
    assert space.fixed == {"loss.method": "bft"} and space.budget.trials == 24 and base.loss.method == "bft"
    text = (tmp_path / "search_space.yaml").read_text()
    assert text.startswith("# Written by `bft-ray init`: which token weight between plain fine-tuning and BFT")
    with pytest.raises(BadInput, match=r"--space` is 'all'.*one of bft, families"):
        init(tmp_path / "x.csv", tmp_path / "other.yaml", space="all")


def test_every_field_is_commented(tmp_path):
    init(write_csv(tmp_path / "x.csv", ["question", "answer"], questions(40)), tmp_path / "bft.yaml")
    lines = (tmp_path / "bft.yaml").read_text().splitlines()
    values = [line for line in lines if ": " in line and not line.startswith("#") and 'path: "/' not in line]
    assert len(values) > 15 and [line for line in values if "  # " not in line] == []


def test_model_and_device_decide_precision_rates_and_budgets(tmp_path):
    data = write_csv(tmp_path / "x.csv", ["question", "answer"], questions(40))
    init(data, tmp_path / "a" / "bft.yaml")
    init(data, tmp_path / "b" / "bft.yaml", GPU, model="some/model")
    init(data, tmp_path / "c" / "bft.yaml", Device(True, False, 16), model="some/model")
    (small, one), (large, two), (old, _) = (load_study(tmp_path / name / "search_space.yaml") for name in "abc")
    assert (one.model.dtype, one.lora, one.data.micro_batch_tokens) == ("fp32", None, 1024)
    assert (two.model.dtype, two.lora.rank, two.data.micro_batch_tokens) == ("bf16", 16, 8192)
    assert old is not None and load_config(tmp_path / "c" / "bft.yaml").model.dtype == "fp32"
    assert small.parameters["optimizer.learning_rate"].finite() == [0.0003, 0.001, 0.003]
    assert large.parameters["optimizer.learning_rate"].finite() == [0.0001, 0.0003, 0.001]
    assert (one.optimizer.learning_rate, two.optimizer.learning_rate) == (0.001, 0.0003)


def test_windows_and_length_fit_rows_that_the_model_cannot_take_whole(tmp_path, tiny_model):
    rows = [[f"q{n}", "word " * 2000] for n in range(60)]
    data = write_csv(tmp_path / "x.csv", ["question", "answer"], rows)
    init(data, tmp_path / "bft.yaml", model=str(tiny_model))
    space, base = load_study(tmp_path / "search_space.yaml")
    assert base.data.max_length == 512 and base.profile.windows[-1] == 1024  # of a model with 512 positions
    assert space.parameters["loss.window"].finite() == [32, 64, 128, 256]


def test_files_beside_the_data_are_used_and_questions_stand_on_one_side(tmp_path):
    every = questions(60)
    train = write_csv(tmp_path / "train.csv", ["question", "answer"], every[:50])
    write_csv(tmp_path / "val.csv", ["question", "answer"], [*every[50:], [every[0][0].upper() + " ", "seen"]])
    write_csv(tmp_path / "test.csv", ["case", "verdict"], [["a", "b"]])
    said = init(train, tmp_path / "bft.yaml", domain="genes")
    parts = split_of(tmp_path)
    assert len(parts["validation"]) == 11
    assert every[0][0] not in [row["prompt"] for row in parts["train"]]
    assert f"validation   11 rows of {tmp_path / 'val.csv'}, found beside the data" in said
    assert f"left out     1 train rows whose question or group is in a later split too: {train}:2" in said
    assert f"not used     {tmp_path / 'test.csv'}: " in said  # drawn from the training rows instead
    assert sum(len(parts[name]) for name in ("train", "confirmation", "test")) == 49 and len(parts["test"]) == 5


def test_related_rows_stay_together_and_the_group_stays_in_the_rows(tmp_path):
    rows = [[*row, f"patient {n % 45}"] for n, row in enumerate(questions(200))]
    data = write_csv(tmp_path / "x.csv", ["question", "answer", "patient"], rows)
    said = init(data, tmp_path / "bft.yaml", group="patient")
    parts = split_of(tmp_path)
    sides = {name: {row["group"] for row in rows} for name, rows in parts.items()}
    assert sorted(sides) == ["confirmation", "test", "train", "validation"]
    assert sum(map(len, sides.values())) == 45 == len(set.union(*sides.values()))
    assert {row.group for row in rows_of(load_config(tmp_path / "bft.yaml").data.train[0])} == sides["train"]
    assert f"{len(sides['validation']):>5} independent items, for the search" in said
    assert 'grouped      by "patient": 45 groups, whose rows stay on one side of the splits' in said
    assert "one group has" not in said


def test_a_group_of_many_rows_is_asked_about(tmp_path):
    """Cells that say `nan`, as a spreadsheet may have it, are one group like any other."""
    rows = [[*row, "nan" if n % 2 else f"patient {n}"] for n, row in enumerate(questions(60))]
    data = write_csv(tmp_path / "x.csv", ["question", "answer", "patient"], rows)
    assert "one group has 30 of the 60 rows; is it one?" in init(data, tmp_path / "bft.yaml", group="patient")


@pytest.mark.parametrize(
    ("column", "num", "hint"),
    [
        ("patient_id", 45, "45 values of patient_id are in 60 rows, .* add --group patient_id"),
        ("PMID", 20, "20 values of PMID are in 60 rows, .* add --group PMID"),
        ("Donor ID", 3, "add --group 'Donor ID'"),
        ("document", 20, "add --group document"),
        ("doc_id", 60, None),  # each its own
        (
            "subject_id",
            1,
            "all rows are of one subject_id: what is measured on some",
        ),  # no split could keep them together
        ("score", 3, None),
    ],
)
def test_rows_that_may_be_related_are_told_with_the_option_that_keeps_them_together(tmp_path, column, num, hint):
    rows = [[*row, str(n % num)] for n, row in enumerate(questions(60))]
    named = {"prompt": "question", "completion": "answer"} if column == "document" else {}  # else taken for content
    said = init(write_csv(tmp_path / "x.csv", ["question", "answer", column], rows), tmp_path / "bft.yaml", **named)
    hints = [line for line in said.splitlines() if line.startswith("hint")]
    assert re.search(hint, *hints) if hint else hints == []
    if hint and num > 1:
        assert "hint" not in init(tmp_path / "x.csv", tmp_path / "bft.yaml", group=column, force=True, **named)


def test_a_search_refuses_a_validation_of_one_row(tmp_path):
    init(write_csv(tmp_path / "x.csv", ["question", "answer"], questions(8)), tmp_path / "bft.yaml")
    validation = tmp_path / "bft_validation.jsonl"
    validation.write_text(validation.read_text().splitlines()[0] + "\n")
    with pytest.raises(BadInput, match=r"`items of the search data` is 1, but must be at least 2"):
        list(configured.check_space(tmp_path / SPACE))


@pytest.mark.parametrize("num", [2, 7, 8])
def test_rows_that_are_too_few_for_a_search_are_sent_elsewhere(tmp_path, num):
    """A space that a search refuses is not written: `doctor` would fail with a config that can train."""
    (tmp_path / SPACE).write_text("name: of an earlier init")
    data = write_csv(tmp_path / "x.csv", ["question", "answer"], questions(num))
    said = init(data, tmp_path / "bft.yaml", force=True)
    assert (num < 8) == ("bft-ray search" not in said) == ("bft-ray train" in said) == (not (tmp_path / SPACE).exists())
    if num == 8:
        assert [finding.status for finding in configured.check_space(tmp_path / SPACE)] == ["ok"]
    assert (" 1 independent item, " in said) == (num < 8) and " 1 independent items" not in said


def test_equal_questions_in_other_writing_stay_on_one_side(tmp_path):
    names = [f"Was ist Ménière {n}?" for n in range(60)]
    rows = [[unicodedata.normalize(form, name), "x"] for form in ("NFC", "NFD") for name in names]
    rows += [[f"  {name.upper()}\t", "x"] for name in names]
    init(write_csv(tmp_path / "x.csv", ["question", "answer"], rows), tmp_path / "bft.yaml")
    sides = [
        {" ".join(unicodedata.normalize("NFC", row["prompt"]).casefold().split()) for row in rows}
        for rows in split_of(tmp_path).values()
    ]
    assert len(sides) == 4 and sum(map(len, sides)) == 60 == len(set.union(*sides))


def test_columns_are_named_and_joined(tmp_path):
    rows = [[f"case {n}", f"context {n}", f"finding {n}"] for n in range(30)]
    data = write_csv(tmp_path / "odd.csv", ["Case", "notes", "finding"], rows)
    said = init(data, tmp_path / "bft.yaml", prompt=r"{Case}\n\nContext: {notes}", completion="finding")
    every = [row for rows in split_of(tmp_path).values() for row in rows]
    assert {(row["prompt"], row["completion"]) for row in every} == {
        (f"case {n}\n\nContext: context {n}", f"finding {n}") for n in range(30)
    }
    assert r'prompt = "{Case}\n\nContext: {notes}", completion = "finding"' in said
    with pytest.raises(BadInput, match=r"`--completion` is None, but must be given with --prompt\. Add --completion"):
        init(data, tmp_path / "b.yaml", prompt="Case")
    with pytest.raises(
        BadInput, match=r"`--prompt` is 'Cases', but must be a column of odd\.csv\. Did you mean `Case`"
    ):
        init(data, tmp_path / "b.yaml", prompt="{Cases} {notes}", completion="finding")
    with pytest.raises(BadInput, match=r"`--group` is 'pmid', but .*odd\.csv\. There are: Case, notes, finding\."):
        init(data, tmp_path / "b.yaml", prompt="Case", completion="finding", group="pmid")


def test_a_column_of_later_rows_can_be_named(tmp_path):
    rows = [{"a": f"case {n}", "b": f"finding {n}"} | ({"c": "late"} if n > 9 else {}) for n in range(30)]
    data = tmp_path / "late.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(BadInput, match=r"late\.jsonl:1 c` is 'missing', but must be given in every row"):
        init(data, tmp_path / "b.yaml", prompt="{a} {c}", completion="b")
    with pytest.raises(
        BadInput, match=r"`--prompt` is 'd', but must be a column of late\.jsonl\. There are: a, b, c\."
    ):
        init(data, tmp_path / "b.yaml", prompt="{a} {d}", completion="b")


def test_a_column_with_content_is_used_or_left_out_by_name(tmp_path):
    long = "the patient was seen on the ward for three days and had a fever"
    data = write_csv(tmp_path / "x.csv", ["question", "answer", "notes"], [[*row, long] for row in questions(30)])
    with pytest.raises(BadInput, match=r"x\.csv:2 notes.*what these do not name is left out"):
        init(data, tmp_path / "bft.yaml")
    said = init(data, tmp_path / "bft.yaml", prompt="question", completion="answer")
    assert "not used     notes" in said and long not in (tmp_path / "bft_train.jsonl").read_text()


def test_columns_that_mean_nothing_are_listed_with_the_options_that_map_them(tmp_path):
    path = write_csv(tmp_path / "odd.csv", ["case", "finding"], [["a", "b"], ["c", "d"]])
    with pytest.raises(BadInput) as caught:
        init(path, tmp_path / "bft.yaml")
    assert "case, finding" in str(caught.value) and "--prompt" in caught.value.remedy
    assert list(tmp_path.iterdir()) == [path]


def choices(num: int) -> list[dict]:
    return [
        {
            "id": f"c{n}",
            "question": f"Which is {n}?",
            "choices": [f"{n}", f"{n + 1}", "none"],
            "answer": 0,
            "subject": "x",
        }
        for n in range(num)
    ]


def test_choice_rows_become_a_choice_task(tmp_path):
    init(write_jsonl(tmp_path / "medqa.jsonl", choices(100)), tmp_path / "bft.yaml", domain="medical_qa")
    space, base = load_study(tmp_path / "search_space.yaml")
    assert space.objective.metric == "choices/probability"
    (task,) = base.evaluation.tasks
    assert (task.kind, task.path) == ("choice", str(tmp_path / "bft_validation.jsonl"))
    assert space.confirmation.overrides == {"evaluation.tasks.0.path": str(tmp_path / "bft_confirmation.jsonl")}
    assert base.checkpoint.export == "last" and base.data.validation == []
    parts = split_of(tmp_path)
    number = int(parts["train"][0]["id"][1:])
    assert parts["train"][0] == {
        "id": f"c{number}",
        "prompt": f"Which is {number}?\nA. {number}\nB. {number + 1}\nC. none",
        "completion": f"{number}",
    }
    held = parts["confirmation"][0]
    assert (
        held["answer"] == "option 1"
        and held["choices"]["option 3"] == "none"
        and held["question"].endswith("\nC. none")
    )
    assert held["subject"] == "x"

    from bft_ray.evaluate.tasks.choice import read_items

    assert len(read_items(task)) == len(parts["validation"])


def labelled(folder: Path, name: str, labels: list[str], num: int = 60) -> Path:
    rows = [{"text": f"finding {n} of {name}", "label": labels[n % len(labels)]} for n in range(num)]
    return write_jsonl(folder / name, rows)


def test_answers_that_are_labels_become_options(tmp_path):
    """Likelihood a token would mostly be that of the token which ends an answer. Labels of a file beside the data count."""
    data = labelled(tmp_path, "sites_train.jsonl", ["lung", "skin", "lung"])
    labelled(tmp_path, "sites_test.jsonl", ["bone", "skin"])
    said = init(data, tmp_path / "bft.yaml", prompt="{text}\n\nSite:", completion="label")
    assert "the label after its prompt; the answers are 3 labels" in said
    space, config = load_study(tmp_path / "search_space.yaml")
    assert space.objective.metric == "choices/probability" and config.data.validation == []
    parts = split_of(tmp_path)
    assert {row["completion"] for row in parts["train"]} == {"lung", "skin"}
    assert all(row["prompt"].endswith("Site:") and "choices" not in row for row in parts["train"])
    right = {}
    for split in ("validation", "confirmation", "test"):
        rows = parts[split]
        assert all(list(row["choices"].values()) == ["skin", "lung", "bone"] for row in rows)  # the most frequent first
        right[split] = {row["choices"][row["answer"]] for row in rows}
        items = list(read_choices(SourceConfig(path=str(tmp_path / f"bft_{split}.jsonl"))))
        assert [item.choices[item.answer] for item in items] == [row["choices"][row["answer"]] for row in rows]
        assert items[0].question.endswith("Site:")
    assert right["test"] == {"bone", "skin"} and right["validation"] <= {"lung", "skin"}
    assert f"1 of the labels of {tmp_path / 'sites_test.jsonl'} are in no training row" in said


def test_a_split_without_the_most_frequent_label_is_read_as_it_is(tmp_path):
    """Indices would say that none is 0, as if they counted from 1. No name of an option may be the text of one."""
    labels = ["Option 1", "option 2", "option 2"]
    data = labelled(tmp_path, "x_train.jsonl", labels)
    labelled(tmp_path, "x_test.jsonl", ["Option 1"], 15)
    init(data, tmp_path / "bft.yaml", prompt="text", completion="label")
    items = list(read_choices(SourceConfig(path=str(tmp_path / "bft_test.jsonl"))))
    assert len(items) == 15 and {item.choices[item.answer] for item in items} == {"Option 1"}
    assert {item.choices for item in items} == {("option 2", "Option 1")}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([f"w{n}" for n in range(7)], ""),  # too few rows for so many
        (["one"], "answers are the same one: there is nothing to tell apart"),
        (["lung", "w " * 40], ""),  # answers of many words
        (["lung", "Lung "], "some are read as the same text"),
    ],
)
def test_other_answers_are_no_labels(labels, told, tmp_path):
    data = labelled(tmp_path, "sites.jsonl", labels)
    said = init(data, tmp_path / "bft.yaml", prompt="text", completion="label")
    assert "labels after" not in said and told in said
    assert load_study(tmp_path / "search_space.yaml")[0].objective.metric == "validation/token_accuracy"


def test_words_for_a_missing_answer_are_left_out_or_told(tmp_path):
    """One rule: what nobody writes as an answer is left out, what people write too is taught; init counts both."""
    words = ["NA", "None", "null", "nan", "yes"]
    data = labelled(tmp_path, "x.jsonl", words, 100)
    said = init(data, tmp_path / "bft.yaml", prompt="text", completion="label")
    assert "the answers are 3 labels" in said
    assert re.findall(r"note +20 answers are (\w+), and taught as such", said) == ["NA", "None"]
    assert re.findall(r"left out +20 rows: missing label \(the word (\w+)\)", said) == ["null", "nan"]


def test_where_a_column_counts_from_is_an_option(tmp_path):
    """Rows whose right option is 1, 2 or 3 may count from 0 or from 1: the error says which option decides, and it does."""
    rows = [
        {"question": f"Which of {number}?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": number % 3 + 1}
        for number in range(90)
    ]
    data = write_jsonl(tmp_path / "exam.jsonl", rows)
    with pytest.raises(BadInput, match=r"Add --form medmcqa .*, from 0\) or medmcqa_from_1"):
        init(data, tmp_path / "none" / "bft.yaml")
    for form, right in (("medmcqa", "xyz"), ("medmcqa_from_1", "wxy")):
        init(data, tmp_path / form / "bft.yaml", form=form)
        written = [row for path in (tmp_path / form).glob("bft_*.jsonl") for row in records_of(path)]
        answers = {row["choices"][row["answer"]] for row in written if "choices" in row}
        assert answers == set(right)
    with pytest.raises(BadInput, match=r"--form` is 'medmcq', but must be auto or one of .*Did you mean `medmcqa`"):
        init(data, tmp_path / "other" / "bft.yaml", form="medmcq")


def test_equal_questions_under_other_system_messages_stay_on_one_side(tmp_path):
    def row(n: int, system: str | None) -> dict:
        turns = [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": "x"}]
        return {"messages": [*([] if system is None else [{"role": "system", "content": system}]), *turns]}

    plain = [row(n, None) for n in range(60)]
    init(write_jsonl(tmp_path / "plain.jsonl", plain), tmp_path / "plain" / "bft.yaml")
    rows = [row(n, system) for system in (None, "Be brief.", "Explain each step.") for n in range(60)]
    init(write_jsonl(tmp_path / "x.jsonl", rows), tmp_path / "x" / "bft.yaml")

    def asked(folder: Path) -> dict[str, set[str]]:
        found = split_of(folder)
        return {split: {row["messages"][-2]["content"] for row in rows} for split, rows in found.items()}

    sides = asked(tmp_path / "x")
    assert len(sides) == 4 and sum(map(len, sides.values())) == 60 == len(set.union(*sides.values()))
    assert sides == asked(tmp_path / "plain")  # which are those of data without system messages


def test_messages_text_parquet_and_json(tmp_path):
    turns = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}] for n in range(20)]
    init(write_jsonl(tmp_path / "c.jsonl", [{"messages": t} for t in turns]), tmp_path / "c" / "bft.yaml")
    every = [row for rows in split_of(tmp_path / "c").values() for row in rows]
    assert sorted(str(row["messages"]) for row in every) == sorted(map(str, turns))
    (tmp_path / "t.json").write_text(json.dumps([{"text": f"text {n}"} for n in range(20)]))
    init(tmp_path / "t.json", tmp_path / "t" / "bft.yaml")
    assert all(row.text for row in rows_of(load_config(tmp_path / "t" / "bft.yaml").data.train[0]))

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"prompt": [f"q{n}" for n in range(20)], "completion": [f"a{n}" for n in range(20)]})
    pq.write_table(table, tmp_path / "p.parquet")
    init(tmp_path / "p.parquet", tmp_path / "p" / "bft.yaml", limit=15)
    assert sum(map(len, split_of(tmp_path / "p").values())) == 15
    with pytest.raises(BadInput, match=r"`--limit` is 0, but must be at least 1\."):
        init(tmp_path / "p.parquet", tmp_path / "q" / "bft.yaml", limit=0)


def test_a_split_of_a_saved_folder(tmp_path, monkeypatch):
    import datasets

    rows = {"question": [f"q{n}" for n in range(30)], "answer": [f"a{n}" for n in range(30)]}
    whole = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": whole, "other": whole.select(range(3))}).save_to_disk(tmp_path / "saved")
    init(tmp_path / "saved", tmp_path / "bft.yaml", split="train")
    assert sum(map(len, split_of(tmp_path).values())) == 30
    assert load_config(tmp_path / "bft.yaml").domain == "saved"
    with pytest.raises(BadInput, match=r"`--split` is None, but must be one of train, other\."):
        init(tmp_path / "saved", tmp_path / "b.yaml")


def test_ids_that_repeat_and_empty_answers_do_not_stop_it(tmp_path, caplog):
    records = [{"id": n % 3, "question": f"q{n}", "answer": f"a{n}"} for n in range(20)]
    records.append({"id": 9, "question": "q", "answer": "  "})
    said = init(write_jsonl(tmp_path / "d.jsonl", records), tmp_path / "bft.yaml")
    every = [row for rows in split_of(tmp_path).values() for row in rows]
    assert len(every) == 20 == len({row["id"] for row in every})
    assert "d.jsonl:4 id is there twice, or no text or number: the places of the rows are their ids" in caplog.text
    assert "left out     1 rows: empty completion" in said
    assert "4 values of id are in 21 rows" in said and "add --group id" in said
    assert "# Left out: 1 rows, empty completion." in (tmp_path / "bft.yaml").read_text()


def test_bad_files_are_refused_and_nothing_is_left(tmp_path):
    out = tmp_path / "bft.yaml"
    with pytest.raises(BadInput, match="a file or folder that exists"):
        init(tmp_path / "none.csv", out)
    with pytest.raises(BadInput, match="at least 2"):
        init(write_csv(tmp_path / "one.csv", ["question", "answer"], questions(1)), out)
    with pytest.raises(BadInput, match="data with rows"):
        init(write_csv(tmp_path / "empty.csv", ["question", "answer"], []), out)
    with pytest.raises(BadInput, match="3 rows: 3 with empty completion"):
        init(write_csv(tmp_path / "blank.csv", ["question", "answer"], [["q", " "]] * 3), out)
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    with pytest.raises(BadInput, match=r"broken\.jsonl:2"):
        init(tmp_path / "broken.jsonl", out)
    good = write_csv(tmp_path / "good.csv", ["question", "answer"], questions(20))
    with pytest.raises(BadConfig, match="domain"):
        init(good, out, domain="Not A Name")
    with pytest.raises(BadInput, match=r"`--out` is .*a folder that can be written"):
        init(good, good / "bft.yaml")
    assert not out.exists() and {path.suffix for path in tmp_path.iterdir()} == {".csv", ".jsonl"}


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "heart.csv", ["question", "answer"], questions(60))
    assert main(["init", "heart.csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "next         bft-ray doctor bft.yaml",
        "             bft-ray evaluate bft.yaml --out before",
        "             bft-ray profile bft.yaml",
        "             bft-ray search search_space.yaml",
    ]
    assert yaml.safe_load(Path("search_space.yaml").read_text())["config"] == "bft.yaml"
    assert main(["init", "heart.csv"]) == 2
    assert "Give --force" in capsys.readouterr().err


def test_real_file(tmp_path):
    data = (SHARED / "data" / "medical_qa" / "train.jsonl").resolve()
    if not data.is_file():
        pytest.skip("../shared/data is not here")
    said = init(data, tmp_path / "bft.yaml", domain="medical_qa")
    space, base = load_study(tmp_path / "search_space.yaml")
    parts = split_of(tmp_path)
    assert space.objective.metric == "validation/token_accuracy"  # no choice rows: the headline cannot be measured
    assert len(parts["test"]) == len(records_of(data.with_name("test.jsonl")))  # a later split is whole
    assert "found beside the data" in said and base.loss.window == 256


def test_domain_of_a_name():
    names = ["train.csv", "My Genes-train.csv", "cell_type_data.jsonl", "GO2024.parquet", "openlifescienceai/medmcqa"]
    assert list(map(domain_of, names)) == ["my_data", "my_genes", "cell_type", "go2024", "medmcqa"]
    assert list(map(domain_of, ["Übungen Straße.csv", "U\u0308bungen_train.csv", "数据.csv"])) == [
        "ubungen_strasse", "ubungen", "my_data",
    ]  # fmt: skip


SEEN = {
    "alpaca_caps.jsonl": ("alpaca", 12, 'prompt = "{Instruction}\\n\\n{Input}", completion = "Output"'),
    "llamafactory.jsonl": ("llamafactory", 12, "{system} {history} {instruction} {input} {output}"),
    "nanstr.csv": ("question/answer", 6, "left out     6 rows: missing answer (the word nan)"),
    "o1.jsonl": ("reasoning", 12, 'completion = "{Complex_CoT} {Response}"'),
    "pubmedqa.jsonl": ("pubmedqa", 12, 'prompt = "{context}\\n\\n{question}", completion = "long_answer"'),
    "sharegpt.jsonl": ("sharegpt", 12, 'messages = "conversations"'),
    "excel.csv": ("question/answer", 12, 'prompt = "question", completion = "answer"'),
    "semi.csv": ("question/answer", 12, 'prompt = "question", completion = "answer"'),
    "lines.json": ("question/answer", 12, 'prompt = "question", completion = "answer"'),
    "UP.CSV": ("question/answer", 2, 'prompt = "question", completion = "answer"'),
}
REFUSED = {
    "surrogate.jsonl": r"surrogate\.jsonl:4.* is .*, but must be",
    "tools.jsonl": r"1 independent question', but must be at least 2\. Add rows",
}


@pytest.mark.parametrize("name", [*SEEN, *REFUSED])
def test_files_that_people_brought(name, tmp_path):
    if not (CASES / name).is_file():
        pytest.skip("../shared/cases is not here")
    if name in REFUSED:
        with pytest.raises(BadInput, match=REFUSED[name]) as caught:
            init(CASES / name, tmp_path / "bft.yaml")
        assert caught.value.remedy and not list(tmp_path.iterdir())
        return
    form, num_rows, seen = SEEN[name]
    said = init(CASES / name, tmp_path / "bft.yaml")
    assert f"read         {num_rows} rows, form {form}" in said and seen in said
    if num_rows < 8:
        assert not (tmp_path / SPACE).exists()
    else:
        assert load_study(tmp_path / SPACE)[0].confirmation is None
    assert sum(map(len, split_of(tmp_path).values())) == num_rows


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./none", "but must be the folder of a model that exists"),
        ("empty", "but must be a folder with a model: this one is empty"),
        ("rows.csv", "but must be a folder, a GGUF file or a hub id; this is another file"),
        ("none.gguf", "but must be a GGUF file that exists"),
    ],
)
def test_a_model_that_is_not_there_is_told_before_anything_is_written(tmp_path, monkeypatch, name, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("question,answer\na,b\nc,d\n")
    with pytest.raises(BadInput, match=re.escape(says)):
        write_study(Request("rows.csv", model=name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "rows.csv"]


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"question,answer\na,b\n\xe9,d\n")
    with pytest.raises(BadInput, match=r"rows\.csv:3` is 'not UTF-8'"):
        write_study(Request(str(tmp_path / "rows.csv"), tmp_path / "bft.yaml"))


@pytest.mark.parametrize(
    "described", [{"n_positions": 128}, {"max_seq_len": 128}, {"text_config": {"max_position_embeddings": 128}}]
)
def test_rows_are_no_longer_than_the_model_takes(tmp_path, described):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    assert longest_positions(str(tmp_path / "model")) == 128


@pytest.mark.parametrize("place", [".", "study", "study/", "study/mine.yml"])
def test_a_folder_takes_the_study(tmp_path, monkeypatch, place):
    write_csv(tmp_path / "rows.csv", ["question", "answer"], questions(60))
    monkeypatch.chdir(tmp_path)
    write_study(Request(str(tmp_path / "rows.csv"), Path(place)))
    written = Path(place) if place.endswith("yml") else Path(place) / "bft.yaml"
    assert load_study(written.with_name("search_space.yaml"), written)


def test_rows_without_a_question_are_named(tmp_path):
    """They are learned as they stand, and an export of a table leaves such cells where nobody meant them."""
    rows = questions(40)
    for row in rows[:3]:
        row[0] = " "
    text = init(write_csv(tmp_path / "rows.csv", ["question", "answer"], rows), tmp_path / "bft.yaml")
    assert "note         3 rows have an empty question: the answer is learned without one." in text
    rows[0][0], rows[1][0] = "Which gene is it?", "Which one is that?"
    text = init(write_csv(tmp_path / "rows.csv", ["question", "answer"], rows), tmp_path / "bft.yaml", force=True)
    assert "note         1 row has an empty question" in text and "remove it, and" in text


def test_columns_are_named_as_they_are_written(tmp_path):
    rows = [[f"Fall {n}", f"Befund {n}", f"weil {n} Zeichen"] for n in range(40)]
    data = write_csv(tmp_path / "fälle.csv", ["Fall", "Diagnose", "Begründung"], rows)
    text = init(data, tmp_path / "bft.yaml", prompt="Fall", completion="{Diagnose}: {Begründung}")
    assert 'completion = "{Diagnose}: {Begründung}"' in text


@pytest.mark.parametrize("name", ["2024", "no", "1e5", "null"])
def test_a_file_whose_name_yaml_takes_for_something_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {i}?", "answer": f"It is {i} of it."} for i in range(60)]
    Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    write_study(Request(f"{name}.jsonl", out=Path("bft.yaml")))
    assert load_config("bft.yaml").domain == name
    assert yaml.safe_load(Path("search_space.yaml").read_text())["name"] == name


def test_the_file_beside_a_strain_that_is_trained_on():
    names = {"strain_train": "strain_test", "h_train": "h_test", "mytrain": "mytest", "Training-x": "test-x"}
    assert {name: _TRAIN.sub("test", name, count=1) for name in names} == names
