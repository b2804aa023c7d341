"""The loop without Ray: resumption, what is kept, broken checkpoints, exports, and the pure pieces."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bft_ray.config import ScheduleConfig, make_config
from bft_ray.errors import BadInput, BftError
from bft_ray.places.kept import read_kept, write_kept
from bft_ray.train.checkpoint import (
    Damaged,
    flaw_of,
    improves,
    last_complete,
    remove_cut_off,
    set_aside,
    to_delete,
    verify_manifest,
    write_manifest,
)
from bft_ray.train.host import SCORE_FILE, drop_superseded, saved_in
from bft_ray.train.profiling import PHASES
from bft_ray.train.schedule import learning_rate
from bft_ray.train.settings import deepspeed_settings
from tests.support.alone import run_alone
from tests.support.ranks import run_ranks


def alone_in_turn(tree: dict, runs: list[tuple[str, int | None]], device: str = "cpu") -> list[dict]:
    return [run_alone(tree, folder, stop, device) for folder, stop in runs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "preset", "lora"),
    [("fp32", "zero0", None), ("fp32", "zero3", {"rank": 4}), ("bf16", "zero1", None), ("bf16", "zero3", {"rank": 4})],
)
def test_a_resumed_run_equals_an_undisturbed_one(make_tree, tmp_path, dtype, preset, lora):
    tree = make_tree(deepspeed={"preset": preset}, lora=lora, loss={"method": "bft_inverse", "window": 8})
    tree["model"]["dtype"] = dtype
    tree["optimizer"] = {"learning_rate": 1e-2}
    runs = [(str(tmp_path / "calm"), None), (str(tmp_path / "cut"), 5), (str(tmp_path / "cut"), None)]
    (calm, _, resumed), *_ = run_ranks(alone_in_turn, 1, tree, runs)
    assert ("resume", 4) in [(event, values["step"]) for event, values in resumed["events"]]
    assert calm["weights"].keys() == resumed["weights"].keys() and calm["weights"]
    for name, value in calm["weights"].items():
        assert (value == resumed["weights"][name]).all(), name
    steps = {event: values for event, values in calm["events"] if event == "step"}["step"]
    assert math.isfinite(steps["train/loss"]) and steps["step"] == 6
    assert len(calm["kept"]) <= 2 and calm["kept"][-1] == "step-00000006"


def asked_in_turn(tree: dict, folder: str) -> list[dict]:
    return [run_alone(tree, f"{folder}/calm")] + [run_alone(tree, f"{folder}/cut", asked_in=n) for n in (3, 2, None)]


@pytest.mark.slow
def test_a_run_that_is_asked_saves_after_its_present_step(make_tree, tmp_path):
    """And is the undisturbed one when it was asked twice, though no checkpoint was due."""
    tree = make_tree(evaluation={"every_steps": 6}, checkpoint={"every_steps": 6}, optimizer={"learning_rate": 1e-2})
    ((calm, first, second, last),) = run_ranks(asked_in_turn, 1, tree, str(tmp_path))
    assert [run["kept"][-1] for run in (first, second, last)] == [f"step-0000000{n}" for n in (3, 5, 6)]
    assert [values["step"] for event, values in second["events"] if event in ("resume", "step", "checkpoint")] == [
        3,
        4,
        5,
        5,
    ]
    assert "end" not in dict(first["events"]) and "end" in dict(last["events"])
    assert all((value == last["weights"][name]).all() for name, value in calm["weights"].items()) and calm["weights"]


_WORDS = 20_000


@pytest.fixture(scope="module")
def tied_model(tiny_model, tmp_path_factory):
    """The tiny model with a large embedding, to which its head is tied."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tied_model")
    config = AutoConfig.from_pretrained(tiny_model, vocab_size=_WORDS, tie_word_embeddings=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["zero0", "zero2", "zero3"])
def test_a_checkpoint_of_adapters_holds_nothing_else(tied_model, make_tree, tmp_path, preset):
    """Also not the embedding of a model whose head is tied to it, which has two names; and a resumed run is the same."""
    tree = make_tree(deepspeed={"preset": preset}, lora={"rank": 2}, schedule={"steps": 3})
    tree["model"]["path"] = str(tied_model)
    runs = [(str(tmp_path / "calm"), None), (str(tmp_path / "cut"), 3), (str(tmp_path / "cut"), None)]
    (calm, _, resumed), *_ = run_ranks(alone_in_turn, 1, tree, runs)
    assert calm["weights"].keys() == resumed["weights"].keys() and calm["weights"]
    assert all((value == resumed["weights"][name]).all() for name, value in calm["weights"].items())
    folder = tmp_path / "calm" / "step-00000003" / "engine"
    held = load_file(folder / "state-00000.safetensors")
    names = {f"{kind}/{name}" for kind in ("weight", "exp_avg", "exp_avg_sq") for name in calm["weights"]}
    assert held.keys() == names and all("lora_" in name for name in names)
    assert all((held[f"weight/{name}"].numpy() == value).all() for name, value in calm["weights"].items())
    assert sum(path.stat().st_size for path in folder.iterdir()) < 400_000 < _WORDS * 32 * 4  # bytes of the embedding


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "preset"), [(1, "zero0"), (2, "zero3")])
def test_validation_is_the_evaluation(make_tree, tmp_path, world_size, preset):
    """Ranks with unequal shares, some of them empty, measure what the evaluation of the same model measures."""
    from bft_ray.evaluate.run import evaluate_model

    tree = make_tree(deepspeed={"preset": preset}, schedule={"steps": 1}, evaluation={"batch_tokens": 129})
    tree["data"]["validation"][0]["limit"] = 5
    expected = evaluate_model(make_config(tree)).metrics
    events = run_ranks(run_alone, world_size, tree, str(tmp_path / "run"))[0]["events"]
    measured = next(values for event, values in events if event == "validation" and values["step"] == 0)
    for name in ("nll", "perplexity", "token_accuracy", "bits_per_byte"):
        assert measured[f"validation/{name}"] == pytest.approx(expected[f"validation/{name}"], rel=1e-5)


@pytest.mark.slow
def test_a_profile_tells_where_the_time_went(make_tree, tmp_path):
    import gzip

    result = run_ranks(run_alone, 1, make_tree(tracking={"profile_steps": 2}), str(tmp_path / "run"))[0]
    (told,) = [values for event, values in result["events"] if event == "profile"]
    lines = {line.split()[0]: line.split() for line in told["table"].splitlines() if line}
    for name in ("data", "decoder", "head", "backward", "metrics", "optimizer"):
        assert float(lines[name][1]) > 0, name
    assert float(lines["sum"][1]) == pytest.approx(sum(float(lines[n][1]) for n in lines if n in PHASES), abs=0.05)
    assert "aten::mm" in told["table"]
    trace = json.loads(gzip.decompress((Path(told["folder"]) / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "bft/backward" in names and "ProfilerStep#2" in names
    assert sum(e.get("name") == "bft/metrics" and e.get("ph") == "X" for e in trace["traceEvents"]) == 2


@contextmanager
def _one_folder(folder: Path, world_size: int) -> Iterator[None]:
    """Ranks that find and leave their checkpoints in one folder, as on Ray Train (`LocalHost` is of one process)."""
    others = [Path(f"{folder}-{rank}") for rank in range(1, world_size)]
    folder.mkdir(exist_ok=True)
    for other in others:
        shutil.copytree(folder, other)
    yield
    for other in others:
        shutil.copytree(other, folder, dirs_exist_ok=True)
        shutil.rmtree(other)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 3}], ids=["full", "lora"])
def test_a_run_goes_on_with_other_ranks_and_stages(make_tree, tmp_path, lora):
    """Four steps each: 2 ranks of zero3, 1 of zero0, 2 of zero2, 3 of zero1, 1 of zero3; as an undisturbed run, to rounding."""
    tree = make_tree(lora=lora, loss={"method": "bft_inverse", "window": 8}, schedule={"steps": 20})
    tree["checkpoint"] = {"every_steps": 4, "export": "last"}
    calm = run_ranks(run_alone, 1, tree | {"deepspeed": {"preset": "zero1"}}, str(tmp_path / "calm"))[0]
    folder, steps = tmp_path / "moved", []
    parts = [(2, "zero3"), (1, "zero0"), (2, "zero2"), (3, "zero1"), (1, "zero3")]
    for place, (world_size, preset) in enumerate(parts):
        part = tree | {"deepspeed": {"preset": preset}}
        with _one_folder(folder, world_size):
            moved = run_ranks(run_alone, world_size, part, str(folder), None, "cpu", 4 * (place + 1))[0]
        steps += [values for event, values in moved["events"] if event == "step"]
    whole = [values for event, values in calm["events"] if event == "step"]
    assert [values["step"] for values in steps] == [values["step"] for values in whole] == list(range(1, 21))
    for one, other in zip(steps, whole, strict=True):
        assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-5), one["step"]
    for name, value in calm["weights"].items():
        assert abs(value - moved["weights"][name]).max() <= 1e-5 * abs(value).max() + 1e-7, name


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    for step in (2, 4, 6):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        (folder / "shard.pt").write_bytes(b"0123456789")
        write_manifest(folder, 0, 1)
    assert last_complete(str(tmp_path)) == str(tmp_path / "step-00000006")
    (tmp_path / "step-00000006" / "shard.pt").write_bytes(b"0123")
    assert last_complete(str(tmp_path)) == str(tmp_path / "step-00000004")
    (tmp_path / "step-00000004" / "manifest-00000.json").write_text('{"world')
    assert last_complete(str(tmp_path)) == str(tmp_path / "step-00000002")
    (tmp_path / "step-00000002" / "shard.pt").unlink()
    assert last_complete(str(tmp_path)) is None


def test_a_damaged_checkpoint_is_set_aside_where_an_earlier_one_is_whole(tmp_path):
    def write(step: int) -> Path:
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir(exist_ok=True)
        (folder / "shard.pt").write_bytes(b"0123456789")
        write_manifest(folder, 0, 1)
        return folder

    def damage(folder: Path) -> Damaged:
        (folder / "shard.pt").write_bytes(b"0123456780")
        with pytest.raises(BadInput) as caught:
            verify_manifest(folder, 0, 1)
        return pickle.loads(pickle.dumps(Damaged(str(folder), caught.value.value, caught.value.rule)))

    first, last = write(2), write(4)
    lines: list[str] = []
    assert set_aside(damage(last)) and last_complete(str(tmp_path), lines.append) == str(first)
    why = "shard.pt must be unchanged since it was written (its checksum differs)"
    assert lines == [f"the checkpoint {last} is passed over: {why}"]
    remove_cut_off(str(tmp_path))
    assert last.is_dir()  # it stays, to be examined
    damaged = damage(first)
    assert not set_aside(damaged) and last_complete(str(tmp_path)) == str(first)  # none before it: the caller raises
    assert str(damaged).endswith(f"There is no earlier one. Delete {first}: the run then starts again.")
    (tmp_path / "step-00000003").mkdir()
    for folder, score in ((first, 0.5), (last, 0.9), (write(3), None)):
        write_kept(folder / SCORE_FILE, {"score": score})
    assert [name[-1] for name, _ in saved_in(str(tmp_path))] == ["2", "3"]  # a damaged one is neither best nor last
    write(4)  # the run comes to that step again
    assert last_complete(str(tmp_path)) == str(last)
    with pytest.raises(BftError, match=r"shard.pt of .* as damaged, and here it is as it was written"):
        set_aside(Damaged(str(last), last / "shard.pt", "unchanged"))  # a worker with a bad disk
    assert last_complete(str(tmp_path)) == str(last)


def test_a_checkpoint_replaces_what_lies_in_its_place(monkeypatch, tmp_path):
    """Two workers left a part there when they died; Ray adds the files of the one that goes on to it."""
    from bft_ray.train import worker

    def report(metrics, checkpoint, checkpoint_dir_name):
        shutil.copytree(checkpoint.path, tmp_path / "run" / checkpoint_dir_name, dirs_exist_ok=True)

    monkeypatch.setattr(worker.ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 0))
    monkeypatch.setattr(worker.ray.train, "report", report)
    host = worker.RayHost.__new__(worker.RayHost)
    host.folder = str(tmp_path / "run")
    old, new = tmp_path / "run" / "step-00000004", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / f"{folder.name}.pt").write_bytes(b"0123456789")
    write_manifest(old, 1, 2)
    write_manifest(new, 0, 1)
    host.keep(new, 4, None)
    assert flaw_of(str(old)) is None and sorted(path.name for path in old.iterdir()) == [
        "manifest-00000.json", "new.pt", "score.json"
    ]  # fmt: skip


def test_a_damaged_checkpoint_is_told(tmp_path):
    (tmp_path / "engine").mkdir()
    shard = tmp_path / "engine" / "shard.pt"
    shard.write_bytes(b"0123456789")
    write_manifest(tmp_path, 0, 1)
    verify_manifest(tmp_path, 0, 1)
    shard.write_bytes(b"0123456780")
    with pytest.raises(BadInput, match=r"shard.pt.*unchanged since it was written.*Delete .*: the run then resumes"):
        verify_manifest(tmp_path, 0, 1)
    shard.unlink()
    with pytest.raises(BadInput, match="unchanged since it was written"):
        verify_manifest(tmp_path, 0, 1)
    manifest = read_kept(tmp_path / "manifest-00000.json")
    assert manifest is not None
    write_kept(tmp_path / "manifest-00000.json", manifest | {"world_size": 2})
    with pytest.raises(BadInput, match="shards of 1 of 2 ranks"):
        verify_manifest(tmp_path, 0, 2)


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=12), st.integers(1, 4), st.booleans())
def test_the_best_and_the_last_are_kept(scores, keep, higher):
    deleted = to_delete(scores, keep, higher)
    kept = [index for index in range(len(scores)) if index not in deleted]
    assert kept[-1] == len(scores) - 1
    measured = [score for score in scores if score is not None]
    if measured:
        assert (max if higher else min)(measured) in [scores[index] for index in kept]
    assert len(kept) <= keep + 1


def test_better():
    assert improves(1.0, None, higher=True) and improves(1.0, 2.0, higher=False)
    assert not improves(None, None, higher=True)
    assert not improves(float("nan"), None, higher=True) and not improves(2.0, 2.0, higher=True)


def test_the_learning_rate_by_hand():
    config = ScheduleConfig(warmup_ratio=0.2, shape="cosine", min_ratio=0.1)
    rates = [learning_rate(step, 10, 1.0, config) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5)  # half of the way down
    linear = ScheduleConfig(warmup_ratio=0.0, shape="linear")
    assert [learning_rate(step, 4, 2.0, linear) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    constant = ScheduleConfig(warmup_ratio=0.0, shape="constant")
    assert {learning_rate(step, 4, 2.0, constant) for step in range(4)} == {2.0}


def test_the_overlay_lies_over_the_preset(make_tree):
    tree = make_tree(deepspeed={"preset": "zero3", "overlay": {"zero_optimization": {"stage3_max_live_parameters": 7}}})
    settings = deepspeed_settings(make_config(tree))
    assert settings["zero_optimization"]["stage3_max_live_parameters"] == 7
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["gradient_accumulation_steps"] == 1


def test_reduction_buffers_hold_what_trains_and_no_more(make_tree):
    """DeepSpeed allocates 500 M elements for each, whatever the model."""
    zero = deepspeed_settings(make_config(make_tree()), num_trainable=1000)["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1000
    assert (
        deepspeed_settings(make_config(make_tree()), 10**10)["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    )
    own = make_tree(deepspeed={"preset": "zero2", "overlay": {"zero_optimization": {"reduce_bucket_size": 7}}})
    assert deepspeed_settings(make_config(own), 1000)["zero_optimization"]["reduce_bucket_size"] == 7


def export_alone(tree: dict, folder: str, merge: bool) -> None:
    from bft_ray.model.causal_lm import load_model, load_tokenizer
    from bft_ray.model.export import export_model

    config = make_config(tree)
    model = load_model(config.model, config.lora, seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad or config.lora is None}
    export_model(model, weights, load_tokenizer(config.model), config.model, Path(folder), merge)


def test_exports_load_with_plain_transformers_and_peft(make_tree, tmp_path):
    """Adapter and merged model give the same logits, without this package's code."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tree = make_tree(lora={"rank": 4, "alpha": 8.0})
    export_alone(tree, str(tmp_path / "adapter"), merge=False)
    export_alone(tree, str(tmp_path / "merged"), merge=True)
    export_alone(make_tree(), str(tmp_path / "full"), merge=False)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("w1 w2 w3 w4", return_tensors="pt")
    with torch.no_grad():
        adapter = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")(**tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        full = AutoModelForCausalLM.from_pretrained(tmp_path / "full")(**tokens).logits
    logits = merged(**tokens).logits
    assert (adapter - logits).abs().max() <= 1e-5 * adapter.abs().max()
    assert (full - logits).abs().max() > 1e-3  # the adapter does something
    assert merged.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] > tokens["input_ids"].shape[1]
    assert not list(tmp_path.rglob("*.bin")), "weights are safetensors only"


def test_a_saved_adapter_leaves_the_rotary_frequencies_in_fp32(make_tree, tmp_path):
    """As training has them: cast to bf16 with the weights, the model that is evaluated would be another one."""
    from bft_ray.model.causal_lm import load_model

    tree = make_tree(lora={"rank": 4})
    tree["model"]["dtype"] = "bf16"
    export_alone(tree, str(tmp_path / "adapter"), merge=False)
    config = make_config(tree)
    trained = dict(load_model(config.model, config.lora).named_buffers())
    loaded = load_model(config.model.model_copy(update={"path": str(tmp_path / "adapter")}))
    assert {name: buffer.dtype for name, buffer in loaded.named_buffers()} == {n: b.dtype for n, b in trained.items()}
    assert any(buffer.dtype == torch.float32 for buffer in trained.values())
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_step_equals_the_undisturbed_one(make_tree, tmp_path):
    """bf16, ZeRO-3, LoRA, the real engine on one GPU, saved and resumed. No Ray."""
    tree = make_tree(deepspeed={"preset": "zero3"}, lora={"rank": 4}, loss={"method": "bft_inverse", "window": 8})
    tree["model"]["dtype"] = "bf16"
    runs = [(str(tmp_path / "calm"), None), (str(tmp_path / "cut"), 5), (str(tmp_path / "cut"), None)]
    context = mp.get_context("spawn")
    with context.Pool(1) as pool:
        calm, _, resumed = pool.apply(_on_gpu, (tree, runs))
    assert calm["weights"] and calm["weights"].keys() == resumed["weights"].keys()
    for name, value in calm["weights"].items():
        assert (value == resumed["weights"][name]).all(), name


def _on_gpu(tree: dict, runs: list[tuple[str, int | None]]) -> list[dict]:
    from bft_ray.train import engine

    engine.join_alone()
    torch.use_deterministic_algorithms(True, warn_only=True)
    return alone_in_turn(tree, runs, "cuda:0")


def test_checkpoints_that_are_no_longer_the_best_go(tmp_path):
    """As after a worker's death, when Ray Train knows those of before no more."""
    for step, score in ((10, -0.5), (20, -0.9), (30, -0.7), (40, None)):
        folder = tmp_path / f"step-{step:08d}"
        folder.mkdir()
        write_kept(folder / SCORE_FILE, {"score": score})
    (tmp_path / "step-00000050").mkdir()  # being written: it has no score yet
    drop_superseded(str(tmp_path), keep=2)
    assert [name[-2:] for name, _ in saved_in(str(tmp_path))] == ["10", "30", "40"]
    assert (tmp_path / "step-00000050").is_dir()
