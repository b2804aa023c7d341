"""Models in an object store: a store of this machine stands for it, read the way that any other is."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from bft_ray.config import ModelConfig, make_config
from bft_ray.errors import BadInput
from bft_ray.evaluate.run import evaluate_model
from bft_ray.model.causal_lm import adapter_of, load_model, load_tokenizer
from bft_ray.model.export import export_model
from bft_ray.places import remote, storage
from bft_ray.places.cache import sha256_of
from bft_ray.places.kept import write_kept
from bft_ray.places.remote import is_remote, local_copy
from bft_ray.train.checkpoint import remove_cut_off, step_name, write_manifest
from bft_ray.train.host import SCORE_FILE, drop_superseded
from bft_ray.train.progress import describe_event
from bft_ray.train.worker import RayHost
from tests.support.damage import damage
from tests.support.ranks import run_ranks


@pytest.fixture
def store(tmp_path, monkeypatch) -> str:
    """URI of a store; what is fetched from it lies below a home of the test's own."""
    token, home = Path.home() / ".ray" / "auth_token", tmp_path / "home"
    if token.is_file():  # of a Ray that this process has started before: it looks for it again
        (home / ".ray").mkdir(parents=True)
        shutil.copy(token, home / ".ray")
    monkeypatch.setenv("HOME", str(home))
    uri = f"fsspec+file://{tmp_path}/store"
    assert is_remote(uri)
    return uri


def below(uri: str) -> str:
    """Where it lies: a store makes folders by itself, and what stands for one here does not."""
    return uri.removeprefix("fsspec+file://")


def fetched(home: Path) -> list[Path]:
    """Copies; their checksums lie beside them."""
    return sorted(path for path in (home / ".cache" / "bft_ray" / "fetched").iterdir() if path.is_dir())


def logits(tree: dict) -> tuple[list[float], str]:
    """Of a model that its process has to find."""
    import torch

    config = ModelConfig(**tree)
    model, tokenizer = load_model(config).eval(), load_tokenizer(config)
    ids = torch.tensor([tokenizer("w1 w2 w3")["input_ids"]])
    return model(ids).logits[0, -1].tolist(), os.environ["HOME"]


@pytest.mark.slow
def test_processes_of_a_machine_fetch_a_model_once(store, tiny_model, tmp_path):
    storage.put_folder(tiny_model, below(f"{store}/model"))
    here, _ = logits({"path": str(tiny_model), "dtype": "fp32"})
    told = run_ranks(logits, 2, {"path": f"{store}/model", "dtype": "fp32"})
    assert told == [(here, str(tmp_path / "home"))] * 2
    (copy,) = fetched(tmp_path / "home")
    assert {path.name for path in copy.iterdir()} == {path.name for path in tiny_model.iterdir()}


def test_another_content_is_another_copy(store, tmp_path):
    uri, cache = f"{store}/folder", tmp_path / "cache"
    storage.write_text(below(f"{uri}/a.txt"), "one")
    first = local_copy(uri, cache)
    assert (first / "a.txt").read_text() == "one" and local_copy(uri, cache) == first
    storage.write_text(below(f"{uri}/deep/b.txt"), "two")
    second = local_copy(uri, cache)
    assert second != first and (second / "deep" / "b.txt").read_text() == "two"
    assert storage.fetch_folder(uri).name == second.name  # known by what lies there
    assert storage.exists(uri) and not storage.exists(f"{store}/nothing") and storage.exists(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        local_copy(f"{store}/nothing", cache)


def test_a_copy_is_read_once_a_process_and_again_when_it_was_touched(store, tmp_path, monkeypatch):
    folder, cache = Path(below(store)) / "m", tmp_path / "cache"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    read: list[Path] = []
    monkeypatch.setattr(remote, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    copy = local_copy(f"{store}/m", cache)
    num_read = len(read)
    assert local_copy(f"{store}/m", cache) == copy and len(read) == num_read
    (copy / "a.txt").write_text("two")
    assert (local_copy(f"{store}/m", cache) / "a.txt").read_text() == "one" and len(read) > num_read


def test_copies_that_nobody_asks_for_are_deleted(store, tmp_path):
    cache = tmp_path / "cache"
    for number in range(7):
        storage.write_text(below(f"{store}/{number}/a.txt"), str(number))
    copies = [local_copy(f"{store}/{number}", cache) for number in range(6)]
    assert all(copy.is_dir() for copy in copies)  # they are in use
    for age, copy in enumerate(reversed(copies)):
        os.utime(copy, (time.time() - 7200 - age,) * 2)
    local_copy(f"{store}/6", cache)
    assert [copy.is_dir() for copy in copies] == [False, False, True, True, True, True]
    assert local_copy(f"{store}/0", cache).is_dir()


class Said:
    """In place of a run of MLflow."""

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags = tags


class Posts:
    """In place of the actor that the driver reads: `board.post.remote` is `post`."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []
        self.post = self

    def remote(self, *event) -> None:
        self.events.append(event)


def test_superseded_checkpoints_of_a_store_are_deleted(store):
    for step, score in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None)):
        write_kept(below(f"{store}/run/{step_name(step)}/{SCORE_FILE}"), {"score": score})
    storage.write_text(below(f"{store}/run/{step_name(5)}/shard.pt"), "without a score: it is being written")
    drop_superseded(f"{store}/run", keep=1)
    assert storage.folders_in(f"{store}/run", "step-") == [step_name(step) for step in (2, 4, 5)]
    drop_superseded(f"{store}/nothing", keep=1)


def test_the_last_whole_checkpoint_in_a_store(store, tmp_path, caplog):
    """Without Ray's list of them, which may be gone; and a remedy names the store, not the copy of this machine."""
    for step in (2, 4):
        (tmp_path / f"{step}" / "engine").mkdir(parents=True)
        (tmp_path / f"{step}" / "engine" / "shard.pt").write_bytes(bytes(range(64)))
        write_manifest(tmp_path / f"{step}", 0, 1)
        storage.put_folder(tmp_path / f"{step}", below(f"{store}/run/{step_name(step)}"))
    host = RayHost.__new__(RayHost)
    host.folder, host._origins, host._tracker, host._board = f"{store}/run", {}, Said(), Posts()
    last = host.last_checkpoint()
    assert last is not None and host.origin(last) == f"{store}/run/step-00000004"
    damage(Path(below(f"{store}/run/step-00000004/engine/shard.pt")), "half")
    last = host.last_checkpoint()
    assert last is not None and host.origin(last) == f"{store}/run/step-00000002" and last == host.best_checkpoint(2)
    passed = f"the checkpoint {store}/run/step-00000004 is passed over: engine/shard.pt has 32 of 64 bytes"
    assert passed in caplog.text and host._tracker.tags == {"bft.passed_over": passed}
    assert [describe_event(*event) for event in host._board.events] == [passed]  # a line of the driver's terminal
    damage(Path(below(f"{store}/run/step-00000002/manifest-00000.json")), "half")
    remove_cut_off(f"{store}/run")  # what is damaged stays
    assert storage.folders_in(f"{store}/run", "") == ["step-00000002"]
    shutil.rmtree(below(f"{store}/run"))
    assert host.last_checkpoint() is None and host.best_checkpoint(2) is None


def test_an_adapter_names_its_base_for_every_machine(store, tiny_model, tmp_path):
    """Not by the folder of the copy that it was trained on."""
    from bft_ray.config import LoraConfig

    storage.put_folder(tiny_model, below(f"{store}/base"))
    base = ModelConfig(path=f"{store}/base", dtype="fp32")
    model = load_model(base, LoraConfig(rank=2))
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    export_model(model, weights, load_tokenizer(base), base, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == f"{store}/base"
    storage.put_folder(tmp_path / "adapter", below(f"{store}/adapter"))
    shutil.rmtree(tmp_path / "home")  # another machine
    both = ModelConfig(path=f"{store}/adapter", dtype="fp32")
    found, adapter = adapter_of(both)
    assert (Path(found) / "model.safetensors").is_file() and (Path(adapter or "") / "adapter_config.json").is_file()
    assert sum(value.requires_grad for value in load_model(both).parameters()) == len(weights)
    apart = ModelConfig(path=f"{store}/base", adapter=f"{store}/adapter")
    assert adapter_of(apart) == (found, adapter)


def test_a_uri_that_cannot_be_read_is_told(store):
    rule = "`model.path` is '.*, but must be a URI "
    with pytest.raises(
        BadInput, match=f"{rule}at which something is: there are no files at {re.escape(store)}/nothing. C"
    ):
        load_tokenizer(ModelConfig(path=f"{store}/nothing"))
    with pytest.raises(BadInput, match=f"{rule}of a store that can be used: Unrecognized filesystem"):
        load_tokenizer(ModelConfig(path="unknown://x/y"))


@pytest.mark.slow
def test_workers_measure_weights_that_lie_in_a_store(store, make_tree, tiny_model, tmp_path):
    """Two of them, neither of which is told of a folder of this process."""
    import ray

    storage.put_folder(tiny_model, below(f"{store}/weights"))
    tree = make_tree(
        cluster={"num_workers": 2, "gpus_per_worker": 0, "start_timeout_s": 120.0}, evaluation={"batch_tokens": 128}
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        tree["cluster"]["address"] = ray.get_runtime_context().gcs_address
        tree["model"]["path"] = str(tiny_model)
        here = evaluate_model(make_config(tree))
        tree["model"]["path"] = f"{store}/weights"
        there = evaluate_model(make_config(tree))
    finally:
        ray.shutdown()
    assert there.records == here.records and len(fetched(tmp_path / "home")) == 1
