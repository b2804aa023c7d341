"""Of a config: which items of its tasks are in its training rows; told by id, never by text."""

from __future__ import annotations

import json
from pathlib import Path

from bft_ray.cli import main
from bft_ray.config import make_config
from bft_ray.evaluate.overlap import notes, overlaps, write

SECRET = "the patient of bed twelve has had a cough since the third week of march and a rash on both arms"


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tree_of(make_tree, folder):
    write_rows(folder / "train.jsonl", [{"id": "r1", "prompt": f"Case: {SECRET}. What now?", "completion": "Rest."}])
    rows = [
        {"id": "q1", "question": f"{SECRET.title()}?", "choices": ["flu", "measles"], "answer": 1},
        {
            "id": "q2",
            "question": "Which gene lies on chromosome one near the centromere?",
            "choices": ["a", "b"],
            "answer": 0,
        },
    ]
    write_rows(folder / "choices.jsonl", rows)
    write_rows(folder / "text.jsonl", [{"id": "t1", "text": "nothing of it"}])
    tasks = [{"kind": "choice", "path": str(folder / "choices.jsonl")}]
    tasks.append({"kind": "text", "name": "general", "path": str(folder / "text.jsonl")})
    tree = make_tree(evaluation={"tasks": tasks})
    tree["data"]["train"] = [{"path": str(folder / "train.jsonl")}]
    return tree


def test_items_in_the_training_rows_are_told_by_id(make_tree, tmp_path):
    config = make_config(tree_of(make_tree, tmp_path))
    found = overlaps(config, {task.name: task for task in config.evaluation.tasks})
    assert {name: (one.num_items, dict(one.rows)) for name, one in found.items()} == {
        "choices": (2, {"q1": "r1"}),
        "general": (1, {}),
    }
    [note] = notes(found)
    assert note.startswith("note: 1 of the 2 items of choices are in training rows") and "q1 with row r1" in note
    assert "patient" not in note
    write(found, tmp_path)
    assert json.loads((tmp_path / "overlap.json").read_text())["choices"] == {"num_items": 2, "rows": {"q1": "r1"}}


def test_with_two_sources_the_row_says_which(make_tree, tmp_path):
    tree = tree_of(make_tree, tmp_path)
    write_rows(tmp_path / "other.jsonl", [{"id": "o", "prompt": "What is DNA?", "completion": "A molecule."}])
    tree["data"]["train"].insert(0, {"path": str(tmp_path / "other.jsonl")})
    config = make_config(tree)
    assert overlaps(config, {"choices": config.evaluation.tasks[0]})["choices"].rows == {"q1": "1/r1"}


def test_evaluate_says_so_and_writes_the_ids(make_tree, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree_of(make_tree, tmp_path)))
    assert main(["evaluate", str(path), "--task", "choices", "--out", str(tmp_path / "out")]) == 0
    assert "note: 1 of the 2 items of choices are in training rows" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "overlap.json").read_text()).keys() == {"choices"}


def test_training_rows_that_are_gone_cost_no_evaluation(make_tree, tmp_path, capsys):
    """Somebody who only measures may not have them."""
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree_of(make_tree, tmp_path)))
    (tmp_path / "train.jsonl").unlink()
    assert main(["evaluate", str(path), "--task", "choices", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "note: whether items are in the training rows is not known: `data.train.0.path`" in said
    assert "choices/accuracy" in said and (tmp_path / "out" / "metrics.json").is_file()
