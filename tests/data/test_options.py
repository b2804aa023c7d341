"""Options in columns of their own, and options that hold their letters: the right one is taught, or the row is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bft_ray.config import SourceConfig
from bft_ray.data.canonical import Fault
from bft_ray.data.choices import choice, marks_of
from bft_ray.data.rows import look, read_choices
from bft_ray.errors import BadInput
from bft_ray.operate.init.look import inspect


def write(folder: Path, header: list[str], *rows: list) -> SourceConfig:
    with (folder / "r.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return SourceConfig(path=str(folder / "r.csv"))


def right_of(source: SourceConfig) -> list[str]:
    return [row.choices[row.answer] for row in read_choices(source)]


@pytest.mark.parametrize(
    ("header", "answers", "right"),
    [
        (["prompt", "A", "B", "C", "answer"], ["C", "x", "(B)"], ["z", "x", "y"]),
        (["Question", "Option A", "Option B", "Option C", "Correct Answer"], ["A", "b", "0"], ["x", "y", "x"]),
        (["question", "choice_a", "choice_b", "choice_c", "correct_option"], ["y", "A", "C."], ["y", "x", "z"]),
        (["question", "option1", "option2", "option3", "answer"], ["1", "z", "3"], ["x", "z", "z"]),
    ],
)
def test_options_in_columns_of_their_own_are_choices(tmp_path, header, answers, right):
    source = write(tmp_path, header, *([f"q{i}", "x", "y", "z", answer] for i, answer in enumerate(answers)))
    assert right_of(source) == right


def test_a_row_may_have_fewer_options_but_none_between_others(tmp_path):
    header = ["question", "A", "B", "C", "D", "answer"]
    source = write(tmp_path, header, ["q", "x", "y", "", "", "B"], ["p", "x", "y", "z", "w", "D"])
    assert [row.choices for row in read_choices(source)] == [("x", "y"), ("x", "y", "z", "w")]
    with pytest.raises(BadInput, match=r"r.csv:2 C` is 'empty', but must be filled where an option behind it is"):
        right_of(write(tmp_path, header, ["q", "x", "y", "", "w", "D"]))
    with pytest.raises(BadInput, match="a letter and the text of another option"):  # a blood group
        right_of(write(tmp_path, header, ["q", "B", "A", "AB", "O", "A"]))


def test_columns_of_one_letter_that_are_no_options(tmp_path):
    source = write(tmp_path, ["question", "a", "b", "answer"], ["q", "1.2", "3", "it rises"])
    assert look(source).form.name == "question/answer"
    for answer in ("3", 4, "2.5", "F"):  # a sum, even where it is one of its own terms; and a letter that no column has
        source = write(tmp_path, ["question", "a", "b", "answer"], ["q", 1, 3, answer])
        assert look(source).form.name == "question/answer"


def test_options_that_hold_their_letters(tmp_path):
    assert marks_of(["A. yes", "(B) no"]) == ["A", "B"]
    assert marks_of(["B) yes", "A) no"]) == ["B", "A"]
    assert marks_of(["E. coli", "A. baumannii"]) == marks_of(["yes", "no"]) == []
    header = ["question", "A", "B", "answer"]
    [found] = inspect(write(tmp_path, header, ["q", "A. yes", "B. no", "B"])).rows
    assert found.taught["prompt"] == "q\nA. yes\nB. no"
    assert found.taught["completion"] == "B. no"
    with pytest.raises(BadInput, match="a letter that is the place of one option, and with which another one begins"):
        right_of(write(tmp_path, header, ["q", "B. yes", "A. no", "A"]))
    assert right_of(write(tmp_path, header, ["q", "B. yes", "A. no", "A. no"])) == ["A. no"]


@pytest.mark.parametrize(
    ("choices", "answer"), [({"A": "B", "B": "A", "C": "O"}, "A"), ({"1": "3", "2": "1", "3": "4"}, "1")]
)
def test_a_label_that_is_the_text_of_another_option_is_refused(choices, answer):
    values = {"question": "Which group?", "choices": choices, "answer": answer}
    with pytest.raises(Fault) as fault:
        choice(values)
    assert fault.value.received == "a label and the text of another option"
    assert choice(values, is_key=True)["answer"] == 0  # of a column that holds labels alone, as in ARC
    agreed = values | {"choices": {"A": "A", "B": "B", "C": "O"}, "answer": "A"}
    assert choice(agreed)["answer"] == 0
