"""Forms: each is recognised without flags, becomes the right canonical record, and teaches exactly the right text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.data.content import bare, looks_like_content
from bft_ray.data.form_table import FORMS
from bft_ray.data.forms import apply, recognise
from bft_ray.data.rows import BadRow, ChoiceRow, Row, look, question_key, read_choices, read_rows, row_key
from bft_ray.data.tokenise import encode
from bft_ray.data.use import marks_of
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer

LONG = "a sentence that is long enough to be content of some kind"
TOOL = {"type": "function", "function": {"name": "gene", "description": "look up", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "gene", "arguments": {"symbol": "TP53"}}}


def write(folder: Path, *rows: dict, name: str = "r.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(folder: Path, *rows: dict, **fields: Any) -> list:
    return list(read_rows(SourceConfig(path=str(write(folder, *rows)), **fields), "data.train.0"))


def error_of(folder: Path, *rows: dict, read=read_rows, **fields: Any) -> str:
    with pytest.raises(BadInput) as caught:
        list(read(SourceConfig(path=str(write(folder, *rows)), **fields), "data.train.0"))
    return str(caught.value)


def said(role: str, content: str, **more: Any) -> dict:
    return {"role": role, "content": content, **more}


#: form -> a row of it, its canonical prompt or messages, what is taught of it (with the starter's end token)
SAMPLES: dict[str, tuple[dict, Any, list[str]]] = {
    "alpaca": (
        {"Instruction": "Name it.", "Input": "BRCA1", "Output": "A gene."},
        "Name it.\n\nBRCA1",
        ["A gene."],
    ),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [said("system", "s"), said("user", "q"), said("assistant", "a")],
        ["a"],
    ),
    "messages": (
        {"messages": [said("user", "q"), said("assistant", "draft", weight=0), said("user", "w"), said("assistant", "a")]},
        [said("user", "q"), said("assistant", "draft", weight=0), said("user", "w"), said("assistant", "a")],
        ["a"],
    ),
    "llamafactory": (
        {"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "a"]]},
        [said("system", "s"), said("user", "q"), said("assistant", "a"), said("user", "i\n\nx"), said("assistant", "o")],
        ["a", "o"],
    ),
    "reasoning": (
        {"Question": "q?", "Complex_CoT": "first, then", "Response": "so it is"},
        "q?",
        ["<think>\nfirst, then\n</think>\n\nso it is"],
    ),
    "pubmedqa": (
        {
            "pubid": 1, "question": "Does it?", "context": {"contexts": ["One.", "Two."], "labels": ["A", "B"]},
            "long_answer": "It does.", "final_decision": "yes",
        },
        "One.\nTwo.\n\nDoes it?",
        ["It does."],
    ),
    "dolly": (
        {"instruction": "Which?", "context": LONG, "response": "This.", "category": "closed_qa"},
        f"Which?\n\n{LONG}",
        ["This."],
    ),
    "question/answer": ({"question ": "q?", "ANSWER": "a"}, "q?", ["a"]),
    "text": ({"text": LONG}, None, [LONG]),
}  # fmt: skip


@pytest.fixture(scope="module")
def starter():
    return load_tokenizer(ModelConfig(path="starter"))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_each_form_decoded(name, starter, tmp_path):
    raw, canonical, taught = SAMPLES[name]
    source = SourceConfig(path=str(write(tmp_path, raw)))
    use = look(source)
    assert use is not None and use.form.name == name
    [row] = read_rows(source)
    assert isinstance(row, Row) and canonical in (row.prompt, row.messages)
    encoded = encode(row, starter, DataConfig(train=[source]))
    runs: list[list[int]] = []
    for token, flag, before in zip(
        encoded.input_ids, encoded.supervised, [False, *encoded.supervised[:-1]], strict=True
    ):
        if flag:
            runs.append([token]) if not before else runs[-1].append(token)
    end = starter.decode([encoded.input_ids[-1]])
    assert [starter.decode(run) for run in runs] == [text + end for text in taught]
    assert encoded.num_bytes == sum(len(text.encode()) for text in taught)
    assert encoded.input_ids.count(starter.bos_token_id) == 1 == encoded.input_ids.index(starter.bos_token_id) + 1


def test_a_context_as_json_text_as_a_list_and_as_text(tmp_path):
    for context in ('{"contexts": ["One.", "Two."]}', ["One.", "Two."], "One.\nTwo."):
        [row] = rows_of(tmp_path, {"question": "q?", "context": context, "answer": "a"})
        assert row.prompt == "One.\nTwo.\n\nq?"


CHOICES = {
    "medmcqa": {"question": "q?", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 2, "choice_type": "single",
                "exp": LONG, "subject_name": "Surgery", "topic_name": None, "id": "k"},
    "medqa": {"question": "q?", "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "answer_idx": "C", "answer": "y",
              "meta_info": "step1", "metamap_phrases": [LONG]},
    "mmlu": {"question": "q?", "choices": ["w", "x", "y", "z"], "answer": 2, "subject": "surgery"},
    "arc": {"id": "k", "question": "q?", "choices": {"text": ["w", "x", "y", "z"], "label": ["1", "2", "3", "4"]},
            "answerKey": "3"},
    "medxpertqa": {"id": "k", "question": "q?", "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "label": "C",
                   "medical_task": "Diagnosis", "body_system": "Skin", "question_type": "Reasoning"},
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_choice_rows_as_public_sets_have_them(name, tmp_path):
    rows = [CHOICES[name]]
    if name == "medmcqa":  # a 0 among the first rows tells that it counts from there
        rows.append({**CHOICES[name], "id": "l", "cop": 0})
    source = SourceConfig(path=str(write(tmp_path, *rows)))
    use = look(source)
    assert use is not None and use.form.name == name
    row = next(read_choices(source))
    assert (row.question, row.choices, row.answer) == ("q?", ("w", "x", "y", "z"), 2)
    assert row.subject == {"medmcqa": "Surgery", "mmlu": "surgery", "medxpertqa": "Skin"}.get(name)


@pytest.mark.parametrize("answer", [1, 1.0, "1", "1.0", "B", "(b)", "two words"])
def test_an_answer_as_index_letter_or_text(answer, tmp_path):
    path = write(tmp_path, {"question": "q?", "choices": ["one", "two words", "three"], "answer": answer, "group": 7})
    assert list(read_choices(SourceConfig(path=str(path)))) == [
        ChoiceRow("r.jsonl:1", f"{path}:1", "q?", ("one", "two words", "three"), 1, group="7")
    ]


def test_an_answer_that_looks_like_an_index_may_be_the_text_of_an_option(tmp_path):
    path = write(tmp_path, {"question": "q?", "choices": ["0.5", "2.0", "1.0", "4.0"], "answer": "1.0"})
    assert next(read_choices(SourceConfig(path=str(path)))).answer == 2


@pytest.mark.parametrize(
    "answer", ["1.5", "1.", float("inf"), float("nan"), 1e300, 1.5, "--1", "\u00b2", "9" * 5000, -1, 7]
)
def test_an_answer_that_is_no_index(answer, tmp_path):
    row = {"question": "q?", "choices": ["one", "two", "three"], "answer": answer}
    assert ":1 answer` is " in error_of(tmp_path, row, read=read_choices)


def quiz(folder: Path, answers: list, num_options: int = 4) -> str:
    options = [f"w{number}" for number in range(num_options)]
    rows = [
        {"id": str(number), "question": "q?", "choices": options, "answer": at} for number, at in enumerate(answers)
    ]
    return str(write(folder, *rows))


def test_indices_that_seem_to_count_from_1_are_refused(tmp_path):
    """Of 25 rows of four options each option is right in some; that none is the first has a chance of 0.0008."""
    from_1 = [1 + number % 3 for number in range(25)]
    path = quiz(tmp_path, from_1)
    with pytest.raises(BadInput) as caught:
        list(read_choices(SourceConfig(path=path), "evaluation.tasks.0"))
    assert str(caught.value) == (
        f"`evaluation.tasks.0.path` is '{path}', but must be a file whose indices of right options count from 0; of its 25 "
        "indices none is 0, as if they counted from 1. Subtract 1 from each; or where the first option is really never right, "
        "write letters (A for the first option)."
    )
    with pytest.raises(BadInput, match=r"r.jsonl:26 answer` is 4, but must be the index of the right option, 0 to 3"):
        list(read_choices(SourceConfig(path=quiz(tmp_path, [*from_1, 4]))))
    for answers in (from_1[:24], [*from_1, 0], ["BCD"[at - 1] for at in from_1], [f"w{at}" for at in from_1]):
        rows = list(read_choices(SourceConfig(path=quiz(tmp_path, answers))))
        assert [row.answer for row in rows][:24] == from_1[:24]
    assert len(list(read_choices(SourceConfig(path=quiz(tmp_path, [1] * 9, 2))))) == 9
    with pytest.raises(BadInput, match="of its 10 indices none is 0"):
        list(read_choices(SourceConfig(path=quiz(tmp_path, [1] * 10, 2))))


@pytest.mark.parametrize(("answer", "right"), [("2", None), (2, 2), ("C", 2), ("3", 1)])
def test_options_that_are_numbers(answer, right, tmp_path):
    """A text that is an index and another option is neither; one that can only be an option, is."""
    row = {"question": "q?", "choices": ["2", "3", "1"], "answer": answer}
    if right is None:
        assert "is 'an index and the text of another option', but must be one of the two. Give the letter" in error_of(
            tmp_path, row, read=read_choices
        )
        return
    [only] = read_choices(SourceConfig(path=str(write(tmp_path, row))))
    assert only.answer == right


def test_faults_of_options_have_remedies(tmp_path):
    row = {"question": "q?", "choices": [1, 2], "answer": 0}
    assert error_of(tmp_path, row, read=read_choices).endswith("must be text that is not empty. Write it as text.")
    row = {"question": "q?", "choices": ["x", " "], "answer": 0}
    assert error_of(tmp_path, row, read=read_choices).endswith("not empty. Fill it or take the row out.")


def test_the_original_arc_rows(tmp_path):
    stem = {"stem": "q?", "choices": [{"text": "w", "label": "A"}, {"text": "x", "label": "B"}]}
    path = write(tmp_path, {"id": "k", "question": stem, "answerKey": "B"})
    [row] = read_choices(SourceConfig(path=str(path)))
    assert (row.question, row.choices, row.answer) == ("q?", ("w", "x"), 1)


def test_where_medmcqa_counts_from(tmp_path):
    row = CHOICES["medmcqa"]
    path = write(tmp_path, {**row, "cop": 4}, {**row, "cop": 1, "id": "l"})
    assert [each.answer for each in read_choices(SourceConfig(path=str(path)))] == [3, 0]
    assert error_of(tmp_path, row, read=read_choices) == (
        f"`{tmp_path}/r.jsonl:1 cop` is '1 to 3 in its first rows', but whether it counts from 0 or 1 is open. "
        "Set data.train.0.form: medmcqa (the hub's copy, from 0) or medmcqa_from_1 (the authors' files)."
    )
    path = write(tmp_path, row)
    [only] = read_choices(SourceConfig(path=str(path), form="medmcqa_from_1"))
    assert only.answer == 1
    assert "A public test split has no answers" in error_of(tmp_path, {**row, "cop": -1}, read=read_choices)


def test_a_file_of_choices_is_measured_not_trained_on(tmp_path):
    message = error_of(tmp_path, CHOICES["mmlu"])
    assert message.startswith(f"`{tmp_path}/r.jsonl:1` is 'a row of choices (mmlu)', but must be a row of prompt and")
    assert f"Measure with it: evaluation.tasks: [{{kind: choice, path: {tmp_path}/r.jsonl}}]" in message
    both = {"prompt": "{question} {choices}", "completion": "answer"}
    [row] = rows_of(tmp_path, {**CHOICES["mmlu"], "answer": "y"}, columns=both)
    assert (row.prompt, row.completion) == ("q? w\nx\ny\nz", "y")
    assert "but must be a row of question, choices and answer" in error_of(
        tmp_path, {"prompt": "q", "completion": "a"}, read=read_choices
    )


# --- what is not used -------------------------------------------------------------------------------------


def test_a_column_that_looks_like_content_is_refused_with_the_remedy(tmp_path):
    row = {"id": 1, "Question": "q?", "Answer": "a", "Findings": LONG, "source": LONG, "url": "http://a/b", "year": 3}
    assert error_of(tmp_path, row) == (
        f"`{tmp_path}/r.jsonl:1 Findings` is 'a column of the form question/answer, which uses Question, Answer, id', "
        "but it looks like content, and nothing of it would be learned. "
        'Use it: `--prompt "{Question}\\n\\n{Findings}" --completion Answer`, or in the config data.train.0.columns: '
        '{prompt: "{Question}\\n\\n{Findings}", completion: "Answer"}; or name the columns without it there.'
    )
    columns = {"prompt": "{Question}\n\nContext: {Findings}", "completion": "Answer"}
    [used] = rows_of(tmp_path, row, columns=columns)
    assert used.prompt == f"q?\n\nContext: {LONG}"
    source = SourceConfig(path=str(write(tmp_path, row)), columns={"prompt": "Question", "completion": "Answer"})
    use = look(source)
    assert use is not None and use.unused == ("Findings", "source", "url", "year")
    assert [row.prompt for row in read_rows(source)] == ["q?"]


def test_a_column_that_appears_late_is_seen(tmp_path):
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(300)]
    message = error_of(tmp_path, *rows, {"question": "q", "answer": "a", "context of it": LONG})
    assert message.startswith(f"`{tmp_path}/r.jsonl:301 context of it` is 'a column of the form question/answer")
    found = rows_of(tmp_path, {"instruction": "i", "output": "o"}, {"instruction": "i", "input": "x", "output": "o"})
    assert [row.prompt for row in found] == ["i", "i\n\nx"]  # a part that a form may have


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("note", LONG, True), ("note", "two words", False), ("note", 7, False), ("note", None, False),
        ("note", "http://somewhere.org/" + "a" * 80, False), ("note", "2024-01-01 10:00:00", False),
        ("context", "TP53", True), ("context", "", False), ("context", "nan", False), ("metadata", {"a": LONG}, False),
        ("genes", ["TP53", "BRCA1"], False), ("note", [{"a": 1}], True), ("note", [LONG], True), ("note", {}, False),
        ("source", LONG, False), ("note", "漢" * 80, True),
        ("metadata", {"report": {"text": "word " * 60}}, True), ("labels", ["word " * 60], True), ("labels", ["a", "b"], False),
        ("metadata", {"seen": [{"where": LONG}]}, False),
    ],
)  # fmt: skip
def test_what_looks_like_content(name, value, expected):
    assert looks_like_content(name, value) is expected


def test_a_role_is_a_word(tmp_path):
    """Text in its place would be written into the template, and taught."""
    row = {"messages": [said("a patient of 40 years", "q"), said("assistant", "a")]}
    message = error_of(tmp_path, row)
    assert "one word, such as user or assistant" in message and "40 years" not in message
    [kept] = rows_of(tmp_path, {"messages": [said("critic", "q"), said("assistant", "a")]})
    assert kept.messages[0]["role"] == "critic"


def test_a_template_around_nothing_is_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    answers = ["yes", " ", "NaN", ["", ""]]
    path.write_text("".join(json.dumps({"q": f"q{n}", "a": a, "b": ""}) + "\n" for n, a in enumerate(answers)))
    columns = {"prompt": "Say: {q}{b}", "completion": "Answer: {a}{b}"}
    first, *others = read_rows(SourceConfig(path=str(path), columns=columns))
    assert (first.prompt, first.completion) == ("Say: q0", "Answer: yes")
    assert [row.reason for row in others] == [
        "empty completion", "missing Answer: {a}{b} (the word NaN)", "empty completion",
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"r.jsonl:2 of \{a\}` is 'missing', but must be given in every row"):
        list(read_rows(SourceConfig(path=str(path), columns=columns | {"group": "of {a}"})))


def test_a_column_is_found_however_its_accents_are_encoded(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"Fra\u0308ge": "q", "antwort": "a"}) + "\n")  # two code points, as macOS has it
    [row] = read_rows(SourceConfig(path=str(path), columns={"prompt": "Fr\u00e4ge", "completion": "antwort"}))
    assert row.prompt == "q"


def test_columns_of_a_template_that_are_not_there(tmp_path):
    row = {"case": "c", "finding": "f"}
    message = error_of(tmp_path, row, columns={"prompt": "{case} {age}", "completion": "finding"})
    assert (
        message
        == f"`{tmp_path}/r.jsonl:1 age` is 'missing', but must be given in every row. The row has case, finding."
    )
    message = error_of(tmp_path, row, columns={"prompt": "cases", "completion": "finding"})
    assert message == f"`{tmp_path}/r.jsonl:1 cases` is 'missing', but must be given in every row. Did you mean `case`?"
    assert "but must be of one form: prompt, completion, tools" in error_of(
        tmp_path, row, columns={"prompt": "case", "text": "finding"}
    )


def test_columns_with_marks_in_their_names(tmp_path):
    """`:` and `!` are of the name. Braces are not: such a column is named alone."""
    row = {"a{b}": "one", "dose: mg": "two", "stop!r": "three", "y": "z"}
    columns = {"prompt": "{dose: mg}, {stop!r}, {{so}}", "completion": "a{b}"}
    [made] = rows_of(tmp_path, row, columns=columns)
    assert (made.prompt, made.completion) == ("two, three, {so}", "one")
    for wrong in ("Dose {a{b}}", "Dose {y"):
        message = error_of(tmp_path, row, columns={"prompt": wrong, "completion": "y"})
        assert message.startswith(
            f"`{tmp_path}/r.jsonl:1` is {wrong!r}, but must be a column, or a template whose braces match: "
        )
        assert message.endswith("rename it, or give its name alone, without a template.")


def test_a_form_by_name(tmp_path):
    message = error_of(tmp_path, {"question": "q", "answer": "a"}, form="alpca")
    assert message.startswith("`data.train.0.form` is 'alpca', but must be auto or one of medmcqa,")
    assert message.endswith("Did you mean `alpaca`?")
    message = error_of(tmp_path, {"question": "q", "answer": "a"}, form="alpaca")
    assert message.endswith("but must be a row of the form alpaca. It has the columns instruction, output/response.")
    assert len({form.name for form in FORMS}) == len(FORMS)


def test_id_and_group(tmp_path):
    rows = [{"question": "q", "answer": "a", "patient": 7, "key": "k1"}]
    [row] = rows_of(tmp_path, *rows, columns={"group": "patient", "id": "key"})
    assert (row.id, row.group, row.prompt) == ("k1", "7", "q")
    assert error_of(tmp_path, *rows, columns={"group": "patients"}).endswith("Did you mean `patient`?")


# --- conversations ----------------------------------------------------------------------------------------


def test_tools_calls_and_thoughts_of_any_spelling(tmp_path):
    text = json.dumps([TOOL["function"]])
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "17p13.1"},
        {"from": "gpt", "value": "a", "thinking": "hm"},
    ]
    [row] = rows_of(tmp_path, {"conversations": turns, "tools": text, "system": "s"})
    assert row.tools == [{"type": "function", "function": TOOL["function"]}]
    assert row.messages == [
        said("system", "s"), said("user", "q"), said("assistant", "", tool_calls=[CALL]), said("tool", "17p13.1"),
        said("assistant", "a", reasoning_content="hm"),
    ]  # fmt: skip
    openai = {"id": "c1", "type": "function", "function": {"name": "gene", "arguments": '{"symbol": "TP53"}'}}
    parts = said("user", [{"type": "text", "text": "q"}])
    [row] = rows_of(tmp_path, {"messages": [parts, {"role": "assistant", "tool_calls": [openai], "content": None}]})
    assert row.messages == [said("user", "q"), said("assistant", "", tool_calls=[{**CALL, "id": "c1"}])]


def test_a_field_of_a_turn_that_no_template_knows_is_refused(tmp_path):
    turn = said("assistant", "a", rationale=LONG)
    message = error_of(tmp_path, {"messages": [said("user", "q"), turn]})
    assert message.startswith(f"`{tmp_path}/r.jsonl:1 messages.1.rationale` is 'a field that no chat template knows'")


def test_turns_without_a_taught_answer_are_counted(tmp_path):
    turns = [said("user", "q"), said("assistant", "a", weight=0)]
    assert rows_of(tmp_path, {"messages": turns}) == [
        BadRow(f"{tmp_path}/r.jsonl:1", "only assistant turns of weight 0")
    ]


# --- keys of questions ------------------------------------------------------------------------------------


def test_one_key_for_one_question():
    def key(prompt: Any) -> str:
        return question_key(Row("a", "f:1", prompt=prompt, completion="x"))

    composed, decomposed = "Is caf\u00e9 good?", "Is cafe\u0301 good?"
    spellings = [composed, decomposed, "  is CAFÉ\u00a0good? ", "Is café\n good?", [said("user", decomposed)]]
    assert len({key(each) for each in spellings[:4]}) == 1
    assert key("ﬁbrosis") == key("fibrosis") and key("a") != key("b")
    same = [Row("a", "f:1", prompt=each, completion="y") for each in (composed, decomposed)]
    assert row_key(same[0]) == row_key(same[1]) != row_key(Row("a", "f:1", prompt=composed, completion="z"))
    one, other = (ChoiceRow("a", "f:1", "q", choices, 0) for choices in (("x", "y"), ("y", "x")))
    assert question_key(one) == question_key(other) and row_key(one) == row_key(other)


def test_a_question_is_the_same_under_any_system_message():
    asked, answered = said("user", "Which gene is mutated?"), said("assistant", "CFTR.")

    def key(*turns: dict, **more: Any) -> str:
        return question_key(Row("a", "f:1", messages=[*turns], **more))

    plain = key(asked, answered)
    assert plain == "9704bc66a6e5ca2dc3e76457f75a2319"  # as before, so that splits stay
    for who in ("system", "developer"):
        assert key(said(who, "Be brief."), asked, answered) == key(said(who, "Explain."), asked, answered) == plain
    in_parts = [Row("a", "f:1", prompt=[said("system", one), asked], completion=[answered]) for one in ("x", "y")]
    assert question_key(in_parts[0]) == question_key(in_parts[1]) == plain
    assert key(said("system", "x"), said("user", "Another?"), answered) != plain
    assert key(asked, answered, said("tool", "p.Phe508del"), answered) != plain
    # a system message without a question after it is what is asked
    assert key(said("system", "x"), answered) != key(said("system", "y"), answered)
    assert row_key(in_parts[0]) != row_key(in_parts[1])


@pytest.mark.slow
@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_the_key_knows_neither_unicode_form_nor_white_space(text, form):
    import unicodedata

    def key(prompt: str) -> str:
        return question_key(Row("a", "f:1", prompt=prompt, completion="x"))

    assert key(f" {unicodedata.normalize(form, text)}\n") == key(text)


@example("\u0339 \u0334")
@given(st.text())
def test_bare_names_are_stable(name):
    assert bare(bare(name)) == bare(name)


def test_a_row_is_the_same_in_whichever_form_it_stands():
    turns = [{"role": "user", "content": "Which gene?"}, {"role": "assistant", "content": "TP53."}]
    as_pair = Row("a", "f:1", prompt="which  gene?", completion="TP53.")
    in_turns = Row("b", "f:2", messages=[turns[0], {**turns[1], "weight": 1}])
    in_parts = Row("c", "f:3", prompt=turns[:1], completion=turns[1:])
    assert row_key(as_pair) == row_key(in_turns) == row_key(in_parts)
    assert row_key(as_pair) != row_key(Row("d", "f:4", prompt="which gene?", completion="BRCA1."))


@pytest.mark.parametrize(
    ("name", "value"),
    [("topic", "word " * 30), ("meta", {"source": "x", "abstract": "word " * 50}), ("note", "\u809d" * 20)],
)
def test_content_is_content_under_any_name(name, value):
    assert looks_like_content(name, value)
    assert not looks_like_content("topic", "cell biology of the liver and other organs")


def test_a_table_without_names_of_its_columns(tmp_path):
    (tmp_path / "rows.csv").write_text("What ails Jane Roe?,Angina\nWhat ails John Roe?,Gout\n")
    with pytest.raises(BadInput, match="under a first line that looks like data") as caught:
        list(read_rows(SourceConfig(path=str(tmp_path / "rows.csv"))))
    assert "Roe" not in str(caught.value)


def test_a_choice_that_is_there_twice_counts_once(tmp_path):
    """Of two that read the same, a model can prefer neither: either answer is the right one."""
    rows = [{"question": "q", "choices": ["a", "a", "b"], "answer": answer, "id": f"{answer}"} for answer in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = [(row.choices, row.answer) for row in read_choices(SourceConfig(path=str(path)))]
    assert found == [(("a", "b"), 0), (("a", "b"), 0), (("a", "b"), 1)]
    path.write_text(json.dumps(rows[0] | {"choices": ["SECRET", "SECRET"]}))
    with pytest.raises(BadInput, match=r":1` is 'the same choice in each place'") as caught:
        next(read_choices(SourceConfig(path=str(path))))
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        "Was macht Gen 1 ?",
        "Was macht\u202fGen 1\u202f?",
        "Was\u200b macht Gen 1?",
        "was  macht gen 1?\ufeff",
        "Was macht\u2800Gen 1?",
        *(
            f"Was macht{unseen} Gen 1?"
            for unseen in "\ufe0f\u034f\u115f\u3164\uffa0\u17b4\u180b\u00ad\u2060\x7f\U000e0041\U000e0100"
        ),
    ],
)
def test_questions_that_read_the_same_are_the_same(other):
    def key(text):
        return question_key(Row(id="a", where="a:1", prompt=text, completion="x"))

    assert key(other) == key("Was macht Gen 1?") != key("Was macht Gen 2?")


def test_texts_with_labels_are_not_taken_for_texts_alone(tmp_path):
    rows = [
        {"id": "1", "Abstract": "Gene A binds B.", "Label": "yes"},
        {"id": "2", "Abstract": "It does not.", "Label": "no"},
    ]
    said = error_of(tmp_path, *rows)
    assert "r.jsonl:1 Label` is 'a label', but it looks like what is to be answered" in said
    assert "--prompt '{Abstract}' --completion '{Label}'" in said and "--form abstract" in said
    chosen = rows_of(tmp_path, *rows, columns={"prompt": "{Abstract}", "completion": "{Label}"})
    assert [(row.prompt, row.completion) for row in chosen] == [("Gene A binds B.", "yes"), ("It does not.", "no")]
    assert [row.text for row in rows_of(tmp_path, *rows, form="abstract")] == ["Gene A binds B.", "It does not."]
    assert [row.text for row in rows_of(tmp_path, *rows, columns={"text": "Abstract"})] == [
        "Gene A binds B.",
        "It does not.",
    ]


LETTERS = {"Question": "Which?", "A": "x", "B": "y", "C": "z", "D": "w"}


@pytest.mark.parametrize("wrong", ["E", "A and B", "n/a", "None", "xx", "7"])
@pytest.mark.parametrize("key", ["A", "y", "2"])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_wrong_key_is_refused_and_makes_no_other_table(key, wrong, is_first):
    """It was read as questions with a label for an answer, and no option was learned."""
    rows = [LETTERS | {"answer": key}, LETTERS | {"answer": wrong}]
    first, second = reversed(rows) if is_first else rows
    use = recognise(first, "t:2", more=[("t:3", second)])
    assert use.form.name == "columns_by_letter"
    apply(use, rows[0], "good")
    with pytest.raises(BadInput, match="bad answer"):
        apply(use, rows[1], "bad")


@pytest.mark.parametrize(
    ("answers", "form"),
    [
        (("49", "5"), "columns_by_letter"),  # the text of an option, in every row
        (("1", "4"), "columns_by_letter"),  # a place among four
        (("49", "77"), "question/answer"),
        (("B", "77"), "columns_by_letter"),  # a letter says what the table is; the other row is refused
    ],
)
def test_columns_of_numbers_are_options_where_the_answers_say_so(answers, form):
    """Doses, counts, scores: their options were left out, and the number was learned as a free answer."""
    options = [("9", "37", "49", "5"), ("8", "5", "12", "40")]
    rows = [
        {"question": "How many mg?", **dict(zip("ABCD", own, strict=True)), "answer": answer}
        for own, answer in zip(options, answers, strict=True)
    ]
    assert recognise(rows[0], "t:2", more=[("t:3", rows[1])]).form.name == form


@pytest.mark.parametrize(("first", "right", "wrong"), [(0, 3, 4), (1, 4, 0)])
def test_a_number_names_a_column_of_that_number(first, right, wrong):
    """The message told to write 0 where 0 was what it refused; and an option in `option_0` was not seen."""
    row = {"question": "Which?"} | {f"option_{first + place}": text for place, text in enumerate("wxyz")}
    use = recognise(row | {"answer": str(right)}, "t:2")
    assert apply(use, row | {"answer": str(right)}, "t:2")["answer"] == 3
    told = (
        rf"`t:3 answer` is {wrong}, but must be the label of an option: {', '.join(str(first + n) for n in range(4))}\."
    )
    with pytest.raises(BadInput, match=told):
        apply(use, row | {"answer": str(wrong)}, "t:3")


@pytest.mark.parametrize("values", [("7", "7.0"), (7, "7.00"), (" 7 ", 7.0)])
def test_a_group_is_one_however_a_table_writes_its_number(values):
    use = recognise({"prompt": "a", "completion": "b", "group": values[0]}, "t:2")
    assert {marks_of(use, {"group": value}, ("group",), "t")["group"] for value in values} == {"7"}


@pytest.mark.parametrize("label", ["cell_type", "Disease", "phenotype", "icd10", "cell type", "diagnosis"])
def test_a_text_with_its_label_is_refused_until_it_is_said_what_for(label):
    with pytest.raises(BadInput, match=f"t:2 {label}.*is 'a label'"):
        recognise({"abstract": "A study of T cells.", label: "T"}, "t:2")


@pytest.mark.parametrize("answers", [(3, 5), ("3", "5.5"), ("as a and b say", "more of both")])
def test_columns_a_and_b_without_an_answer_that_names_one_are_no_options(answers):
    rows = [{"question": "How much?", "a": i, "b": "2.5", "answer": answer} for i, answer in enumerate(answers)]
    assert recognise(rows[0], "t:2", more=[("t:3", rows[1])]).form.name == "question/answer"
