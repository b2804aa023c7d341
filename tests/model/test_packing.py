"""Packed, padded and alone are compared on the model at hand, and what is not exact is not done."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BioGptConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
)

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.model.layouts import Layouts, measure_layouts
from bft_ray.model.packing import choose_rows

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
HEADS = {**SMALL, "num_attention_heads": 4}
SHARP = 4.0  # sharpens attention: at random weights it is all but uniform, and hides what leaks
EXACT = {"llama": LlamaConfig(**HEADS), "mixtral": MixtralConfig(**HEADS, num_key_value_heads=2, num_local_experts=2)}
LEAKING = {
    "biogpt": BioGptConfig(**HEADS, hidden_dropout_prob=0, attention_probs_dropout_prob=0, layerdrop=0),
    "mamba": MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=8),
}


def made(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(SHARP)
    model.config.use_cache = False
    return model.to(dtype).train()


def asked(packing=None, **sections):
    data = {"train": [{"path": "none"}], "packing": packing, "max_length": 64, "micro_batch_tokens": 256}
    return make_config(
        {"domain": "test", "data": data | sections.pop("data", {}), "checkpoint": {"export": "last"}} | sections
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", [*EXACT, *LEAKING])
def test_what_leaks_is_found(name, gradients, dtype):
    model = made((EXACT | LEAKING)[name], dtype)
    state = torch.random.get_rng_state()
    found = measure_layouts(model, "cpu", gradients)
    assert torch.equal(state, torch.random.get_rng_state())  # a run draws the same as without it
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert found.padding_is_exact and found.padded_flow == 0
    assert found.packing_is_exact == (name in EXACT)
    if name in EXACT:
        assert found.packed_flow == 0 and found.packed < (1e-6 if dtype == torch.float32 else 2e-2)
    else:
        assert found.packed_flow > 0.01 and found.packed > 0.1
    assert measure_layouts(model, "cpu", gradients) is found  # measured once
    assert measure_layouts(copy.deepcopy(model), "cpu", gradients) == found
    if not gradients:  # what leaks without gradients is told from another comparison
        assert measure_layouts(model, "cpu").packing_is_exact == found.packing_is_exact


@pytest.mark.parametrize(
    ("error", "is_of_machine"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("device-side assert triggered", 710), True),
        (torch.distributed.DistBackendError("unhandled system error"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"), False),
        (TypeError("forward() got an unexpected keyword argument 'position_ids'"), False),
        (NotImplementedError("no packing"), False),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_error_of_the_machine_is_no_answer(error, is_of_machine):
    """It ends the run, and the next start measures again; any other error means that the model cannot run so."""
    model = made(EXACT["llama"])

    def fail(module, arguments, given) -> None:
        if given["position_ids"] is not None:  # packed
            raise error

    hook = model.model.register_forward_pre_hook(fail, with_kwargs=True)
    if is_of_machine:
        with pytest.raises(type(error)) as raised:
            measure_layouts(model, "cpu")
        assert raised.value is error and model.training
        hook.remove()
        assert measure_layouts(model, "cpu").packing_is_exact
    else:
        found = measure_layouts(model, "cpu")
        assert found.packed == found.packed_flow == float("inf") and found.padding_is_exact


def test_an_adapter_changes_nothing_of_it():
    from bft_ray.config import LoraConfig
    from bft_ray.model.lora import add_lora

    plain = made(EXACT["llama"])
    adapted = add_lora(copy.deepcopy(plain), LoraConfig(rank=2), 0)
    assert measure_layouts(adapted, "cpu") == pytest.approx(measure_layouts(plain, "cpu"))


def test_the_choice_by_device_and_attention():
    model = made(EXACT["llama"])
    exact = measure_layouts(model, "cpu")
    rows = choose_rows(asked(), exact, model, "cpu")
    assert (rows.packing, rows.size, rows.why) == (False, None, "padded, which is faster than packing with the CPU")
    assert choose_rows(asked(), exact, model, "cuda").packing
    rows = choose_rows(asked(model={"attention": "eager"}), exact, model, "cuda")
    assert rows.why == "padded, which is faster than packing with eager attention"
    for device in ("cpu", "cuda"):  # what was asked for is done where it is exact
        assert choose_rows(asked(packing=True), exact, model, device).packing
        assert not choose_rows(asked(packing=False), exact, model, device).packing


def test_what_is_not_exact_is_padded_with_a_line_or_refused():
    model = made(LEAKING["biogpt"])
    found = Layouts(0.71, 0.28, 0.0, 0.0, 1e-5)
    rows = choose_rows(asked(), found, model, "cuda")
    assert not rows.packing and rows.size is None
    assert rows.why == (
        "padded: BioGptForCausalLM is not exact when packed (a sample sees its neighbours, by 2.8e-01 of its gradient)"
    )
    with pytest.raises(BadInput) as refused:
        choose_rows(asked(packing=True), found, model, "cpu")
    assert str(refused.value) == (
        "`data.packing` is True, but must be false or null: BioGptForCausalLM is not exact with it (a sample sees its "
        "neighbours, by 2.8e-01 of its gradient). Leave it null."
    )
    assert "packed and alone differ by 2.0e-04" in choose_rows(asked(), Layouts(2e-4, 0, 0, 0, 1e-5), model, "cuda").why
    inf = float("inf")
    assert "it takes no position_ids" in choose_rows(asked(), Layouts(inf, inf, 0, 0, 1e-5), model, "cuda").why


def test_a_model_that_looks_ahead_is_refused():
    model = BertLMHeadModel(BertConfig(**HEADS, is_decoder=False, hidden_dropout_prob=0))
    found = Layouts(0.1, 0.1, 0.1, 0.2, 1e-5)
    with pytest.raises(BadInput, match=r"a causal architecture: of this one a token sees later ones \(by 2.0e-01\)"):
        choose_rows(asked(), found, model, "cpu")


def test_rotary_positions_that_hang_on_the_longest_sample_are_taken_alone():
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = LlamaConfig(
        **HEADS, max_position_embeddings=64, rope_parameters=rope | {"original_max_position_embeddings": 32}
    )
    model = made(config)
    found = measure_layouts(model, "cpu")
    assert choose_rows(asked(data={"max_length": 32}), found, model, "cuda").packing
    rows = choose_rows(asked(), found, model, "cuda")
    assert (rows.packing, rows.size) == (False, 1)
    assert rows.why == (
        "one sample a row: LlamaForCausalLM is not exact with padding (its rotary positions change where the longest "
        "sample has more than 32 tokens)"
    )
    # and so it is: a long neighbour changes what a short sample gets, padded as well as packed
    short, long = torch.arange(1, 9)[None], torch.arange(1, 41)[None]
    padded = torch.cat([torch.nn.functional.pad(short, (0, 32)), long])
    with torch.no_grad():
        alone = model.eval()(short, use_cache=False).logits[0]
        assert (model(padded, use_cache=False).logits[0, :8] - alone).abs().max() > 1e-3


def test_a_run_keeps_its_choice(tmp_path):
    """Whatever device it goes on with; what the config says comes first."""
    from bft_ray.model.packing import Rows
    from bft_ray.train.worker import keep_packing, with_packing

    folder = str(tmp_path)
    assert with_packing(asked(), folder).data.packing is None
    keep_packing(Rows(True, None, "packed"), folder, None)
    keep_packing(Rows(False, None, "padded"), folder, None)  # on another device, after a resume: too late
    assert with_packing(asked(), folder).data.packing is True
    assert with_packing(asked(packing=False), folder).data.packing is False


def test_a_study_chooses_once(make_tree, tmp_path):
    """On a worker, and notes it for every driver to come; trials get it with their config."""
    from bft_ray.space.definition import SearchSpace
    from bft_ray.study.checks.packing import settle_packing
    from bft_ray.study.checks.ready import Facts
    from bft_ray.study.definition import Study

    class Notes:
        def __init__(self):
            self.kept = {}

        def notes(self):
            return self.kept

        def note(self, name, value):
            self.kept[name] = value

    def settled(notes, parameters=None, **data):
        base = make_config(make_tree(data=data))
        space = SearchSpace(
            name="test",
            config="none",
            budget={"trials": 8},
            objective={"metric": "validation/nll"},
            parameters=parameters or {"optimizer.learning_rate": {"kind": "categorical", "values": [1e-3, 1e-4]}},
        )
        study = Study("1", space, base, None, None, str(tmp_path))
        lines = []
        study, facts = settle_packing(study, Facts(base, None, None, {}), notes, lines.append)
        return study.base.data.packing, facts.first.data.packing, lines

    notes = Notes()
    assert settled(notes) == (False, False, ["rows: padded, which is faster than packing with the CPU"])
    assert settled(notes) == (False, False, [])
    notes.note("packing", True)  # begun on a GPU
    assert settled(notes) == (True, True, [])
    assert settled(notes, packing=False)[:2] == (False, False)
    models = {"model.path": {"kind": "categorical", "values": ["a", "b"]}}
    assert settled(Notes(), models)[:2] == (None, None)
