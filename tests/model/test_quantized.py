"""Training on 4-bit base weights: they stay as they are, and all else is what their decoded values would give."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bft_ray.config import LoraConfig, ModelConfig, make_config
from bft_ray.errors import BadInput
from bft_ray.model import quantized
from bft_ray.model.card import model_card
from bft_ray.model.causal_lm import load_base, load_model, load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.model.export import export_model
from bft_ray.study.execute.warm import Warm
from tests.support.alone import run_alone
from tests.support.ranks import run_ranks

needs_package = pytest.mark.usefixtures("package")
RATE = 10.0


@pytest.fixture
def package():
    """bitsandbytes, or a skip that says where it comes from."""
    pytest.importorskip("bitsandbytes", reason="needs the extra `4bit`")


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    """The tiny model with rows of whole blocks, but one: that of o_proj, from 4 heads of 24."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("quantized") / "model"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(
        tiny_model, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=24
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tree(make_tree, model) -> dict:
    made = make_tree(lora={"rank": 4}, loss={"method": "bft", "window": 8}, optimizer={"learning_rate": 1e-2})
    made["model"] |= {"path": str(model), "quantization": "nf4"}
    return made


def packed_of(model: Any) -> dict[str, np.ndarray]:
    """Name -> what is kept of each 4-bit weight: codes, and the scales of its blocks."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.uint8:
            state = parameter.quant_state
            assert (state.quant_type, state.blocksize, state.nested) == ("nf4", 64, True)
            parts = (parameter.data, state.absmax, state.offset, state.state2.absmax)
            found[name] = np.concatenate([part.flatten().view(torch.uint8).numpy() for part in parts])
    return found


def _decode(weight: Any) -> torch.Tensor:
    """By the definition: a value of NF4 times the scale of its block, which is one of 256 values times that of 256 scales."""
    state = weight.quant_state
    large = state.state2.absmax.repeat_interleave(256)[: len(state.absmax)]
    scales = state.state2.code[state.absmax.long()] * large + state.offset
    codes = weight.data.flatten().long()
    values = state.code[torch.stack([codes >> 4, codes & 15], 1).flatten()]
    return (values.view(-1, 64) * scales[:, None]).view(state.shape)


def decoded(model: Any, config: ModelConfig, lora: LoraConfig) -> Any:
    """The same made by hand: plain modules with the decoded weights, and peft's own adapters with the same numbers."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    plain: Any = load_base(config.model_copy(update={"quantization": None}))
    weights = dict(model.get_base_model().named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            own = weights[name] if name in weights else weights[name.replace(".weight", ".base_layer.weight")]
            packed = own.dtype == torch.uint8
            value = _decode(own) if packed else own
            assert packed == ("proj" in name and "o_proj" not in name), name
            assert not packed or 0 < (value - parameter).abs().max() < 0.2 * parameter.abs().max()
            parameter.copy_(value)
    settings = PeftConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    made = get_peft_model(plain, settings, autocast_adapter_dtype=False)
    made.load_state_dict({n: p for n, p in model.named_parameters() if p.requires_grad}, strict=False)
    return made


def moved(tree: dict, by_hand: bool = False) -> dict[str, Any]:
    """Two steps of plain gradient descent through the engine, with an evaluation between them."""
    import bft_ray.train.engine as engine_module
    from bft_ray.data.dataset import prepare
    from bft_ray.train.loop import Data, make_plan, share_of
    from bft_ray.train.step import train_step

    config = make_config(tree)
    assert config.lora is not None
    tokenizer = load_tokenizer(config.model)
    data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
    model: Any = load_model(config.model, config.lora, config.seed)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape))
    before = packed_of(model)
    if by_hand:
        model = decoded(model, config.model, config.lora)
    adamw = engine_module._adamw
    engine_module._adamw = lambda model, *_: torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=RATE
    )
    try:
        engine = engine_module.Engine(config, torch.device("cpu"), model)
    finally:
        engine_module._adamw = adamw
    plan, _ = make_plan(config, data.train)
    whole = [own.numel() for own in load_base(config.model.model_copy(update={"quantization": None})).parameters()]
    assert engine.num_parameters == sum(whole) + engine.num_trainable  # elements, of which a byte has two
    start, found = engine.weights(), []
    for step in range(2):
        share = share_of(engine, config, data, plan.batch(step))
        found.append(train_step(engine, share, config.loss, step=step, learning_rate=RATE, seed=0))
        engine.module.eval()
        with torch.no_grad():  # where bitsandbytes would lay out weights anew
            logits = engine.module(input_ids=torch.arange(3, 40)[None]).logits
        engine.module.train()
    after = packed_of(engine.module)
    end = engine.weights()
    gradient = {} if end is None else {name: (start[name] - end[name]).numpy() / RATE for name in end}
    engine.close()
    same = before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    return {
        "loss": [one["train/loss"] for one in found],
        "norm": [one["train/grad_norm"] for one in found],
        "gradient": gradient,
        "logits": logits.numpy(),
        "packed": len(after),
        "same": same,
    }


def near(found: dict[str, Any], expected: dict[str, Any], limit: float) -> None:
    assert found["loss"] == pytest.approx(expected["loss"], rel=limit)
    assert found["norm"] == pytest.approx(expected["norm"], rel=limit)
    assert np.abs(found["logits"] - expected["logits"]).max() <= limit * np.abs(expected["logits"]).max()
    assert found["gradient"].keys() == expected["gradient"].keys() and len(found["gradient"]) == 28
    for name, value in expected["gradient"].items():
        assert np.abs(found["gradient"][name] - value).max() <= limit * np.abs(value).max(), name


@needs_package
@pytest.mark.slow
def test_training_is_that_on_the_decoded_weights_whatever_the_stage_and_ranks(tree):
    trees = {preset: {**tree, "deepspeed": {"preset": preset}} for preset in ("zero0", "zero1", "zero2")}
    (alone,) = run_ranks(moved, 1, trees["zero0"])
    (by_hand,) = run_ranks(moved, 1, trees["zero0"], True)
    assert alone["packed"] == 12 and alone["same"] and by_hand["packed"] == 0
    assert min(np.abs(value).max() for value in alone["gradient"].values()) > 1e-5  # each adapter moves
    assert alone["loss"][0] != alone["loss"][1]
    near(alone, by_hand, 1e-4)
    for preset in ("zero1", "zero2"):
        first, second = run_ranks(moved, 2, trees[preset])
        assert first["same"] and second["same"] and first["packed"] == 12
        near(first, alone, 1e-5)


def in_turn(tree: dict, runs: list[tuple[str, int | None]]) -> list[dict]:
    return [run_alone(tree, folder, stop) for folder, stop in runs]


@needs_package
@pytest.mark.slow
def test_a_resumed_run_is_the_undisturbed_one_in_bf16_and_with_checkpointing(tree, tmp_path):
    tree["model"] |= {"dtype": "bf16", "gradient_checkpointing": True}
    runs = [(str(tmp_path / "calm"), None), (str(tmp_path / "cut"), 5), (str(tmp_path / "cut"), None)]
    ((calm, _, resumed),) = run_ranks(in_turn, 1, tree, runs)
    assert ("resume", 4) in [(event, values["step"]) for event, values in resumed["events"]]
    assert calm["weights"].keys() == resumed["weights"].keys() and len(calm["weights"]) == 28
    assert all((value == resumed["weights"][name]).all() for name, value in calm["weights"].items())
    nll = [values["validation/nll"] for event, values in calm["events"] if event == "validation"]
    assert nll[-1] < 0.99 * nll[0]


def adapted(config: Any) -> Any:
    """A model with an adapter that changes it."""
    model: Any = load_model(config.model, config.lora, 0)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model


@needs_package
@pytest.mark.slow
def test_an_export_is_read_on_4_bits_again_and_merges_into_the_weights_as_they_were(tree, tmp_path):
    config = make_config(tree)
    model, tokenizer = adapted(config), load_tokenizer(config.model)
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids, labels=ids).loss
    for merge in (False, True):
        export_model(model, weights, tokenizer, config.model, tmp_path / str(merge), merge=merge)
    found: Any = load_model(config.exported(str(tmp_path / "False"))).eval()
    with torch.no_grad():
        assert found(input_ids=ids, labels=ids).loss == expected and len(packed_of(found)) == 12
    merging = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"merge_lora": True})})
    merged: Any = load_model(merging.exported(str(tmp_path / "True")))
    assert not packed_of(merged)
    original = dict(load_base(ModelConfig(path=config.model.path, dtype="fp32")).named_parameters())
    for name, value in merged.named_parameters():
        base = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{base}.lora_A.default.weight" in weights:
            a, b = (weights[f"{base}.lora_{part}.default.weight"] for part in "AB")
            expected = original[name] + config.lora.alpha / config.lora.rank * b @ a
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
            assert not torch.equal(value, original[name])
        else:
            assert torch.equal(value, original[name]), name


@needs_package
@pytest.mark.slow
def test_a_reader_of_the_card_loads_what_was_measured(tree, tmp_path):
    """Of a model all of whose rows are whole blocks."""
    tree["model"]["path"] = "starter"
    config = make_config(tree)
    model, folder = adapted(config), str(tmp_path / "export")
    weights = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    export_model(model, weights, load_tokenizer(config.model), config.model, tmp_path / "export")
    text = model_card(config, kind="adapter", folder=folder, fingerprints={}, before={}, after={}, run_id="r", step=1)
    code = re.search(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    exec(code[1] if code else "", names)
    quantized.keep_layout(names["model"])
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        expected, found = (one.eval()(input_ids=ids, labels=ids).loss.item() for one in (model, names["model"]))
    assert found == pytest.approx(expected, rel=1e-6)


@needs_package
@pytest.mark.slow
def test_trials_in_one_process_share_the_4_bit_weights_and_give_them_back(tree):
    warm, config = Warm(torch.device("cpu")), make_config(tree)
    seen, kept = [], []
    for seed in (0, 1):
        with warm.trained(config.model_copy(update={"seed": seed})) as model:
            kept.append(packed_of(model))
            seen.append(id(next(own for own in model.parameters() if own.dtype == torch.uint8)))
            model(input_ids=torch.arange(3, 9)[None]).logits.sum().backward()
    assert seen[0] == seen[1] and len(kept[0]) == 12
    assert all((value == kept[1][name]).all() for name, value in kept[0].items())
    plain = config.model_copy(update={"model": config.model.model_copy(update={"quantization": None})})
    with warm.trained(plain) as model:  # another base, as where a study varies it
        assert not packed_of(model)


@needs_package
def test_gpt_2_has_transposed_modules_and_a_tied_head(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(vocab_size=96, n_embd=64, n_layer=1, n_head=2, n_positions=64, bos_token_id=2, eos_token_id=1)
    GPT2LMHeadModel(settings).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype="fp32", quantization="nf4")
    model: Any = load_model(config, LoraConfig(rank=2))
    plain = load_model(config.model_copy(update={"quantization": None}), LoraConfig(rank=2))
    assert len(packed_of(model)) == len(quantized.packed_weights(plain)) == 4
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model(input_ids=torch.arange(3, 9)[None]).logits.sum().backward()


def test_without_the_package_it_is_refused(tree, monkeypatch):
    config = make_config(tree)
    tokenizer = load_tokenizer(config.model)

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    for look, words in ((absent, "which is not installed"), (lambda name: "0.49.1", "and this is 0.49.1")):
        monkeypatch.setattr(quantized, "version", look)
        for ask in (lambda: check_model(config, tokenizer), lambda: load_base(config.model)):
            with pytest.raises(BadInput, match=rf"`model.quantization` is 'nf4', but .*{words}.*bft-ray\[4bit\]"):
                ask()


@needs_package
def test_a_model_that_was_saved_quantized_is_refused(tree, tmp_path: Path):
    packed: Any = load_base(make_config(tree).model)
    packed.save_pretrained(tmp_path)
    load_tokenizer(make_config(tree).model).save_pretrained(tmp_path)
    tree["model"] = {"path": str(tmp_path), "dtype": "fp32"}
    config = make_config(tree)
    rule = r"`model.path` is .* a model with plain weights: these were saved quantized \(bitsandbytes\)"
    for ask in (lambda: check_model(config, load_tokenizer(config.model)), lambda: load_base(config.model)):
        with pytest.raises(BadInput, match=rule):
            ask()
