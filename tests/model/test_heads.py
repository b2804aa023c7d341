"""The step's loss and gradient, for every kind of head, against the definition on full logits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from tests.support.laid import laid_out
from tests.support.ranks import run_ranks

RATE = 1000.0
SIZES = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)
#: architecture -> its config class and what is special: tied, untied, capped, scaled, with bias
MODELS = {
    "tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "untied": ("Qwen2Config", {"tie_word_embeddings": False}),
    "capped": ("Gemma2Config", {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "scaled": ("GraniteConfig", {"logits_scaling": 3.0}),
    "bias": ("PhiConfig", {}),
}
LORAS = {"full": None, "lora": {"rank": 4}, "lora on head": {"rank": 4, "targets": ["q_proj", "lm_head"]}}


@pytest.fixture(scope="session")
def models(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny models, random and fp32, one an architecture."""
    import transformers

    folders = {}
    for name, (kind, extra) in MODELS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**SIZES, **extra))
        if name == "bias":
            torch.nn.init.normal_(model.lm_head.bias)
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
    return folders


def with_adapters_that_do_something(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def gradients(tree: dict, cases: list[tuple[str, str, str]], folders: dict[str, str]) -> list:
    """For each case (model, lora, preset): loss and gradient of the engine's step 0, and of the definition."""
    import bft_ray.train.engine as engine_module
    from bft_ray.data.dataset import prepare
    from bft_ray.data.pack import collate
    from bft_ray.loss import combine, loss_sums
    from bft_ray.model.causal_lm import load_model, load_tokenizer
    from bft_ray.train.loop import Data, make_plan, share_of
    from bft_ray.train.step import train_step

    engine_module._adamw = lambda model, *_: torch.optim.SGD(model.parameters(), lr=RATE)
    results = []
    for name, lora, preset in cases:
        config = make_config(
            tree
            | {
                "model": tree["model"] | {"path": folders[name], "attention": "eager"},
                "lora": LORAS[lora],
                "deepspeed": {"preset": preset},
                "optimizer": {"max_grad_norm": None},
            }
        )
        # under ZeRO-3 weights are partitioned as they load, so both sides start with plain adapters (B is 0)
        change = with_adapters_that_do_something if preset != "zero3" else lambda model: model
        engine_module.load_model = lambda *args, change=change: change(load_model(*args))
        # the words of the tiny model: beside a `config.json` of Qwen2 they would be read by Qwen2's rules, to no token
        tokenizer = load_tokenizer(config.model.model_copy(update={"path": tree["model"]["path"]}))
        data = Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)
        plan, _ = make_plan(config, data.train)

        model = change(load_model(config.model, config.lora, config.seed))
        micro = collate(data.train, plan.batch(0).tolist(), packing=False, pad_id=0)
        lengths = torch.from_numpy(data.train.lengths[plan.batch(0)])
        mask = torch.arange(micro.input_ids.shape[1]) < lengths[:, None]
        logits = model(input_ids=micro.input_ids, attention_mask=mask.long(), use_cache=False).logits
        sums = loss_sums(logits, *laid_out(micro), micro.num_samples, config.loss)
        expected_loss = combine(sums.loss_sum, sums.weight_sum, sums.num_samples, sums.num_tokens, config.loss)
        expected_loss.backward()
        expected_loss = float(expected_loss.detach())
        expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

        engine = engine_module.Engine(config, torch.device("cpu"))
        before = engine.weights()
        share = share_of(engine, config, data, plan.batch(0))
        metrics = train_step(engine, share, config.loss, step=0, learning_rate=RATE, seed=0)
        after = engine.weights()
        if engine.rank == 0:
            assert before.keys() == expected.keys()
            made = np.concatenate([((before[n] - after[n]) / RATE).flatten().numpy() for n in expected])
            wanted = np.concatenate([g.flatten().numpy() for g in expected.values()])
            results.append((metrics["train/loss"], expected_loss, made, wanted))
        engine.close()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_head_agrees_with_the_definition(make_tree, models, world_size):
    cases = list(itertools.product(MODELS, LORAS, ["zero0" if world_size == 1 else "zero3"]))
    cases += [(next(iter(MODELS)), lora, "zero2") for lora in LORAS if world_size > 1]
    tree = make_tree(loss={"method": "bft_inverse", "window": 8})
    folders = {name: str(folder) for name, folder in models.items()}
    results = run_ranks(gradients, world_size, tree, cases, folders, fresh=True)[0]
    for case, (loss, expected_loss, made, wanted) in zip(cases, results, strict=True):
        assert abs(loss - expected_loss) <= 1e-5 * abs(expected_loss), case
        assert np.abs(wanted).max() > 1e-4, case
        assert np.abs(made - wanted).max() <= 2e-5 * np.abs(wanted).max(), case


def test_a_head_that_is_not_known_is_refused(models):
    from transformers import AutoModelForCausalLM

    from bft_ray.model.halves import check_halves

    model = AutoModelForCausalLM.from_pretrained(models["scaled"])
    check_halves(model, "cpu")
    plain = model.forward

    def shifted(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits.roll(1, -1)
        return output

    model.forward = shifted
    with pytest.raises(BadInput, match=r"`model.path` is 'GraniteForCausalLM'.*logits that are its head's output"):
        check_halves(model, "cpu")
    model.forward = plain
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    with pytest.raises(
        BadInput, match=r"`model.path` is 'GraniteForCausalLM'.*a model whose logits are finite. Its weights hold NaN"
    ):
        check_halves(model, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_in_compiled_and_in_checkpointed_models(models, backend):
    """The same loss and gradient inside `torch.compile`, and where the whole forward pass is recomputed."""
    from torch.utils.checkpoint import checkpoint
    from transformers import AutoModelForCausalLM

    from bft_ray.config import LossConfig
    from bft_ray.data.pack import collate
    from bft_ray.train.loss_model import LossModel

    class Rows:
        ids = ("a", "b")

        def tokens(self, i):
            return np.arange(3, 13 + 4 * i)

        def labels(self, i):
            return np.where(np.arange(10 + 4 * i) < 3, -100, self.tokens(i))

    model = AutoModelForCausalLM.from_pretrained(models["untied"])
    wrapped, micro = LossModel(model), collate(Rows(), [0, 1], packing=True, pad_id=0)
    config = LossConfig(method="bft_inverse", window=4)

    def run(forward) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = forward(micro, config).loss_sum
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters()])

    loss, gradient = run(wrapped)
    torch._dynamo.reset()
    forms = [
        torch.compile(wrapped, backend=backend),
        lambda *arguments: checkpoint(wrapped, *arguments, use_reentrant=False),
    ]
    for form in forms:
        other, its = run(form)
        assert other == pytest.approx(loss, rel=1e-6)
        assert (its - gradient).abs().max() <= 1e-5 * gradient.abs().max()
