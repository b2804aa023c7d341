"""Whoever can write a file that bft-ray reads cannot run code by it: each reader is given a file that would.

What remains (a Ray cluster, `model.trust_remote_code`, `include_path`) is in SECURITY.md.
"""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bft_ray.config import DataConfig, LoraConfig, ModelConfig, SourceConfig, load_config, make_config
from bft_ray.data.dataset import prepare
from bft_ray.data.hub import open_dataset
from bft_ray.data.tables import read_table
from bft_ray.errors import BadConfig, BadInput, BftError
from bft_ray.evaluate.clients.encoder import encode_texts
from bft_ray.evaluate.clients.judge import read_verdict, write_verdict
from bft_ray.evaluate.result import EvaluationResult
from bft_ray.model import start_logps
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.model.checksums import CHECKSUMS
from bft_ray.model.export import export_model
from bft_ray.model.release import check_release
from bft_ray.places.kept import read_kept
from bft_ray.study.records.segment import Run
from bft_ray.train.checkpoint import last_complete, verify_manifest, write_manifest
from bft_ray.train.host import saved_in
from bft_ray.train.record import is_lost, read_record
from bft_ray.train.snapshot import FILE, delete_unfit
from bft_ray.train.state import open_state
from tests.support.bait import as_npy, as_pickle, as_torch, as_yaml
from tests.support.paths import ROOT


@pytest.fixture
def marker(tmp_path) -> Path:
    """What a bait makes; at the end of a test it must not be there."""
    made = tmp_path / "code-has-run"
    yield made
    assert not made.exists(), "the code in a file has run"


def test_the_baits_run_where_they_are_unpickled(tmp_path):
    """Else no test of this file could fail."""
    unsafe = {
        as_pickle: lambda path: pickle.loads(path.read_bytes()),
        as_torch: lambda path: torch.load(path, weights_only=False),
        as_npy: lambda path: np.load(path, allow_pickle=True),
        as_yaml: lambda path: yaml.unsafe_load(path.read_text()),
    }
    for number, (bait, read) in enumerate(unsafe.items()):
        read(bait(tmp_path / f"{number}", tmp_path / f"ran-{number}"))
        assert (tmp_path / f"ran-{number}").is_dir(), bait.__name__


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def refused(model: Path, tree: dict, match: str) -> None:
    """By the driver, which reads headers, and by a worker, which would load the weights."""
    path = {"path": str(model), "dtype": "fp32"}
    with pytest.raises(BadInput, match=match):
        check_model(make_config(tree | {"model": path}), load_tokenizer(ModelConfig(**path)))
    with pytest.raises(BftError):
        load_model(ModelConfig(**path))


def test_weights_as_a_pickle(model, make_tree, marker):
    (model / "model.safetensors").unlink()
    as_torch(model / "pytorch_model.bin", marker)
    refused(model, make_tree(), r"holds \*\.bin, which runs code when it is read")


@pytest.mark.parametrize("bait", [as_pickle, as_torch])
def test_weights_that_only_seem_to_be_safetensors(model, make_tree, marker, bait):
    bait(model / "model.safetensors", marker)
    refused(model, make_tree(), r"model\.safetensors', but must be a whole safetensors file")


def test_an_index_that_names_a_pickle(model, make_tree, marker):
    (model / "model.safetensors").unlink()
    as_torch(model / "shard.bin", marker)
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "shard.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(model, make_tree(), r"must be an index of safetensors files: JSON with a `weight_map`; it lists shard\.bin")
    as_pickle(model / "model.safetensors.index.json", marker)
    refused(model, make_tree(), r"index\.json', but must be an index of safetensors files")


def test_pickles_beside_a_model_are_not_read(model, make_tree, marker):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "tokenizer.pkl"):
        as_torch(model / name, marker)
    config = ModelConfig(path=str(model), dtype="fp32")
    assert (
        check_model(make_config(make_tree() | {"model": {"path": str(model), "dtype": "fp32"}}), load_tokenizer(config))
        == []
    )
    assert load_model(config).num_parameters() > 0


def test_code_that_comes_with_a_model(model, make_tree, marker, monkeypatch):
    """Its own classes are not imported, and nobody is asked at the terminal whether they shall be."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the terminal was asked"))
    described = json.loads((model / "config.json").read_text())
    for kind in ("AutoConfig", "AutoModelForCausalLM"):
        described.setdefault("auto_map", {})[kind] = "own.Own"
    (model / "config.json").write_text(json.dumps(described | {"model_type": "own"}))
    (model / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass Own: pass\n")
    tree = make_tree() | {"model": {"path": str(model), "dtype": "fp32"}}
    with pytest.raises(BadInput, match="trust_remote_code"):
        check_model(make_config(tree), None)
    with pytest.raises(BadInput, match="trust_remote_code"):
        load_model(ModelConfig(**tree["model"]))
    with pytest.raises(BftError, match="transformers does not load"):
        check_release(model, model, make_config(tree))


def test_an_export_whose_weights_were_exchanged_for_a_pickle(model, make_tree, marker):
    """In the storage, its checksums deleted too."""
    (model / CHECKSUMS).unlink(missing_ok=True)
    (model / "model.safetensors").unlink()
    as_torch(model / "pytorch_model.bin", marker)
    with pytest.raises(BftError, match="transformers does not load"):
        check_release(model, model, make_config(make_tree()))


def test_a_gguf_file(tmp_path, marker):
    as_torch(tmp_path / "model.gguf", marker)
    with pytest.raises(BadInput, match="GGUF"):
        load_model(ModelConfig(path=str(tmp_path / "model.gguf")))


def test_an_encoder(model, marker):
    (model / "model.safetensors").unlink()
    as_torch(model / "pytorch_model.bin", marker)
    with pytest.raises(BadInput, match=r"\*\.bin, which runs code"):
        encode_texts(str(model), ["w1"])


@pytest.fixture
def adapter(model, tmp_path) -> Path:
    config = ModelConfig(path=str(model), dtype="fp32")
    made = load_model(config, LoraConfig(rank=2))
    weights = {name: value.detach() for name, value in made.named_parameters() if value.requires_grad}
    export_model(made, weights, load_tokenizer(config), config, tmp_path / "adapter")
    return tmp_path / "adapter"


def described(adapter: Path, **changes) -> None:
    (adapter / CHECKSUMS).unlink(missing_ok=True)  # as whoever can write there would
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_adapter_as_a_pickle(adapter, make_tree, marker):
    (adapter / CHECKSUMS).unlink()
    as_torch(adapter / "adapter_model.safetensors", marker)
    refused(adapter, make_tree(), "must be a whole safetensors file")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(adapter, make_tree(), r"holds \*\.bin, which may run code when it is read")


def test_an_adapter_that_is_more_than_lora(adapter, make_tree, marker, tmp_path, monkeypatch):
    """Settings that name a module, or a tokenizer with code of its own; and a pickle in place of the settings."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_module.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    described(adapter, megatron_config={"x": 1}, megatron_core="own_module")
    with pytest.raises(BadInput, match=r"`model.adapter` is .* a readable adapter .*own_module"):
        load_model(ModelConfig(path=str(adapter), dtype="fp32"))
    described(adapter, megatron_config=None, peft_type="PROMPT_TUNING")
    refused(adapter, make_tree(), "must be a LoRA adapter, but its adapter_config.json says peft_type 'PROMPT_TUNING'")
    as_pickle(adapter / "adapter_config.json", marker)
    with pytest.raises(BadInput, match=r"adapter_config\.json', but must be the adapter_config\.json that peft writes"):
        load_model(ModelConfig(path=str(adapter)))


# --- what a run and a study leave -------------------------------------------------------------------------------------


def checkpoint(folder: Path) -> Path:
    """A checkpoint with a manifest, of whoever can write there."""
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "state.json").write_text(json.dumps({"num_files": 1, "num_steps": 1, "loop": {}}))
    return folder


def test_a_checkpoint_with_a_manifest_that_fits_it(tmp_path, marker):
    made = checkpoint(tmp_path / "run" / "step-00000002")
    as_torch(made / "engine" / "state-00000.safetensors", marker)
    as_torch(made / "engine" / "mp_rank_00_model_states.pt", marker)  # as DeepSpeed calls its own
    write_manifest(made, 0, 1)
    assert last_complete(str(tmp_path / "run")) == str(made)
    verify_manifest(made, 0, 1)
    with ExitStack() as files, pytest.raises(BadInput, match=r"must be a whole safetensors file.*Delete"):
        open_state(made / "engine", 1, files)


@pytest.mark.parametrize("bait", [as_pickle, as_torch])
def test_records_of_a_run(tmp_path, marker, bait, caplog):
    """And what Ray Train and Ray Tune have called their pickles: nobody reads these names."""
    folder = tmp_path / "run"
    made = checkpoint(folder / "step-00000002")
    for name in ("run.json", FILE, "packing.json", "step-00000002/manifest-00000.json", "step-00000002/score.json"):
        bait(folder / name, marker)
    for name in ("trainer.pkl", "tuner.pkl", ".metadata.json", "step-00000002/.metadata.pkl"):
        bait(folder / name, marker)
    assert read_record(str(folder)) == {} and is_lost(str(folder)) and Run.load(str(folder / "run.json")) is None
    assert read_kept(folder / "packing.json", ["packing"]) is None
    assert last_complete(str(folder)) is None and saved_in(str(folder)) == []
    with pytest.raises(BadInput, match="manifest"):
        verify_manifest(made, 0, 1)
    delete_unfit(str(folder))
    assert not (folder / FILE).exists()
    for name in ("run.json", FILE, "manifest-00000.json", "score.json", "packing.json"):
        assert name in caplog.text


def test_an_evaluation_and_a_verdict(tmp_path, marker):
    for name in ("metrics.json", "records.jsonl"):
        as_pickle(tmp_path / "evaluation" / name, marker)
    with pytest.raises(BadInput, match="must be an evaluation"):
        EvaluationResult.read(tmp_path / "evaluation")
    write_verdict(tmp_path / "judge", "ab12", True)
    (kept,) = (tmp_path / "judge").rglob("*.json")
    as_pickle(kept, marker)
    assert read_verdict(tmp_path / "judge", "ab12") is None


# --- data and configs -------------------------------------------------------------------------------------------------


def test_tokens_in_the_cache(tiny_model, tiny_data, tmp_path, marker):
    """With checksums that fit: the rows are tokenised again."""
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model)))
    config = DataConfig(train=[SourceConfig(path=str(tiny_data))], cache_dir=str(tmp_path / "cache"))
    made = prepare(config.train, tokenizer, config)
    for name, bait in (("samples.npy", as_npy), ("ids.json", as_pickle)):
        bait(made.folder / name, marker)
        sums = json.loads((made.folder / "sha256.json").read_text())
        sums[name] = hashlib.sha256((made.folder / name).read_bytes()).hexdigest()
        (made.folder / "sha256.json").write_text(json.dumps(sums))
        again = prepare(config.train, tokenizer, config)
        assert again.ids == made.ids and np.array_equal(again.lengths, made.lengths)


@pytest.mark.parametrize("bait", [as_pickle, as_torch, as_npy])
def test_kept_log_probabilities(tmp_path, marker, bait, caplog):
    assert start_logps.read(bait(tmp_path / "start.parquet", marker)) is None and "is damaged" in caplog.text
    assert start_logps.dataset_of(tmp_path / "start.parquet") is None


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".pkl", ".arrow", ".pt", ".npy"])
def test_rows(tmp_path, marker, suffix):
    for bait in (as_pickle, as_torch, as_npy):
        with pytest.raises(BadInput):
            list(read_table(str(bait(tmp_path / f"rows{suffix}", marker))))


def test_a_column_of_a_parquet_file_that_is_a_pickled_type(tmp_path, marker):
    """pyarrow once unpickled the type of a column (CVE-2023-47248)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": as_pickle(tmp_path / "type", marker).read_bytes(),
    }
    schema = pa.schema([pa.field("prompt", pa.string(), metadata=names), pa.field("completion", pa.string())])
    pq.write_table(pa.table([["w1"], ["w2"]], schema=schema), tmp_path / "rows.parquet")
    assert [row for _, row in read_table(str(tmp_path / "rows.parquet"))] == [{"prompt": "w1", "completion": "w2"}]


def test_a_folder_of_datasets(tmp_path, marker, monkeypatch):
    """A script is not run, and neither a pickle read, whether the folder or a reader of `datasets` is named."""
    folder = tmp_path / "saved"
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow", "train.pkl"):
        as_pickle(folder / name, marker)
    (folder / "saved.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    with pytest.raises(BadInput, match=r"must be a folder that `Dataset\.save_to_disk` wrote"):
        open_dataset(str(folder), "train", None, None, "data.train.0")
    monkeypatch.chdir(folder)
    with pytest.raises(BadInput):
        open_dataset("pandas", "train", None, None, "data.train.0")


def test_a_config(tmp_path, marker):
    with pytest.raises((BadConfig, BadInput), match="python/object/apply"):
        load_config(as_yaml(tmp_path / "config.yaml", marker))


# --- the code ---------------------------------------------------------------------------------------------------------

_UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}


def unsafe_calls(source: str) -> list[str]:
    """Imports and calls of a file that unpickle, or that run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in _UNSAFE]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in _UNSAFE:
            found.append(str(node.module))
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        is_unsafe = {
            "torch.load": given.get("weights_only") != "True",
            "np.load": given.get("allow_pickle", "False") != "False",
            "yaml.load": given.get("Loader") != "_Loader",
            "AutoModelForCausalLM.from_pretrained": given.get("use_safetensors") != "True" and "**where" not in ast.unparse(node),
            "AutoModel.from_pretrained": given.get("use_safetensors") != "True",
        }  # fmt: skip
        last = name.rpartition(".")[2]  # Optuna's CMA-ES keeps a pickle in the database of the study, and reads it back
        unsafe_names = {"unsafe_load", "full_load", "read_pickle", "CmaEsSampler", "JournalStorage"}
        if is_unsafe.get(name) or last in unsafe_names or name in ("eval", "exec"):
            found.append(ast.unparse(node))
    return found


def test_no_file_unpickles():
    files = [path for room in ("bft_ray", "jobs", "cluster") for path in sorted((ROOT / room).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): calls for path in files if (calls := unsafe_calls(path.read_text()))}
    assert len(files) > 300 and found == {}


def test_a_file_that_unpickles_is_found():
    for line in (
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(folder)",
        "eval(text)",
        "pd.read_pickle(path)",
        "optuna.samplers.CmaEsSampler()",
    ):
        assert len(unsafe_calls(line)) == 1, line
