"""What `plan` computes, against tensors that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from bft_ray.cli import main
from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_base
from bft_ray.operate.configured import check_fit
from bft_ray.operate.plan import fit as fit_module
from bft_ray.operate.plan.live import LiveBytes
from bft_ray.operate.plan.setups import USABLE, Planner, Setup
from bft_ray.operate.plan.states import Sizes, states
from bft_ray.operate.plan.text import plan_text
from bft_ray.operate.studies import dry_run
from tests.support.ranks import run_ranks

LENGTHS = (64, 512)
TOLERANCE = 0.15
#: what differs: adapters, ZeRO stage, workers, checkpointing, length, dtype
RUNS = {
    "full, zero1, kept": {"preset": "zero1", "num_workers": 1, "checkpointing": False, "length": 64, "dtype": "fp32"},
    "full, zero3, checkpointed": {
        "preset": "zero3", "num_workers": 2, "checkpointing": True, "length": 512, "dtype": "bf16",
    },
    "LoRA, zero2, kept": {
        "preset": "zero2", "num_workers": 2, "checkpointing": False, "length": 512, "dtype": "fp32", "lora": {"rank": 8},
    },
    "LoRA, zero3, checkpointed": {
        "preset": "zero3", "num_workers": 2, "checkpointing": True, "length": 64, "dtype": "fp32", "lora": {"rank": 8},
    },
    "LoRA on 4 bits, zero1, kept": {
        "preset": "zero1", "num_workers": 1, "checkpointing": False, "length": 64, "dtype": "bf16", "lora": {"rank": 8},
        "quantization": "nf4",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    """5.4 M random weights, larger than what ZeRO-3 leaves whole, with the tiny tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("planned") / "model"
    shutil.copytree(tiny_model, folder)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> dict[int, Path]:
    """16 rows a file, whose samples have exactly so many tokens."""
    paths = {}
    for length in LENGTHS:
        paths[length] = tmp_path_factory.mktemp("rows") / f"{length}.jsonl"
        completion = " ".join(["w1"] * (length - 4))  # beside it: begin, prompt, newline, end
        lines = [json.dumps({"id": f"r{n}", "prompt": f"w{n}", "completion": completion}) for n in range(16)]
        paths[length].write_text("\n".join(lines))
    return paths


@pytest.fixture
def planned(model, rows, tree_in, tmp_path):
    """A function that makes the tree of a run whose two micro-batches a worker have two rows of the greatest length."""

    def make(preset, num_workers, checkpointing, length, dtype, lora=None, quantization=None, **cluster):
        own = {"dtype": dtype, "gradient_checkpointing": checkpointing, "quantization": quantization}
        return tree_in(
            tmp_path,
            model={"path": str(model), **own},
            data={
                "train": [{"path": str(rows[length])}],
                "max_length": length,
                "micro_batch_tokens": 2 * length,
                "global_batch_size": 4 * num_workers,
            },
            lora=lora,
            evaluation={"batch_tokens": 2 * length},
            deepspeed={"preset": preset},
            cluster={"num_workers": num_workers, "gpus_per_worker": 0, **cluster},
        )

    return make


def measured_bytes(tree: dict, device: str = "cpu") -> int:
    """Most bytes of tensors in the second step of a real run, on this rank."""
    from bft_ray.data.dataset import prepare
    from bft_ray.model.causal_lm import load_tokenizer
    from bft_ray.train.engine import Engine
    from bft_ray.train.loop import Data, make_plan, share_of
    from bft_ray.train.step import train_step

    config = make_config(tree)
    tokenizer = load_tokenizer(config.model)
    data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
    assert set(data.train.lengths) == {config.data.max_length}
    plan, _ = make_plan(config, data.train)
    with LiveBytes() as live:
        engine = Engine(config, torch.device(device))
        for step in range(2):
            live.forget_peak()
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats()
            share = share_of(engine, config, data, plan.batch(step))
            assert len(share.micro_batches) == 2
            train_step(engine, share, config.loss, step=step, learning_rate=1e-4, seed=0)
        found = live.peak_bytes if device == "cpu" else torch.cuda.max_memory_allocated()
    engine.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.release) if "zero3" in name else name for name in RUNS]
)
def test_the_plan_is_within_15_percent_of_the_tensors_of_a_run(planned, name):
    if "quantization" in RUNS[name]:
        pytest.importorskip("bitsandbytes", reason="needs the extra `clouds`")
    tree = planned(**RUNS[name])
    measured = max(run_ranks(measured_bytes, RUNS[name]["num_workers"], tree))
    config = make_config(tree)
    computed = Planner(config, is_gpu=False).need(Setup.of(config)).gpu_bytes
    print(f"{name}: computed {computed / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")  # -rP shows it
    assert computed == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.gpu
@pytest.mark.slow
def test_the_plan_is_within_15_percent_of_what_a_gpu_allocates(planned):
    tree = planned("zero1", 1, False, 512, "bf16", gpus_per_worker=1)
    (measured,) = run_ranks(measured_bytes, 1, tree, "cuda", fresh=True)
    config = make_config(tree)
    assert Planner(config, is_gpu=True).need(Setup.of(config)).gpu_bytes == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.slow
def test_4_bit_weights_are_planned_to_the_byte(planned):
    """Of a model that is really loaded, with what bitsandbytes keeps beside the weights."""
    pytest.importorskip("bitsandbytes", reason="needs the extra `clouds`")
    config = make_config(planned(**RUNS["LoRA on 4 bits, zero1, kept"]))
    loaded = load_base(config.model)
    found = sum(own.nbytes for own in loaded.parameters())
    states_of = [own.quant_state for own in loaded.parameters() if own.dtype == torch.uint8]
    kept = ((own.absmax, own.code, own.offset, own.state2.absmax, own.state2.code) for own in states_of)
    found += sum(tensor.nbytes for tensors in kept for tensor in tensors)
    planner = Planner(config, is_gpu=False)
    sizes = planner.sizes(lora=True)
    assert len(states_of) == 6 * 6 and sizes.packed == 6 * (2 * 256 * 256 + 2 * 256 * 128 + 2 * 256 * 688)
    assert sizes.weights_bytes - 2 * sizes.trained == found
    assert planner.sizes(lora=False).packed == 0  # full fine-tuning has plain weights
    assert not planner.may_be(True, "zero3") and planner.may_be(False, "zero3") and planner.may_be(True, "zero2")
    text = plan_text(config, True, [16], 2)
    (row,) = [line for line in text.splitlines() if line.startswith("zero3  ")]
    assert "zero3," not in text.partition("LoRA  smallest")[2].partition("full ")[0] and row.split()[1:3] == ["-", "-"]


def test_live_bytes_are_those_of_the_allocator():
    from torch.profiler import ProfilerActivity, profile

    def step() -> None:
        layers = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        optimizer = torch.optim.AdamW(layers.parameters(), fused=True)
        for _ in range(2):
            layers(torch.ones(100, 64)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    with LiveBytes() as live:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert live.peak_bytes == pytest.approx(peak, rel=0.01) and live.live_bytes == 0


def test_states_by_hand(make_tree):
    """The ZeRO paper's 16 bytes a parameter in bf16, and how they are shared out."""
    sizes = Sizes(parameters=1000, trained=1000, persistent=100, word_bytes=2)

    def held(preset: str, workers: int, offload: str = "none") -> dict[str, int]:
        tree = make_tree(
            model={"dtype": "bf16"}, deepspeed={"preset": preset, "offload": offload}, cluster={"num_workers": workers}
        )
        return states(make_config(tree), sizes).held

    assert held("zero1", 1) == {"weights": 2000, "master": 4000, "moments": 8000, "gradients": 2000}
    assert held("zero1", 4) == {"weights": 2000, "master": 1000, "moments": 2000, "gradients": 2000}
    assert held("zero2", 4) == {"weights": 2000, "master": 1000, "moments": 2000, "gradients": 1000}
    assert held("zero3", 4) == {"weights": 500 + 200, "master": 1000, "moments": 2000, "gradients": 1000}
    assert held("zero2", 4, "optimizer") == {"weights": 2000}
    assert held("zero3", 4, "all") == {"weights": 200}
    tree = make_tree(
        model={"dtype": "bf16"}, deepspeed={"preset": "zero3", "offload": "all"}, cluster={"num_workers": 4}
    )
    found = states(make_config(tree), sizes)
    assert found.host_bytes == 500 + 1000 + 2000 + 1000 + 500
    assert found.beside_activations == {"buckets": 2000, "gathered": 1800}
    tree["deepspeed"]["overlay"] = {"zero_optimization": {"reduce_bucket_size": 10, "stage3_max_live_parameters": 20}}
    assert states(make_config(tree), sizes).beside_activations == {"buckets": 20, "gathered": 40}


def test_an_anchor_holds_the_starting_weights(make_tree):
    sizes = Sizes(parameters=1000, trained=1000, persistent=0, word_bytes=2)
    tree = make_tree(loss={"anchor": 0.1})
    assert states(make_config(tree), sizes).held["anchor"] == 2000
    assert "anchor" not in states(make_config(tree | {"lora": {"rank": 2}}), sizes).held


@pytest.mark.slow
def test_the_smallest_and_the_recommended_set_up_fit_and_their_neighbours_do_not(planned):
    config = make_config(planned("zero1", 1, False, 512, "bf16"))
    planner = Planner(config, is_gpu=True)
    whole = planner.need(Setup.of(config)).gpu_bytes
    roomy = planner.recommended(False, whole / USABLE, 64)
    assert roomy is not None and roomy.setup == Setup.of(config) and roomy.fits(whole / USABLE)

    tight = 0.95 * whole / USABLE
    found = planner.recommended(False, tight, 64)
    assert found is not None and found.gpu_bytes <= USABLE * tight and found.setup.offload == "none"
    assert found.setup.num_workers == 1 and found.setup.micro_batch_tokens == 1024 and found.setup.checkpointing
    assert planner.recommended(False, whole / 100, 64) is None

    alone = planner.need(Setup(False, "zero1", "none", True, 1, 512)).gpu_bytes
    least = planner.smallest(False, 0.9 * alone / USABLE, 64)
    assert least is not None and least.setup.num_workers == 1 and least.setup.offload != "none"
    assert least.states.host_bytes >= 12 * planner.sizes(False).trained


@pytest.mark.slow
def test_packed_samples_have_a_mask_and_padded_ones_none(planned):
    tree = planned("zero1", 1, False, 512, "bf16")
    need = {
        packing: Planner(config, is_gpu=True).need(Setup.of(config)).activations_bytes
        for packing in (True, False)
        if (config := make_config(tree | {"data": tree["data"] | {"packing": packing}}))
    }
    assert need[True] - need[False] >= 1024 * 1024  # a bool for each pair of the row's 1,024 tokens


def test_a_lora_target_that_is_not_there_is_refused(planned):
    tree = planned("zero1", 1, False, 64, "bf16", lora={"targets": ["q_proj", "nowhere"]})
    config = make_config(tree)
    with pytest.raises(BadInput, match=r"lora\.targets"):
        Planner(config, is_gpu=True).need(Setup.of(config))


@pytest.mark.slow
def test_doctor_fails_where_memory_is_less_than_the_plan(planned, monkeypatch):
    config = make_config(planned("zero1", 2, False, 512, "fp32"))
    need = fit_module.fit_of(config).need.gpu_bytes
    for share, status in ((4.0, "ok"), (2.1, "warn"), (1.9, "fail")):  # two workers share the machine
        monkeypatch.setattr(fit_module, "memory_bytes", lambda share=share: share * need)
        (finding,) = check_fit(config)
        assert finding.status == status, finding
    assert "does not fit" in finding.detail and "bft-ray plan" in finding.remedy


def config_file(tree: dict, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree))
    return str(path)


@pytest.mark.slow
def test_the_command_prints_terms_table_and_set_ups(planned, tmp_path, capsys):
    path = config_file(planned("zero2", 2, False, 64, "bf16"), tmp_path)
    assert main(["plan", path, "--gpu-gib", "16,0.00001"]) == 0
    text = capsys.readouterr().out
    assert "5,401,856 parameters, bf16" in text and "zero3, offload all" in text and "zero0" not in text
    assert "smallest and recommended: 1 worker, full, zero1, activations kept" in text
    assert "fits in no set-up of these" in text and "not checked there" in text
    assert "hours   not known without a measured speed" in text


@pytest.mark.slow
def test_hours_and_price_come_from_a_measured_speed_alone(planned, tmp_path, capsys):
    tree = planned("zero2", 2, False, 64, "bf16", gpus_per_worker=1)
    tree["schedule"] = {"steps": 900}
    path = config_file(tree, tmp_path)
    assert main(["plan", path, "--gpu-gib", "16", "--step-s", "2", "--price-per-gpu-hour", "3"]) == 0
    text = capsys.readouterr().out
    assert "30 min 00 s for the run: 900 steps of 2 s" in text and "1 GPU-hours, 3.00 at 3 an hour" in text
    tree["schedule"] = {"epochs": 2.0}  # 16 rows in batches of 8: 4 steps
    assert main(["plan", config_file(tree, tmp_path), "--step-s", "2"]) == 0
    assert "8 s for the run: 4 steps of 2 s" in capsys.readouterr().out
    assert main(["plan", path, "--price-per-gpu-hour", "3"]) == 2
    for value in ("0", "inf", "nan", "1e300"):
        assert main(["plan", path, "--step-s", value]) == 2
    for value in ("much", "24,nan", "inf", "0"):
        assert main(["plan", path, "--gpu-gib", value]) == 2
    assert "numbers above 0 and at most 10,000" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_says_what_does_not_fit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fits = dry_run("starter", None, [], measure=False)
    (line,) = [line for line in fits.splitlines() if line.startswith("plan    ")]
    assert "of tensors for each worker" in line and line.endswith("fits") and "note" not in line
    monkeypatch.setattr(fit_module, "memory_bytes", lambda: 1e6)
    (line,) = [line for line in dry_run("starter", None, [], measure=False).splitlines() if line.startswith("plan    ")]
    assert line.startswith("plan    note: ") and line.endswith("does not fit")
