"""Models that people bring: what does not fit is found before a worker starts, and what is exported is what was
trained.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from bft_ray.cli import main
from bft_ray.config import Config, DataConfig, ModelConfig, SourceConfig, make_config, to_yaml
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.check import check_model, position_limit
from bft_ray.model.checksums import write_checksums
from bft_ray.model.ends import end_tokens, generation_settings
from bft_ray.model.export import export_model
from bft_ray.model.halves import check_halves
from bft_ray.model.unreadable import unreadable
from bft_ray.operate import configured
from bft_ray.operate.plan.setups import Planner
from tests.support.alone import run_alone
from tests.support.loopback_hub import loopback_hub
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.tiny_tokenizer import CHATML

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}


@pytest.fixture(scope="module")
def make_model(tiny_model, tmp_path_factory):
    """A function that makes a tiny model of an architecture, with the tiny tokenizer, as a folder."""
    from transformers import CONFIG_MAPPING

    def make(kind: str, **fields) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        tokens = {"vocab_size": 96, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**tokens, **fields)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        return folder

    return make


def config_of(folder: Path | str, max_length: int = 128, **sections) -> Config:
    data = {"train": [{"path": "no.jsonl"}], "max_length": max_length, "micro_batch_tokens": 4096}
    return make_config(
        {
            "domain": "test",
            "model": {"path": str(folder), "dtype": "fp32"},
            "data": data,
            "checkpoint": {"export": "last"},
            **sections,
        }
    )


def checked(config: Config) -> list[str]:
    return check_model(config, load_tokenizer(config.model))


def trained(config: Config) -> torch.nn.Module:
    """The model with adapters that do something."""
    model = load_model(config.model, config.lora, seed=1)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    return model


def exported(model, config: Config, folder: Path, merge: bool = False) -> Path:
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    export_model(model, weights, load_tokenizer(config.model), config.model, folder, merge)
    return folder


# --- before a worker starts -----------------------------------------------------------------------------------


def test_more_tokens_than_rows_of_the_embedding(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "big")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<GENE>", "</GENE>"])
    tokenizer.save_pretrained(tmp_path / "big")
    with pytest.raises(BadInput) as caught:
        checked(config_of(tmp_path / "big"))
    assert str(caught.value).endswith(
        "but must be a model whose tokenizer fits it: the tokenizer has 98 tokens, the embedding 96 rows. Give the "
        "folder the tokenizer that the model was trained with, or enlarge the model and save it: "
        "model.resize_token_embeddings(98)."
    )
    assert checked(config_of(tiny_model)) == []


def test_learned_positions_are_a_limit_and_rotary_ones_a_warning(make_model, tiny_model):
    gpt2 = make_model("gpt2", **GPT2)
    assert checked(config_of(gpt2, 256)) == []
    with pytest.raises(BadInput) as caught:
        checked(config_of(gpt2, 257))
    assert str(caught.value) == (
        f"`data.max_length` is 257, but must be at most 256: {gpt2} (gpt2) has no more positions. "
        "Set data.max_length=256."
    )
    assert checked(config_of(tiny_model, 513)) == [
        "data.max_length is 513, and the model was made for 512 positions: it answers badly beyond them; "
        "data.max_length=512 keeps to them"
    ]


@pytest.mark.parametrize(
    ("kind", "fields", "fails"),
    [
        ("gpt2", {**GPT2, "n_positions": 24}, True),
        ("gpt_neo", {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]]}, True),
        ("opt", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, True),
        ("biogpt", SMALL, True),
        ("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}, False),
        ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 24}, True),
        ("ctrl", {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64}, True),
        ("codegen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, True),
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, True),
        ("llama", SMALL, False),
        ("gemma2", {**SMALL, "head_dim": 8, "num_key_value_heads": 2}, False),
        ("gpt_neox", SMALL, False),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, False),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
    ],
)
def test_the_limit_is_where_the_model_breaks(kind, fields, fails):
    """For each architecture: whether 41 tokens can pass a model that was made for 24."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](vocab_size=96, pad_token_id=0, bos_token_id=2, eos_token_id=1, **fields)
    if hasattr(config, "max_position_embeddings"):
        config.max_position_embeddings = 24
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    assert position_limit(config, skeleton)[1] == fails
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(41)[None] + 3
    takes = "position_ids" in inspect.signature(model.forward).parameters
    try:
        model(input_ids=ids, use_cache=False, **({"position_ids": torch.arange(41)[None]} if takes else {}))
        broke = False
    except (IndexError, RuntimeError):
        broke = True
    assert broke == fails


def test_every_command_checks_the_model_before_it_starts(make_model, make_tree, tmp_path):
    from bft_ray.evaluate.run import evaluate_model
    from bft_ray.operate.configured import check_model as doctor
    from bft_ray.profile.run import profile_data
    from bft_ray.train.launch import train

    tree = make_tree(model={"path": str(make_model("gpt2", **GPT2)), "dtype": "fp32"})
    tree["data"] |= {"max_length": 300, "micro_batch_tokens": 512}
    config = make_config(tree)
    for run in (train, evaluate_model, lambda it: list(doctor(it)), lambda it: profile_data(it, tmp_path / "out")):
        with pytest.raises(BadInput, match=r"`data.max_length` is 300, but must be at most 256"):
            run(config)


def test_a_head_that_was_not_saved_is_refused(tiny_model, tmp_path):
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match=r"all weights of a causal language model: lm_head.weight of LlamaForCausalLM would"
    ):
        load_model(config_of(tmp_path).model)


@pytest.mark.parametrize(
    ("kind", "packing", "told"),
    [
        ("bert", None, "`model.path` is 'BertLMHeadModel', but must be an architecture with logits that"),
        (
            "bert-generation",
            None,
            "'BertGenerationDecoder', but must be a causal architecture: of this one a token sees",
        ),
        ("biogpt", True, "`data.packing` is True, but must be false or null: BioGptForCausalLM is not exact with it"),
    ],
)
def test_doctor_and_plan_refuse_what_a_run_refuses_when_it_has_the_weights(
    make_model, tmp_path, capsys, kind, packing, told
):
    config = config_of(make_model(kind, **SMALL))
    config = config.model_copy(update={"data": config.data.model_copy(update={"packing": packing})})
    with pytest.raises(BadInput, match=re.escape(told)):
        list(configured.check_model(config))
    (tmp_path / "bft.yaml").write_text(to_yaml(config))
    assert main(["plan", str(tmp_path / "bft.yaml")]) == 2
    assert told in capsys.readouterr().err


def test_what_cannot_be_read_is_told_with_its_cause(tiny_model, tmp_path, monkeypatch):
    def message(path: Path | str) -> str:
        with pytest.raises(BadInput) as caught:
            checked(config_of(path))
        return str(caught.value).partition(", but must be ")[2]

    assert message(tmp_path / "none") == (
        "the folder of a tokenizer that exists. Check the path; on a cluster, on every node."
    )
    (tmp_path / "empty").mkdir()
    assert message(tmp_path / "empty") == (
        "a folder with a tokenizer: this one is empty. Download or copy the model into it again."
    )
    shutil.copytree(tiny_model, tmp_path / "run" / "export")
    (tmp_path / "run" / "run.json").write_text("{}")
    assert message(tmp_path / "run") == (
        f"a folder with a tokenizer: there is none in it. Did you mean {tmp_path}/run/export?"
    )
    shutil.copytree(tiny_model, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").rename(tmp_path / "bin" / "pytorch_model.bin")
    assert message(tmp_path / "bin") == (
        "a folder with *.safetensors weights: this one holds *.bin, which runs code when it is read. Convert them, if "
        'you trust their source: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{tmp_path}/bin').save_pretrained('{tmp_path}/bin')\""
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert message("someone/no-such-model") == (
        "a tokenizer that is on this machine: HF_HUB_OFFLINE is set, and it is not in the cache. Run `bft-ray "
        "fetch CONFIG` where there is a network, such as on a login node, or unset HF_HUB_OFFLINE."
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_an_export_that_cannot_be_read_any_more_names_the_damaged_file(name, tiny_model, make_tree, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "export")
    write_checksums(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2] + b"\xd5" + content[len(content) // 2 :])
    config = make_config(make_tree(model={"path": str(folder), "dtype": "fp32"}))
    with pytest.raises(BadInput, match=rf"`model.path` is .*{folder / name} must be unchanged since it was written"):
        check_model(config, load_tokenizer(config.model))


def test_a_model_with_code_of_its_own_is_refused_with_the_field_that_allows_it(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "own")
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "own.py").write_text("raise SystemExit('this code has run')\n")
    with pytest.raises(
        BadInput, match=r"needs no Python code of its own.*Read that code first.*trust_remote_code=true"
    ) as it:
        checked(config_of(folder))
    assert ".." not in str(it.value)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["path", "adapter"])
def test_an_adapter_as_bin_is_refused_with_a_way_that_converts_it(tiny_model, tmp_path, field):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    torch.save({"a": torch.ones(2, 3).T}, adapter / "adapter_model.bin")
    config = config_of(adapter if field == "path" else tiny_model)
    if field == "adapter":
        config = config.model_copy(update={"model": config.model.model_copy(update={"adapter": str(adapter)})})
    with pytest.raises(BadInput, match=f"`model.{field}` is .*adapter_model.safetensors: this one holds") as caught:
        checked(config)
    code = str(caught.value).partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True, timeout=360)
    assert torch.equal(load_file(adapter / "adapter_model.safetensors")["a"], torch.ones(3, 2))


READ = """
import json, sys
from bft_ray.config import ModelConfig
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer

answers = []
for path in json.loads(sys.argv[1]):
    try:
        load_tokenizer(ModelConfig(path=path))
    except BadInput as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_what_the_hub_refuses_is_told_with_its_cause(tmp_path, monkeypatch):
    def ask(address: str, *paths: str) -> list[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-c", READ, json.dumps(paths)]
        done = subprocess.run(command, env={**kept, **own}, cwd=ROOT, capture_output=True, text=True, timeout=540)
        assert done.returncode == 0, done.stderr
        return [text.partition(", but must be ")[2] for text in json.loads(done.stdout)]

    with loopback_hub() as (address, _):
        gated, none = ask(address, "lab/gated", "lab/none")

    def told(what: str, text: str) -> str:
        return str(unreadable("model.path", "lab/x", "lab/x", what, OSError(text))).partition(", but must be ")[2]

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    away = told("tokenizer", "We couldn't connect to 'https://huggingface.co' to load the files")
    binary = told("model", "lab/x does not appear to have a file named model.safetensors.")
    assert gated == (
        "a tokenizer that this account may read: the repository is gated. Ask for access on "
        "https://huggingface.co/lab/gated, then set HF_TOKEN on every node (or: hf auth login)."
    )
    assert none == (
        "the hub id of a tokenizer: the hub knows none of this name, or does not show it without a token. Check the "
        "spelling; where it is private, set HF_TOKEN on every node (or: hf auth login)."
    )
    assert binary == ("a model with *.safetensors weights: lab/x has none on the hub. Use a revision that has them.")
    assert away == (
        "a tokenizer that can be fetched: the hub does not answer. Check the network and its proxy (HTTPS_PROXY, "
        "HF_ENDPOINT), or download the model and give its folder."
    )


@pytest.mark.parametrize(
    ("kind", "package", "files"),
    [
        ("biogpt", "sacremoses", {"vocab.json": "{}", "merges.txt": "#version: 0.2\n"}),
        ("llama", "sentencepiece", {"tokenizer.model": "\0"}),
    ],
)
def test_a_tokenizer_that_needs_a_package(kind, package, files, tmp_path, make_model):
    if __import__("importlib.util").util.find_spec(package):
        pytest.skip(f"{package} is installed")
    fields = SMALL | {"max_position_embeddings": 64}
    made = make_model(kind, **fields)
    for file in made.glob("tokenizer*"):
        file.unlink()
    for name, text in files.items():
        (made / name).write_text(text)
    named = {"biogpt": "BioGptTokenizer", "llama": "LlamaTokenizer"}[kind]
    (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    with pytest.raises(BadInput) as caught:
        load_tokenizer(ModelConfig(path=str(made)))
    assert str(caught.value).endswith(
        f"but must be a tokenizer whose packages are installed: it needs {package}. "
        f"Install it on every node: pip install {package}."
    )


# --- Conv1D, tied weights -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:fan_in_fan_out")  # peft sets it itself, and a user cannot
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"], "all-linear"])
def test_lora_on_the_linear_layers_of_gpt2(make_model, tmp_path, targets):
    """They keep their weight transposed. Adapter and merged model agree, and the loss sees the halves of the model."""
    config = config_of(make_model("gpt2", **GPT2), lora={"rank": 4, "targets": targets})
    assert checked(config) == []
    model = trained(config).eval()
    check_halves(model, "cpu")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        with model.disable_adapter():
            assert (model(input_ids=ids).logits - expected).abs().max() > 1e-2
        exported(model, config, tmp_path / "merged", merge=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
    assert (merged - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_gpt2_trains_with_an_adapter_on_c_attn(make_model, make_tree, tmp_path):
    """By the loop, with the fused loss."""
    tree = make_tree(lora={"rank": 4, "targets": ["c_attn"]}, optimizer={"learning_rate": 1e-2})
    tree["model"]["path"] = str(make_model("gpt2", **GPT2))
    [run] = run_ranks(run_alone, 1, tree, str(tmp_path / "run"))
    losses = [values["validation/nll"] for event, values in run["events"] if event == "validation"]
    assert losses[-1] < losses[0] - 0.01, losses
    assert {name.split(".")[-3] for name in run["weights"]} <= {"lora_A", "lora_B", "c_attn"}


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"], ["q_proj"]])
def test_a_merged_model_whose_head_and_embedding_were_one(make_model, tmp_path, targets):
    folder = make_model("llama", **SMALL, max_position_embeddings=64, tie_word_embeddings=True)
    config = config_of(folder, 64, lora={"rank": 4, "targets": targets})
    model = trained(config).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        exported(model, config, tmp_path / "merged", merge=True)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        assert (merged(input_ids=ids).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    untied = targets != ["q_proj"]
    assert merged.config.tie_word_embeddings is not untied
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) is not untied


# --- where an answer ends -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_with_turns(tiny_model, tmp_path_factory) -> Path:
    """A base model that names <eos> alone, with a template whose turns end in <|im_end|> (token 97)."""
    folder = tmp_path_factory.mktemp("turns")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(98)
    model.generation_config = GenerationConfig(eos_token_id=1, max_new_tokens=64)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["adapter", "merged", "full"])
def test_exported_models_stop_where_their_turns_end(base_with_turns, tmp_path, kind):
    config = config_of(base_with_turns, lora=None if kind == "full" else {"rank": 2})
    model = load_model(config.model, config.lora)
    folder = exported(model, config, tmp_path / "export", merge=kind == "merged")
    settings = GenerationConfig.from_pretrained(folder)
    assert settings.eos_token_id == [1, 97] and settings.max_new_tokens == 64
    if kind != "adapter":
        assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == [1, 97]
    data = DataConfig(train=[SourceConfig(path="no.jsonl")])
    assert end_tokens(load_tokenizer(ModelConfig(path=str(folder))), data) == [1, 97]


def test_settings_that_transformers_would_not_save(base_with_turns, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base_with_turns)
    model.generation_config.temperature = 0.6  # without sampling, as some base models have it
    settings = generation_settings(model, AutoTokenizer.from_pretrained(base_with_turns))
    settings.save_pretrained(tmp_path)
    assert (settings.do_sample, settings.temperature) == (True, 0.6)


def test_a_mistyped_folder_is_told_where_the_hub_is_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "results").mkdir()
    told = unreadable("model.path", "results/nope", "results/nope", "tokenizer", ConnectionError("no connection"))
    assert "the hub does not answer" in told.rule
    assert told.remedy.endswith("If a folder was meant: there is no `nope` in `results`.")
    other = unreadable("model.path", "org/nope", "org/nope", "tokenizer", ConnectionError("no connection"))
    assert "If a folder" not in other.remedy
    word = unreadable("model.path", "nope", "nope", "tokenizer", ConnectionError("no connection"))
    assert word.remedy.endswith(f"If a folder was meant: there is no `nope` in `{tmp_path}`.")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention_bias": 0.5}, r"config\.json that transformers can read: .*attention_bias.*expected bool"),
        (
            {"num_attention_heads": 3},
            r"config\.json that transformers can read: .*not a multiple of the number of attention",
        ),
        ({"intermediate_size": 48}, "whose weights have the shapes that its config.json tells"),
        ({"pad_token_id": 10**6}, r"readable model \(safetensors\): Padding_idx must be within num_embeddings"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10**400}},
            r"readable model \(safetensors\): .*int too",
        ),
    ],
)
def test_a_config_that_is_not_that_of_its_weights(make_model, changed, message):
    folder = make_model("llama", **SMALL)
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | changed))
    with pytest.raises(BadInput, match=message):
        load_model(ModelConfig(path=str(folder), dtype="fp32"))


BAD_SETTINGS = [
    ({"hidden_size": "64"}, r"config\.json that transformers can read: .*hidden_size"),
    ({"hidden_size": 33}, r"config\.json that transformers can read: .*hidden size \(33\)"),
    ({"vocab_size": None}, r"config\.json that transformers can read: .*vocab_size"),
    ({"model_type": "none_of_these"}, r"config\.json that transformers can read: .*none_of_these"),
    ({"hidden_act": "nope"}, r"build from its config\.json: it knows no 'nope'"),
    ({"num_hidden_layers": 0}, "a model with 1 to 10,000 layers: its config.json has num_hidden_layers 0"),
    ({"num_hidden_layers": 10**30}, "a model with 1 to 10,000 layers: its config.json has num_hidden_layers 10{30}"),
    ({"head_dim": 0}, r"build from its config\.json: 0\.0 cannot be raised to a negative power"),
    ({"intermediate_size": -1}, r"build from its config\.json: .*negative dimension"),
    ({"dtype": []}, r"config\.json that transformers can read: list index out of range"),
    ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is a multiple of its num_key_value_heads \(3\)"),
]


@pytest.mark.parametrize("with_weights", [True, False])
@pytest.mark.parametrize(("changed", "told"), BAD_SETTINGS)
def test_what_is_wrong_with_a_config_json_is_told(make_tree, tiny_model, tmp_path, changed, told, with_weights):
    """Not its weights, which a plan does not need, and not its tokenizer."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    if not with_weights:
        (folder / "model.safetensors").unlink()
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | changed))
    config = make_config(make_tree() | {"model": {"path": str(folder)}})
    with pytest.raises(BadInput, match=told):
        Planner(config, is_gpu=False)
    for _ in range(with_weights):
        with pytest.raises(BadInput, match=told):
            check_model(config, load_tokenizer(config.model))


def test_a_plan_of_what_no_training_takes(make_tree, tiny_model, tmp_path):
    """`train` refuses a model that was saved quantized, and positions that are not there; so does the plan."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    described = json.loads((folder / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq", "bits": 4}
    }
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(BadInput, match=r"saved quantized \(gptq\)"):
        Planner(make_config(make_tree() | {"model": {"path": str(folder)}}), is_gpu=False)
    tree = make_tree(data={"max_length": 600, "micro_batch_tokens": 1024})
    (note,) = Planner(make_config(tree), is_gpu=False).notes
    assert "data.max_length is 600, and the model was made for 512 positions" in note
