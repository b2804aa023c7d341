"""`jobs.chaos`: a sample of what it draws, that it finds what is wrong, and one study that is killed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bft_ray.errors import BadInput
from jobs import chaos, chaos_commands, chaos_files, chaos_inputs
from jobs.chaos_kills import compare, compare_files, table


@pytest.mark.slow
def test_a_sample_of_damaged_files(tmp_path):
    outcomes, faults = chaos_files.run_corruption(tmp_path / "files", 18, 36)
    assert not faults and sum(outcomes.values()) == 36
    assert {kind for kind, _ in outcomes} == {kind.name for kind in chaos_files.kinds()}
    assert sum(number for (_, how), number in outcomes.items() if how != "harmless") > 30


@pytest.mark.slow
def test_a_sample_of_malformed_inputs(tmp_path):
    outcomes, faults = chaos_inputs.run_inputs(tmp_path / "inputs", 18, 72)
    assert not faults and sum(outcomes.values()) == 72
    assert outcomes["config", "one error"] >= 4 and outcomes["rows, CSV", "one error"] >= 2


def test_a_reader_that_believes_everything_is_found_out(tmp_path, monkeypatch):
    """Nothing is found by a search that cannot find."""

    def write(folder: Path) -> None:
        (folder / "a.json").write_text('{"step": 12}')

    credulous = chaos_files.Kind("x", write, "*.json", lambda folder: (folder / "a.json").read_bytes())
    mute = chaos_files.Kind(
        "y", write, "*.json", lambda folder: chaos_files.ABSENT if (folder / "a.json").read_bytes()[-1:] != b"}" else 1
    )
    fragile = chaos_files.Kind(
        "z", write, "*.json", lambda folder: json.loads((folder / "a.json").read_bytes())["step"] // 12
    )
    monkeypatch.setattr(chaos_files, "kinds", lambda: [credulous, mute, fragile])
    outcomes, faults = chaos_files.run_corruption(tmp_path / "files", 0, 60)
    assert outcomes["x", "fault"] == 20  # each change is one of what is read
    assert 4 <= outcomes["y", "fault"] < 20 and "no line names it" in next(f.what for f in faults if f.kind == "y")
    assert any(fault.what.startswith("JSONDecodeError") for fault in faults if fault.kind == "z")
    quoting = chaos_inputs.Kind("q", chaos_inputs._write_csv, "*.csv", _quote)
    monkeypatch.setattr(chaos_inputs, "kinds", lambda: [quoting])
    assert len(chaos_inputs.run_inputs(tmp_path / "inputs", 0, 12)[1]) > 3


@pytest.mark.parametrize(
    ("status", "said", "value", "outcome"),
    [
        (0, "", 1.5, "as undisturbed"),
        (0, "note: PLACE/a/b.json is damaged: it counts as absent", 1.5, "as undisturbed, named"),
        (0, "note: PLACE/a/b.json is damaged", 1.25, "fault"),
        (2, "a line\nerror: `folder` is PLACE/a/b.json, but must be whole", 1.5, "an error names it"),
        (2, "error: a file is damaged", 1.5, "fault"),
        (2, "error: b.json is damaged\nerror: b.json is damaged", 1.5, "fault"),
        (1, "Traceback (most recent call last):\nerror: PLACE/a/b.json", 1.5, "fault"),
        (None, "PLACE/a/b.json", 1.5, "fault"),
    ],
)
def test_a_command_over_a_damaged_file_is_judged(status, said, value, outcome, tmp_path):
    command = chaos_commands.Command(("evaluate",), ("a/*",), lambda place: {"nll": value})
    path = tmp_path / "a" / "b.json"
    found, what = chaos_commands.judge(
        command, tmp_path, path, status, said.replace("PLACE", str(tmp_path)), {"nll": 1.5}
    )
    assert found == outcome and bool(what) == (outcome == "fault")


def _quote(folder: Path) -> None:
    lines = (folder / "rows.csv").read_text(errors="replace").splitlines()
    if len(lines) != 21 or not lines[0].startswith("id,"):
        raise BadInput("rows", lines[-1][-60:], "whole")


def test_the_same_seed_draws_the_same(tmp_path):
    changed = []
    for _ in range(2):
        (tmp_path / "a.jsonl").write_text("".join(f'{{"a": {number}}}\n' for number in range(9)))
        changed.append(
            (chaos_inputs.mutate(tmp_path / "a.jsonl", random.Random("1/7")), (tmp_path / "a.jsonl").read_bytes())
        )
    assert changed[0] == changed[1]


def test_what_was_done_is_kept_and_belongs_to_its_seed(tmp_path):
    assert chaos.load(tmp_path, 3) == {"seed": 3}
    chaos.save(tmp_path, {"seed": 3, "kills": {"walks": []}})
    assert chaos.load(tmp_path, 3) == {"seed": 3, "kills": {"walks": []}}
    with pytest.raises(BadInput, match="3 as before"):
        chaos.load(tmp_path, 4)
    (tmp_path / "state.json").write_text('{"se')
    with pytest.raises(BadInput, match="Remove the folder"):
        chaos.load(tmp_path, 3)


def test_studies_are_compared_to_the_last_bit():
    before = {"search/0": {"value": 0.5, "rungs": {"2": {"0": 0.25}}}, "versions": 1}
    assert compare(before, json.loads(json.dumps(before))) == []
    now = {"search/0": {"value": 0.5, "rungs": {"2": {"0": 0.25 + 2**-54}}}, "search/1": {"value": 0.1}, "versions": 2}
    assert [text.partition(":")[0] for text in compare(before, now)] == ["search/0.rungs.2.0", "search/1", "versions"]
    assert compare_files(["a", "b"], ["b", "c.part"]) == ["files lost: ['a'] (1)", "files left: ['c.part'] (1)"]


def test_the_table_counts_each_study_with_its_kinds():
    walks = [
        {"kills": [["gcs", 1.0], ["gcs", 2.0]], "differences": []},
        {"kills": [["gcs", 1.0], ["head", 3.0]], "differences": ["a", "b"]},
    ]
    lines = table(walks).splitlines()
    assert (
        "| gcs | 3 | 2 | 1 | 2 |" in lines
        and "| head | 1 | 1 | 0 | 2 |" in lines
        and lines[-1] == "| all | 4 | 2 | 1 | 2 |"
    )


@pytest.mark.release
def test_a_study_that_is_killed_finds_the_same(tmp_path, capsys):
    words = ["--part", "kills", "--seed", "5", "--kills", "2", "--minutes", "30", "--folder", str(tmp_path / "chaos")]
    assert chaos.main(words) == 0, capsys.readouterr().out[-3000:]
    state = json.loads((tmp_path / "chaos" / "state.json").read_text())
    assert sum(len(walk["kills"]) for walk in state["kills"]["walks"]) == 2
    assert state["kills"]["undisturbed"]["versions"] == 1 and state["kills"]["undisturbed"]["lease"] is None


@pytest.mark.release
def test_commands_over_a_damaged_file(tmp_path, capsys):
    words = ["--part", "commands", "--seed", "5", "--commands", "4", "--folder", str(tmp_path / "chaos")]
    assert chaos.main(words) == 0, capsys.readouterr().out[-3000:]
    state = json.loads((tmp_path / "chaos" / "state.json").read_text())
    assert [draw["command"] for draw in state["commands"]["draws"]] == ["evaluate", "train", "profile", "search"]
