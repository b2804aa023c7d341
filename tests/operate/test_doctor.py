"""The doctor's findings: each check against a thing that is right and one that is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from bft_ray.config import make_config
from bft_ray.errors import BadConfig, BadInput
from bft_ray.model import check
from bft_ray.operate import configured, doctor, machine, nodes
from bft_ray.operate.doctor import Finding, diagnose, exit_code, render
from bft_ray.train.pins import pin
from bft_ray.train.record import write_record
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny Llama with a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate([*alphabet, "<end>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(LlamaConfig(vocab_size=257, max_position_embeddings=512, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture
def tree(model, tmp_path) -> dict:
    """A config without a fault."""
    for name in ("train", "validation"):
        rows = [{"prompt": f"{name} question {n}", "completion": f"answer {n}"} for n in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    choice = {"question": "q", "choices": ["a", "b"], "answer": 1}
    (tmp_path / "choices.jsonl").write_text(json.dumps(choice) + "\n")
    return {
        "domain": "test",
        "model": {"path": str(model), "dtype": "fp32"},
        "data": {
            "train": [{"path": str(tmp_path / "train.jsonl")}],
            "validation": [{"path": str(tmp_path / "validation.jsonl")}],
            "max_length": 256,
        },
        "cluster": {"storage_path": str(tmp_path / "results"), "gpus_per_worker": 0},
        "evaluation": {"tasks": [{"kind": "choice", "path": str(tmp_path / "choices.jsonl")}]},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db", "timeout_s": 10.0},
    }


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def failed(findings: list[Finding], check: str) -> Finding:
    [finding] = [finding for finding in findings if finding.check == check and finding.status == "fail"]
    assert finding.remedy, "every failing finding carries its remedy"
    return finding


def test_a_config_without_a_fault(tree):
    findings = diagnose(make_config(tree))
    wrong = [finding for finding in findings if finding.status == "fail"]
    assert wrong == [] and exit_code(findings) == 0, render(findings)
    checks = [finding.check for finding in findings]
    assert {"versions", "compiler", "gpu", "cpu", "memory", "disk", "model", "tracking", "storage"} <= set(checks)
    assert checks.count("data") == 3
    details = " ".join(finding.detail for finding in findings)
    assert "5 first rows" in details and "choices: read, 1 item" in details and "question 1" not in details


@pytest.mark.slow
def test_a_config_that_only_measures(tree, tmp_path):
    del tree["data"]["train"]
    findings = diagnose(make_config(tree, for_training=False))
    assert exit_code(findings) == 0
    assert "WARN  data      data.train names nothing: this config measures and cannot train" in render(findings)
    (tmp_path / "measure.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "bft_ray.cli", "doctor", "measure.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("next      bft-ray evaluate measure.yaml")


def test_every_fault_is_found_at_once_with_its_remedy(tree, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "validation.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    tree["model"]["path"] = str(tmp_path / "broken")
    tree["data"]["train"][0]["path"] = str(tmp_path / "none.jsonl")
    tree["cluster"] |= {"storage_path": str(tmp_path / "file" / "results"), "num_workers": 9, "cpus_per_worker": 1000.0}
    tree["tracking"]["uri"] = "http://ann:s3cr3t-pw@127.0.0.1:9"
    begun = time.monotonic()
    findings = diagnose(make_config(tree))
    assert time.monotonic() - begun < 60 and exit_code(findings) == 1
    failed(findings, "model"), failed(findings, "tracking"), failed(findings, "storage")
    assert "9000" in failed(findings, "cpu").detail
    train, validation = [f for f in findings if f.check == "data" and f.status == "fail"]
    assert "none.jsonl" in train.detail and "validation.jsonl:2" in validation.detail
    text = render(findings)
    assert "s3cr3t-pw" not in text and "FAIL" in text and "->" in text
    assert text.splitlines()[-1].startswith(f"{sum(f.status == 'fail' for f in findings)} failed")


def test_the_model_is_looked_at_closely(tree, model, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    tree["model"]["path"] = str(copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BadInput, match="a whole safetensors file"):
        list(configured.check_model(make_config(tree)))
    shutil.copy(model / "model.safetensors", weights)
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    broken = sorted(tensors)[2]
    tensors[broken].fill_(float("nan"))
    save_file(tensors, weights)
    with pytest.raises(BadInput, match=f"a file of finite numbers; {broken} begins with NaN"):
        list(configured.check_model(make_config(tree)))
    odd = {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 3), "whole": torch.ones(3, dtype=torch.int64)}
    save_file(tensors | odd | {broken: torch.ones_like(tensors[broken])}, weights)
    list(configured.check_model(make_config(tree)))
    weights.unlink()
    with pytest.raises(BadInput, match=r"\*\.safetensors weights"):
        list(configured.check_model(make_config(tree)))
    tree["model"]["path"] = str(model)
    tree["data"] |= {"max_length": 1024}
    [fine, note] = configured.check_model(make_config(tree))
    assert (fine.status, note.status) == ("ok", "warn") and "made for 512 positions" in note.detail
    tree["data"] |= {"max_length": 256}
    tree["lora"] = {"targets": ["no_such_module"]}
    with pytest.raises(BadInput, match="q_proj"):
        list(configured.check_model(make_config(tree)))


def test_a_revision_of_a_folder_is_told(tree):
    tree["model"]["revision"] = "abc"
    notes = [one for one in configured.check_model(make_config(tree)) if "model.revision is abc" in one.detail]
    assert [one.status for one in notes] == ["warn"]
    assert make_config(tree).exported("/export").revision is None  # a whole model needs no base
    tree["lora"] = {"rank": 2}
    assert make_config(tree).exported("/export").revision == "abc"


def test_an_attention_that_cannot_be_had_is_found_before_a_run(tree):
    tree["model"]["attention"] = "flash_attention_2"
    finding = failed(diagnose(make_config(tree)), "model")
    assert finding.detail.startswith(
        "`model.attention` is 'flash_attention_2', but must be an attention that this model"
    )
    assert ".." not in finding.detail + finding.remedy
    assert "model.attention=sdpa" in finding.remedy and "FlashAttention 2" in finding.remedy
    findings = diagnose(
        make_config(tree | {"cluster": tree["cluster"] | {"address": "127.0.0.1:1", "start_timeout_s": 1}})
    )
    [told] = [finding for finding in findings if finding.check == "settings"]
    assert told.status == "warn" and "each node needs it" in told.detail  # the nodes may have it


def test_the_space_beside_a_config(tree, tmp_path, monkeypatch):
    """Its splits are read too; where the config has a fault, that one is told alone."""
    path = tmp_path / "search_space.yaml"
    for name in ("validation", "confirmation"):
        rows = [{"prompt": f"{name} {n}", "completion": f"answer {n}"} for n in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bft.yaml").write_text(yaml.safe_dump(tree))
    space = {
        "name": "small",
        "config": "bft.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
        "objective": {"metric": "validation/token_accuracy"},
        "budget": {"trials": 2, "steps": 4},
        "sampler": {"kind": "random"},
        "scheduler": {"kind": "none"},
        "confirmation": {"overrides": {"data.validation": [{"path": str(tmp_path / "confirmation.jsonl")}]}},
    }
    path.write_text(yaml.safe_dump(space))
    (ok,) = configured.check_space(path)
    assert ok.detail == "search_space.yaml fits the config; its splits (search, confirmation) are read, and differ"
    same = f"data.validation.0.path={tmp_path / 'confirmation.jsonl'}"  # as `bft-ray search` would take it
    with pytest.raises(BadConfig, match=r"measured on other data than in the search"):
        list(configured.check_space(path, [same]))
    (tmp_path / "confirmation.jsonl").write_text((tmp_path / "validation.jsonl").read_text())
    with pytest.raises(BadInput, match="5 of the 5 rows of the confirmation data are rows of the search data too"):
        list(configured.check_space(path))
    path.write_text(yaml.safe_dump(space | {"confirmation": None}))
    tree |= {"deepspeed": {"preset": "zero1"}, "model": tree["model"] | {"dtype": "bf16"}}
    (tmp_path / "bft.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(check, "bf16_slowdown", lambda: 45.0)
    found = diagnose(make_config(tree), space=path)
    assert [one.check for one in found if "take 45 times as long" in one.detail] == [
        "model"
    ]  # a study's checks tell it too
    assert [one.status for one in found if one.check == "space"] == ["ok"]
    path.write_text(yaml.safe_dump(space | {"budjet": 1}))
    [finding] = [found for found in diagnose(make_config(tree), space=path) if found.check == "space"]
    assert finding.status == "fail" and "budjet" in finding.detail
    tree["data"]["train"][0]["path"] = str(tmp_path / "none.jsonl")
    assert "space" not in [found.check for found in diagnose(make_config(tree), space=path)]


def test_validation_rows_that_are_trained_on_are_told(tree, tmp_path):
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(8)]
    for name, own in (("train", rows[:6]), ("validation", rows[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        tree["data"][name] = [{"path": str(tmp_path / f"{name}.jsonl")}]
    [told] = [found for found in configured.check_data(make_config(tree)) if found.status == "warn"]
    assert told.detail == "2 of the 4 first rows of data.validation are training rows too"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    assert all(found.status == "ok" for found in configured.check_data(make_config(tree)))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_length": 8, "too_long": "drop"}, "but must be a source with a supervised token"),
        ({"max_length": 8, "too_long": "error"}, "but must be at most data.max_length (8) tokens"),
    ],
)
def test_rows_that_no_training_takes_are_found_without_a_space(tree, tmp_path, fields, told):
    tree["data"] |= {"cache_dir": str(tmp_path / "cache"), "micro_batch_tokens": 256} | fields
    assert told in failed(diagnose(make_config(tree)), "tokens").detail


def test_tokens_of_a_doctor_pass_where_none_are_kept(tree, tmp_path):
    tree["data"] |= {"cache_dir": str(tmp_path / "cache"), "keep_tokens": False}
    assert "2 ok" in render(list(configured.check_samples(make_config(tree))))
    assert not any(file.is_file() for file in (tmp_path / "cache").rglob("*"))


def test_a_name_that_is_taken_with_other_settings_is_found(tree, tmp_path):
    """A training refuses it; one without a checkpoint begins anew."""
    config = pin(make_config(tree | {"name": "one"}))
    folder = tmp_path / "results" / "one"
    folder.mkdir(parents=True)
    write_record(str(folder), config, "run", {})
    other = make_config(tree | {"name": "one", "seed": 3})
    assert list(configured.check_name(other)) == []
    (folder / "step-00000001").mkdir()
    assert [finding.status for finding in configured.check_name(config)] == ["ok"]
    with pytest.raises(BadConfig, match="the run `one` exists with other settings"):
        list(configured.check_name(other))


def test_surprising_settings_are_told(tree):
    assert list(configured.check_settings(make_config(tree))) == []
    tree["lora"] = {"dropout": 0.1}
    tree["loss"] = {"method": "sft", "window": 64}
    dropout, unused = configured.check_settings(make_config(tree))
    assert dropout.status == unused.status == "warn"
    assert "lora.dropout is 0.1" in dropout.detail and "loss.window" in unused.detail


def test_a_training_of_one_step_is_told(tree):
    tree["data"]["global_batch_size"] = 2
    tree["schedule"] = {"epochs": 0.4}  # of 5 rows: 2, which is one step
    [single] = configured.check_schedule(make_config(tree))
    assert single.status == "warn" and single.remedy
    assert single.detail == "schedule.epochs is 0.4: a single step, with 5 rows and data.global_batch_size 2"
    tree["schedule"] = {"epochs": 0.41}
    assert list(configured.check_schedule(make_config(tree))) == []
    tree["schedule"] = {"epochs": 1e-9, "steps": 1}
    assert list(configured.check_schedule(make_config(tree))) == []


def test_batches_that_hold_rows_twice_are_told(tree):
    tree["schedule"] = {"steps": 3}
    tree["data"]["global_batch_size"] = 5  # all rows
    assert list(configured.check_schedule(make_config(tree))) == []
    tree["data"]["global_batch_size"] = 6
    [twice] = configured.check_schedule(make_config(tree))
    assert twice.status == "warn" and twice.remedy
    assert twice.detail == "data.global_batch_size is 6, and there are 5 rows: each step trains on rows more than once"


def test_versions_against_the_stated_ranges(monkeypatch):
    stated = [Finding("versions", "ok", "")]
    assert [f.status for f in doctor.check_versions()] == [f.status for f in stated]
    ranges = (">=3.99", ["pytest<1", "no-such-package>=2; extra == 'dev'", "no-such-package>=3", "pydantic>=2"])
    monkeypatch.setattr(machine, "_stated_ranges", lambda: ranges)
    findings = list(doctor.check_versions())
    assert [f.status for f in findings] == ["fail"] * 3 and all(f.remedy for f in findings)
    assert "Python" in findings[0].detail and "pytest" in findings[1].detail
    assert "no-such-package is missing, not >=3" in findings[2].detail


def test_a_check_that_hangs_or_breaks_does_not_stop_the_others(monkeypatch):
    monkeypatch.setattr(doctor, "check_compiler", lambda: time.sleep(30))
    monkeypatch.setattr(doctor, "check_versions", lambda: 1 / 0)
    begun = time.monotonic()
    findings = diagnose(timeout_s=3.0)
    assert time.monotonic() - begun < 20
    assert "no answer within 3 s" in failed(findings, "compiler").detail
    assert "ZeroDivisionError" in failed(findings, "versions").detail
    assert any(finding.check == "cpu" and finding.status == "ok" for finding in findings)


def test_resources_that_no_local_ray_has(tree):
    tree["cluster"]["resources_per_worker"] = {"accelerator_type:H100": 0.001, "license": 1}
    room = failed(list(doctor.check_machine(make_config(tree).cluster)), "room")
    assert "license" in room.detail and "H100" not in room.detail and "cluster.address" in room.remedy


def test_gpus_that_are_asked_for_and_not_there(tree):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    tree["cluster"]["gpus_per_worker"] = 1
    assert failed(list(doctor.check_gpus(make_config(tree), is_local=True)), "gpu")
    assert not [f for f in doctor.check_gpus(make_config(tree), is_local=False) if f.status == "fail"]


def test_the_token(monkeypatch, tmp_path):
    def look() -> Finding:
        [finding] = nodes.check_token()
        assert finding.status == "ok" or finding.remedy
        return finding

    assert look().status == "warn"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert look().status == "fail"
    (tmp_path / "token").write_text("secret-token")
    os.chmod(tmp_path / "token", 0o644)
    assert look().status == "warn" and "chmod 600" in look().remedy
    os.chmod(tmp_path / "token", 0o600)
    assert look().status == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-token")
    assert look().status == "ok" and "secret-token" not in look().detail


def test_an_address_where_nobody_listens(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    begun = time.monotonic()
    findings = diagnose()
    assert time.monotonic() - begun < 60
    assert "127.0.0.1:9" in failed(findings, "ray").detail


@pytest.mark.parametrize("address", ["local", ""])
def test_an_address_that_means_this_machine(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert not {"ray", "ray token"} & {finding.check for finding in diagnose()}


@pytest.mark.slow
def test_the_nodes_of_a_cluster(tree, tmp_path, monkeypatch):
    root = str(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    tree["cluster"]["address"] = "auto"
    try:
        findings = diagnose(make_config(tree))
        assert [f for f in findings if f.status == "fail"] == [], render(findings)
        assert [f.status for f in findings if f.check == "node"] == ["ok"]
        assert any("room for 1 workers" in f.detail for f in findings)

        (tmp_path / "file").write_text("")
        tree["cluster"] |= {"num_workers": 2, "start_timeout_s": 1.0, "storage_path": str(tmp_path / "file" / "x")}
        findings = diagnose(make_config(tree))
        assert "CPU 1" in failed(findings, "ray").detail
        assert "can be written" in failed(findings, "node").detail
    finally:
        ray.shutdown()
