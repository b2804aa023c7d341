"""`bft-ray fetch`: what configs need of a hub, and a hub on this machine from which all of it comes once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.model.named import starter_folder
from bft_ray.operate.fetch.bring import fetch, files_of_a_model
from bft_ray.operate.fetch.needs import Need, configs_of, is_hub_model, needs_of
from tests.support.loopback_hub import loopback_hub
from tests.support.paths import ROOT

COLUMNS = {"columns": {"prompt": "question", "completion": "answer"}}
TASK = """
task: own_questions
dataset_path: lab/two
dataset_name: easy
test_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list:
  - metric: acc
"""


def tree_of(model: str, **more) -> dict:
    rows = [{"path": "lab/open", "split": split, **COLUMNS} for split in ("train", "test")]
    return {"domain": "x", "model": {"path": model}, "data": {"train": rows[:1], "validation": rows[1:]}, **more}


def test_everything_of_the_hub_that_a_config_names_and_nothing_else(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    tasks = [
        {"kind": "harness", "tasks": ["mmlu", "cmmlu"]},
        {"kind": "generation", "name": "free", "path": "lab/two", "config_name": "hard", "revision": "v1"},
        {"kind": "generation", "name": "mine", "path": str(rows)},
        {"kind": "generation", "name": "gone", "path": "no-such-file.jsonl"},
        {"kind": "names", "name": "names", "path": str(rows), "encoder": "lab/encoder"},
    ]
    config = make_config(tree_of("lab/model", evaluation={"tasks": tasks}), for_training=False)
    pinned = config.model_copy(update={"model": config.model.model_copy(update={"revision": "v2"})})
    assert needs_of([config, pinned, config]) == [
        Need("model", "lab/model", "model.path"),
        Need("dataset", "lab/open", "data.train.0", splits=("train", "test")),
        Need("tasks", "mmlu,cmmlu", "evaluation.tasks.harness"),
        Need("dataset", "lab/two", "evaluation.tasks.free", "v1", "hard", ("",)),
        Need("encoder", "lab/encoder", "evaluation.tasks.names.encoder"),
        Need("model", "lab/model", "model.path", "v2"),
    ]


def test_the_base_of_an_adapter_is_needed(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "lab/base"}))
    config = make_config(tree_of(str(tmp_path)), for_training=False)
    assert needs_of([config])[0] == Need("model", "lab/base", "model.path")


def test_what_is_no_id_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab" / "here").mkdir(parents=True)
    names = [
        "starter",
        "smollm2",
        "minilm",
        "s3://bucket/model",
        "lab/here",
        "model.gguf",
        "/no/folder",
        "a/b/c",
        "./x",
    ]
    assert [name for name in names if is_hub_model(name)] == []
    assert is_hub_model("lab/elsewhere") and is_hub_model("gpt2")
    with pytest.raises(BadInput, match="exists"):
        needs_of([make_config(tree_of("/no/folder"), for_training=False)])


def test_a_space_needs_each_model_that_it_varies_and_the_splits_of_its_confirmation(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree_of("lab/model")))
    space = {
        "name": "models", "config": "base.yaml", "budget": {"trials": 8},
        "parameters": {
            "model.path": {"kind": "categorical", "values": ["lab/model", "lab/other", "starter"]},
            "loss.window": {"kind": "categorical", "values": [16, 64]},
        },
        "objective": {"metric": "validation/token_accuracy"},
        "confirmation": {
            "top_k": 1, "seeds": [1, 2, 3, 4, 5],
            "overrides": {"data.validation.0.path": "lab/two", "data.validation.0.config_name": "easy"},
        },
    }  # fmt: skip
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(space))
    needs = needs_of(configs_of([str(file)]))
    assert [str(need) for need in needs] == [
        "model     lab/model",
        "dataset   lab/open (train, test)",
        "dataset   lab/two (easy, test)",
        "model     lab/other",
    ]
    assert [str(need) for need in needs_of(configs_of([str(file)], ["data.train.0.path=lab/third"]))][1:3] == [
        "dataset   lab/third (train)",
        "dataset   lab/open (test)",
    ]


def test_configs_and_spaces_by_name():
    assert needs_of(configs_of(["starter"])) == []  # both a config and a space
    [model, *data] = needs_of(configs_of(["qwen_1_5b_numina_math"]))
    assert model.kind == "model" and [need.kind for need in data] == ["dataset"]
    with pytest.raises(BadInput, match="`space` is 'startr', but must be a YAML file or the name of a search space"):
        configs_of(["startr"])


def test_one_copy_of_the_weights():
    beside = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    index, shards = "model.safetensors.index.json", [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    other = ["pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors", "README.md", "x.png", "a.gguf"]
    inner = ["onnx/model.onnx", "original/params.json", "original/model.safetensors"]
    own = "modeling_own.py"
    assert files_of_a_model([*beside, *other, *inner, own, "model.safetensors"], False) == sorted(
        [*beside, "model.safetensors"]
    )
    assert files_of_a_model([*beside, index, *shards, *other, own], True) == sorted([*beside, index, *shards, own])
    assert files_of_a_model([*beside, index, *shards, "model.safetensors"], False) == sorted(
        [*beside, "model.safetensors"]
    )


def test_offline_it_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(tree_of("lab/model")))
    with pytest.raises(BadInput, match="`HF_HUB_OFFLINE` is '1', but must be left unset"):
        fetch([str(tmp_path / "a.yaml")], [], print)


@pytest.fixture(scope="module")
def hub():
    """(address, what was asked, repositories) of a hub with the starter model, also under the names of two others."""
    files = {file.name: file.read_bytes() for file in Path(starter_folder()).iterdir() if file.is_file()}
    more = {"lab/model": files | {"pytorch_model.bin": bytes(10**6)}, "lab/encoder": files}
    with loopback_hub(more) as (address, asked):
        yield address, asked, more


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config of every kind of need, and the cache."""
    home = tmp_path_factory.mktemp("fetch")
    (home / "tasks").mkdir()
    (home / "tasks" / "own.yaml").write_text(TASK)
    (home / "names.jsonl").write_text(
        "".join(json.dumps({"prompt": "Name?", "gold_name": name}) + "\n" for name in "xy")
    )
    tasks = [
        {"kind": "harness", "tasks": ["own_questions"], "include_path": str(home / "tasks")},
        {
            "kind": "names",
            "name": "names",
            "path": str(home / "names.jsonl"),
            "encoder": "lab/encoder",
            "num_choices": 2,
        },
    ]
    (home / "bft.yaml").write_text(yaml.safe_dump(tree_of("lab/model", evaluation={"tasks": tasks})))
    return home


def typed(home: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_HOME": str(home / "hub"), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "bft_ray.cli", *words]
    done = subprocess.run(
        command, env={**kept, **own, **environment}, cwd=home, capture_output=True, text=True, timeout=720
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.release
def test_all_of_it_comes_once_and_opens_without_the_hub(hub, home):
    address, asked, more = hub
    code, out, err = typed(home, "fetch", "bft.yaml", HF_ENDPOINT=address)
    assert code == 0, err
    num_bytes = sum(len(content) for name, content in more["lab/encoder"].items() if name != "README.md")
    of_model = f"7 files, {num_bytes / 1e6:.1f} MB, {num_bytes / 1e6:.1f} MB of it new"
    lines = out.splitlines()
    assert lines[:2] == [
        f"model     lab/model: {of_model}",
        "dataset   lab/open (train, test): 5 rows, 1 kB with all splits",
    ]
    assert lines[2].startswith("tasks     own_questions: ") and lines[3] == f"encoder   lab/encoder: {of_model}"
    assert lines[4] == f"where     {home}/hub/hub (models), {home}/hub/datasets (data)"
    assert lines[-1] == "checked   4 of 4 open with HF_HUB_OFFLINE=1"
    assert not [one for one in asked if "pytorch_model.bin" in one or ("README" in one and "/lab/model/" in one)]

    before = len(asked)
    code, out, err = typed(home, "fetch", "bft.yaml", HF_ENDPOINT=address)
    assert code == 0, err
    assert out.count("0 kB of it new") == 2 and "4 of 4 open" in out
    assert not [one for one in asked[before:] if one.startswith("GET") and "/resolve/" in one]

    [weights] = (home / "hub/hub/models--lab--model").glob("snapshots/*/model.safetensors")
    whole = weights.read_bytes()
    os.truncate(weights, len(whole) // 2)
    code, out, err = typed(home, "fetch", "bft.yaml", HF_ENDPOINT=address)
    assert code == 0, err
    assert f"model     lab/model: 7 files, {num_bytes / 1e6:.1f} MB, {len(whole) / 1e6:.1f} MB of it new" in out
    assert weights.read_bytes() == whole

    code, out, err = typed(home, "doctor", "bft.yaml", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert "ok    model" in out and "ok    data" in out, out + err
    assert "FAIL" not in out, out


@pytest.mark.long
def test_what_is_missing_is_named_and_the_rest_is_fetched(hub, home, tmp_path):
    address = hub[0]
    (tmp_path / "bft.yaml").write_text(yaml.safe_dump(tree_of("lab/none")))
    code, out, err = typed(tmp_path, "fetch", "bft.yaml", HF_ENDPOINT=address)
    assert code == 1
    assert "checked   1 of 2 open with HF_HUB_OFFLINE=1" in out
    assert "`model.path` is 'lab/none', but must be the hub id of a model: the hub knows none of this name" in err
    assert "lab/open" not in err and "Traceback" not in err
    own = ["data.train.0.path=starter:math/train", "data.validation.0.path=starter:math/validation"]
    code, out, err = typed(tmp_path, "fetch", "bft.yaml", *own, HF_ENDPOINT="http://127.0.0.1:9")
    assert code == 1 and "the hub does not answer" in err and "Traceback" not in err
    code, out, err = typed(tmp_path, "evaluate", "bft.yaml", HF_HUB_OFFLINE="1")
    assert code == 2 and "Run `bft-ray fetch CONFIG` where there is a network" in err
