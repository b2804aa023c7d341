"""A run goes on with its own data, weights and settings, and with nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bft_ray.config import flatten, make_config
from bft_ray.errors import BadConfig, BadInput
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.checksums import write_checksums
from bft_ray.places.kept import write_kept
from bft_ray.tracking.server import connect
from bft_ray.train.launch import load_datasets, train
from bft_ray.train.pins import pin
from bft_ray.train.progress import Display
from bft_ray.train.record import identity_of, only_one, read_record, refuse_other_run, write_record


class Lines(Display):
    """Keeps what is said."""

    def __init__(self):
        super().__init__()
        self.said: list[str] = []

    def line(self, text):
        self.said.append(text)


@pytest.fixture
def begun(make_tree, tiny_model, tiny_data, tmp_path):
    """The tree of a run that has saved a checkpoint, on files of its own, with an item to be measured."""
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(tiny_data, tmp_path / "rows.jsonl")
    (tmp_path / "quiz.jsonl").write_text(
        json.dumps({"id": "q", "question": "w1", "choices": ["w2", "w3"], "answer": 1})
    )
    tree = make_tree(
        model={"path": str(tmp_path / "model")},
        evaluation={"tasks": [{"kind": "choice", "name": "quiz", "path": str(tmp_path / "quiz.jsonl")}]},
    )
    tree["data"]["train"] = [{"path": str(tmp_path / "rows.jsonl")}]
    config = pin(make_config(tree))
    datasets = load_datasets(config, load_tokenizer(config.model), Lines())
    folder = Path(config.cluster.storage_path) / "run"
    write_record(str(folder), config, "0" * 32, identity_of(config, datasets))
    (folder / "step-00000002").mkdir()
    return tree


def refused(tree: dict) -> str:
    """Of a start, which no worker sees."""
    with pytest.raises(BadConfig) as caught:
        train(make_config(tree), Lines())
    return str(caught.value)


def test_another_data_file_in_the_place_of_the_first_is_refused(begun, tmp_path):
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:37]))
    text = refused(begun)
    assert text.startswith(
        "the run `run` began with other data or weights than those of now; restore them, or choose another "
        "name. It has 1 problem:\n  - `data.train` was '"
    )
    line = r"`data.train` was '[0-9a-f]{12}\.\.\.', and is now '[0-9a-f]{12}\.\.\.' \(fingerprint of the rows of .*rows.jsonl\)"
    assert re.search(line, text)


def test_other_weights_and_other_items_are_refused(begun, tmp_path):
    weights = tmp_path / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    (tmp_path / "quiz.jsonl").write_text((tmp_path / "quiz.jsonl").read_text().replace("w3", "w4"))
    text = refused(begun)
    assert "It has 2 problems" in text and "`model.path` was '" in text and "`evaluation.tasks.quiz` was '" in text


def test_other_settings_are_refused_and_places_are_not(begun, tmp_path):
    assert "`loss.window` was 256, and is now 3" in refused(begun | {"loss": {"window": 3}})
    overlay = begun | {"deepspeed": {"overlay": {"wall_clock_breakdown": True}}}
    assert "`deepspeed.overlay` was '{}', and is now {'wall_clock_breakdown': True}" in refused(overlay)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w1", "completion": "w2"}')  # what the next two get to
    places = {"checkpoint": {"keep": 4, "every_steps": 1}, "tracking": {"uri": f"sqlite:///{tmp_path}/other.db"}}
    assert "`data.train` was" in refused(begun | places)


@pytest.fixture
def untrained(begun, tmp_path):
    """The same without a checkpoint, as of a training that failed before."""
    (tmp_path / "results" / "run" / "step-00000002").rmdir()
    return begun


ANEW = (
    "note: the run run exists with other settings or data, and has trained nothing: it begins anew; the MLflow run "
    + "0" * 32
)


def test_a_finished_run_whose_export_is_damaged(begun, tmp_path):
    """It was said to be finished, as if all was well."""
    config = pin(make_config(begun))
    folder = Path(config.cluster.storage_path) / "run"
    identity = identity_of(config, load_datasets(config, load_tokenizer(config.model), Lines()))
    write_record(str(folder), config, "0" * 32, identity, step=2, before={}, after={})
    (folder / "export").mkdir()
    shutil.copy(tmp_path / "model" / "model.safetensors", folder / "export")
    write_checksums(folder / "export")
    assert train(make_config(begun), Lines()).step == 2
    with (folder / "export" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(
        BadInput,
        match=r"model\.safetensors.*unchanged since.*Remove .*/export and give the same command: it is made again",
    ):
        train(make_config(begun), Lines())


def test_the_name_of_a_run_that_has_trained_nothing_is_free(untrained, tmp_path):
    """With other settings, and with other data: each start gets past the check, to a fault that is found after it."""
    chosen = tmp_path / "results" / "run" / "packing.json"
    write_kept(chosen, {"packing": True})
    gone, lines = {"model": {"path": "/no/such/model"}}, Lines()
    with pytest.raises(BadInput, match="no/such/model"):
        train(make_config(untrained | gone | {"loss": {"window": 3}}), lines)
    assert lines.said[0].startswith(ANEW) and not chosen.exists()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w1", "completion": "w2"}')
    (tmp_path / "quiz.jsonl").write_text("{}")
    lines = Lines()
    with pytest.raises(BadInput, match=r"quiz\.jsonl:1"):
        train(make_config(untrained), lines)
    assert sum(text.startswith(ANEW) for text in lines.said) == 1


@pytest.mark.slow
def test_a_run_that_still_runs_is_no_run_that_failed(untrained, tmp_path):
    client = connect(untrained["tracking"]["uri"])
    run_id = client.create_run(client.create_experiment("x")).info.run_id
    path = tmp_path / "results" / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record | {"run_id": run_id}))
    other = untrained | {"loss": {"window": 3}, "model": {"path": "/no/such/model"}}
    assert "`loss.window` was 256, and is now 3" in refused(other)
    client.set_terminated(run_id, "FAILED")
    with pytest.raises(BadInput, match="no/such/model"):
        train(make_config(other), Lines())


def test_a_run_of_before_is_taken_with_a_word(begun, tmp_path):
    """Its `run.json` has neither fingerprints nor a checksum: what follows is another run's database, which is told next."""
    path = tmp_path / "results" / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["identity"], record["sha256"]
    record["config"]["data.packing"] = True  # which had a value always
    record["config"] = {k: v for k, v in record["config"].items() if not k.endswith(".form")}  # which it did not know
    path.write_text(json.dumps(record))
    lines = Lines()
    with pytest.raises(BadInput, match=r"`run_id` is '0{32}', but must be a run of the tracking server"):
        train(make_config(begun), lines)
    assert [
        text for text in lines.said if text.startswith("note: the run run began with a version of bft-ray that kept")
    ]


def test_a_run_that_is_refused_leaves_no_folder(make_tree, tmp_path):
    """Where results go is tried, and left as it was."""
    with pytest.raises(BadInput, match="no/such/model"):
        train(make_config(make_tree(model={"path": "/no/such/model"})), Lines())


def test_one_more_key_of_a_mapping_is_another_setting(make_tree):
    one, two = (
        make_config(make_tree(deepspeed={"overlay": dict.fromkeys(names, True)}))
        for names in (["wall_clock_breakdown"], ["wall_clock_breakdown", "dump_state"])
    )
    refuse_other_run({"config": flatten(one)}, one)
    with pytest.raises(BadConfig, match=r"`deepspeed.overlay.dump_state` was None, and is now True"):
        refuse_other_run({"config": flatten(one)}, two)
    before = flatten(one)
    del before["data.shuffle"]  # a version without it did what its default does
    refuse_other_run({"config": before}, one)


@pytest.mark.parametrize("option", ["password=secret", "sslpassword=secret", "X_TOKEN=secret"])
def test_a_password_at_the_end_of_an_address_is_left_out_of_the_record(make_tree, tmp_path, option):
    config = make_config(make_tree(tracking={"uri": f"postgresql://h/db?{option}"}))
    write_record(str(tmp_path), config, "0" * 32, {})
    assert "secret" not in (tmp_path / "run.json").read_text()
    record = read_record(str(tmp_path))
    assert record["config"]["tracking.uri"] == f"postgresql://h/db?{option.split('=')[0]}=***"
    refuse_other_run(record, config)


HOLD = """
import sys, time
from bft_ray.train.record import only_one
with only_one(sys.argv[1], "run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_two_commands_do_not_train_one_run(make_tree, tmp_path):
    """The second one is refused before it reads a row; a killed one holds nothing."""
    tree = make_tree()
    folder = tmp_path / "results" / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match=r"`name` is 'run', but must be the name of a run that no other command is"):
            train(make_config(tree), Lines())
        assert not list(folder.iterdir())
    finally:
        other.kill()
        other.wait(30)
    folder.rmdir()
    with only_one(str(folder), "run"):
        assert folder.is_dir()
    assert not folder.exists()  # nothing was begun


def test_a_folder_that_another_command_removes_is_held_by_one_at_a_time(tmp_path):
    """Who has trained nothing removes the folder that it made, perhaps between the making and the lock of another one."""
    holders, most, held, refused = [], [0], [0], [0]

    def work() -> None:
        for _ in range(150):
            try:
                with only_one(str(tmp_path / "results" / "run"), "run"):
                    holders.append(1)
                    most[0], held[0] = max(most[0], len(holders)), held[0] + 1
                    time.sleep(0)
                    holders.pop()
            except BadInput:
                refused[0] += 1

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work) for _ in range(4)]:
            done.result(timeout=180)
    assert most[0] == 1 and held[0] > 20, (most, held, refused)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"the name of a folder: .* is a file"), only_one(str(tmp_path / "file"), "run"):
        pass


def test_validation_rows_that_are_trained_on_are_told(make_tree, tiny_data, tmp_path):
    lines, tree = Lines(), make_tree()  # the first 12 rows are both
    config = make_config(tree)
    load_datasets(config, load_tokenizer(config.model), lines)
    assert "note: 12 of the 12 validation rows are training rows too" in lines.said[-1]
    rows = tiny_data.read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(rows[12:]))
    tree["data"]["train"] = [{"path": str(tmp_path / "train.jsonl")}]
    lines.said.clear()
    load_datasets(make_config(tree), load_tokenizer(config.model), lines)
    assert len(lines.said) == 2 and "too" not in lines.said[-1]
