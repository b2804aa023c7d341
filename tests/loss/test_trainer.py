"""The loss in transformers' Trainer: however a step is cut up, it is the step of the one whole batch."""

from __future__ import annotations

import copy
import functools
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from bft_ray.errors import BadInput
from bft_ray.loss import CountSamplesMixin, LossConfig, bft_loss, compute_loss_func

transformers = pytest.importorskip("transformers")
from transformers import Trainer  # noqa: E402

#: Supervised tokens of the 8 samples, of 16 positions each, of the one step; two samples have none.
NUM_SUPERVISED = (15, 1, 0, 9, 4, 0, 12, 7)
LEARNING_RATE = 0.1

CONFIGS = {
    "bft": LossConfig(method="bft", window=4),
    "bft_inverse": LossConfig(method="bft_inverse", window=4, weight_cap=None),
    "bft_inverse, token aggregate": LossConfig(method="bft_inverse", window=4, aggregate="token"),
    "sft": LossConfig(method="sft"),
}


class BftTrainer(CountSamplesMixin, Trainer):
    pass


@functools.cache
def _model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=128,
        )
    )
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # sure of something
    return model.double()  # so that what differs is a difference and no rounding


def make_model() -> torch.nn.Module:
    return copy.deepcopy(_model())


@functools.cache
def _rows() -> list[dict]:
    """Half of the samples have for labels what the model expects, so that confidences and weights differ."""
    torch.manual_seed(0)
    input_ids = torch.randint(64, (8, 16))
    labels = torch.randint(64, (8, 16))
    with torch.no_grad():
        labels[::2, 1:] = _model()(input_ids).logits[::2, :-1].argmax(-1)
    for row, n in enumerate(NUM_SUPERVISED):
        labels[row, : 16 - n] = -100
    return [{"input_ids": i, "labels": label} for i, label in zip(input_ids, labels, strict=True)]


def make_rows() -> list[dict]:
    return copy.deepcopy(_rows())


def sgd_step(model: torch.nn.Module) -> None:
    torch.optim.SGD(model.parameters(), LEARNING_RATE).step()


def whole_step(config: LossConfig, max_grad_norm: float = 0.0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of the whole batch, and the parameters after one step of SGD, without any trainer."""
    model, rows = make_model(), make_rows()
    inputs, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    result = bft_loss(model(inputs).logits, labels, config)
    result.loss.backward()
    if max_grad_norm:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        assert norm > 2 * max_grad_norm  # clipping acts
    if config.sample_weight != "none":
        weights = result.sample_weight[result.sample_weight.isfinite()]
        assert weights.max() > 1.05 * weights.min()
    sgd_step(model)
    return result.loss.item(), dict(model.named_parameters())


def make_trainer(folder, config, micro_batch, accumulation, cls=BftTrainer, rows=None, **arguments):
    arguments = {"max_steps": 1, "max_grad_norm": 0.0} | arguments
    return cls(
        model=make_model(),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=accumulation,
            learning_rate=LEARNING_RATE,
            optim="sgd",
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **arguments,
        ),
        train_dataset=rows or make_rows(),
        compute_loss_func=compute_loss_func(config),
    )


def logged_loss(trainer) -> float:
    return next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def assert_same_step(trainer, config: LossConfig) -> None:
    """Parameters and logged loss are those of the whole batch."""
    loss, expected = whole_step(config, trainer.args.max_grad_norm)
    before = dict(make_model().named_parameters())
    trained = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    moved = max((expected[name] - before[name]).abs().max() for name in before)
    wrong = max((expected[name] - trained[name]).abs().max() for name in before)
    assert moved > 1e-4
    assert wrong <= 1e-6 * moved
    assert logged_loss(trainer) == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("micro_batch, accumulation", [(8, 1), (4, 2), (2, 4)])
def test_accumulation_gives_the_step_of_the_whole_batch(tmp_path, name, micro_batch, accumulation):
    trainer = make_trainer(tmp_path, CONFIGS[name], micro_batch, accumulation)
    trainer.train()
    assert_same_step(trainer, CONFIGS[name])


@pytest.mark.parametrize("name", ["bft", "bft_inverse"])
def test_gradients_are_normalised_before_they_are_clipped(tmp_path, name):
    trainer = make_trainer(tmp_path, CONFIGS[name], 2, 4, max_grad_norm=0.05)
    trainer.train()
    assert_same_step(trainer, CONFIGS[name])


def test_several_steps_and_a_shorter_last_one(tmp_path):
    """Two epochs of 8 rows by 3 micro-batches of 2: steps of 6 and 2 rows, each normalised by itself."""
    config = CONFIGS["bft_inverse"]
    trainer = make_trainer(tmp_path, config, 2, 3, max_steps=-1, num_train_epochs=2, max_grad_norm=0.05)
    seen: list[list[dict]] = []
    original = trainer.get_batch_samples

    def record(*args, **kwargs):
        batches, num_items = original(*args, **kwargs)
        seen.append([{name: value.clone() for name, value in batch.items()} for batch in batches])
        return batches, num_items

    trainer.get_batch_samples = record
    trainer.train()
    assert [len(batches) for batches in seen] == [3, 1, 3, 1]
    model = make_model()
    losses = []
    for batches in seen:
        inputs, labels = (torch.cat([batch[name] for batch in batches]) for name in ("input_ids", "labels"))
        model.zero_grad()
        loss = bft_loss(model(inputs).logits, labels, config).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        sgd_step(model)
        losses.append(loss.item())
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, rel=1e-6)
    trained = dict(trainer.model.named_parameters())
    for name, expected in model.named_parameters():
        assert (trained[name] - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("first_labels", ["masked", "left in"])
def test_packed_rows_are_told_apart_by_their_positions(tmp_path, first_labels):
    config = CONFIGS["bft_inverse"]
    rows = [{name: value.tolist() for name, value in row.items()} for row in make_rows()]
    flatten = transformers.DataCollatorWithFlattening()

    def collate(features: list[dict]) -> dict:
        batch = flatten(features)
        if first_labels == "left in":  # not every collator masks them
            begins = batch["position_ids"] == 0
            batch["labels"][begins] = batch["input_ids"][begins]
        return batch

    trainer = make_trainer(tmp_path, config, 4, 2, rows=rows)
    trainer.data_collator = collate
    trainer.train()
    assert_same_step(trainer, config)


def test_a_step_without_any_supervised_token_moves_nothing(tmp_path):
    rows = make_rows()
    for row in rows:
        row["labels"][:] = -100
    trainer = make_trainer(tmp_path, CONFIGS["bft_inverse"], 2, 4, rows=rows)
    trainer.train()
    assert logged_loss(trainer) == 0.0
    before = dict(make_model().named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_evaluation_gives_the_loss_of_the_batch(tmp_path):
    config = CONFIGS["bft"]
    trainer = make_trainer(tmp_path, config, 2, 4, per_device_eval_batch_size=8)
    before = whole_step(config)[0]
    assert trainer.evaluate(make_rows())["eval_loss"] == pytest.approx(before, rel=1e-6)
    trainer.train()  # its counts are none of the evaluation's business
    rows = make_rows()[:3]
    inputs, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    with torch.no_grad():
        after = bft_loss(trainer.model(inputs).logits, labels, config).loss.item()
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(after, rel=1e-6)


# ---- without the mixin ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_plain_trainer_is_right_where_the_batch_is_the_step(tmp_path, name):
    trainer = make_trainer(tmp_path, CONFIGS[name], 8, 1, cls=Trainer)
    trainer.train()
    assert_same_step(trainer, CONFIGS[name])


def test_a_plain_trainer_is_right_for_sft_under_accumulation(tmp_path):
    trainer = make_trainer(tmp_path, CONFIGS["sft"], 2, 4, cls=Trainer)
    trainer.train()
    assert_same_step(trainer, CONFIGS["sft"])


@pytest.mark.parametrize(
    "name, field",
    [("bft", "aggregate"), ("bft_inverse", "normalise"), ("bft_inverse, token aggregate", "normalise")],
)
def test_a_plain_trainer_refuses_what_it_cannot_know(tmp_path, name, field):
    trainer = make_trainer(tmp_path, CONFIGS[name], 2, 4, cls=Trainer)
    with pytest.raises(BadInput, match="Mix `CountSamplesMixin` into the trainer") as error:
        trainer.train()
    assert error.value.field == f"loss.{field}"
    before = dict(make_model().named_parameters())
    assert all(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_the_mixin_refuses_another_loss_function(tmp_path):
    with pytest.raises(BadInput, match="Pass compute_loss_func=bft_ray"):
        BftTrainer(
            model=make_model(),
            args=transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none"),
            compute_loss_func=lambda outputs, labels, num_items_in_batch=None: outputs.logits.sum(),
        )


def test_the_mixin_refuses_batches_without_labels(tmp_path):
    rows = [{"input_ids": row["input_ids"]} for row in make_rows()]
    with pytest.raises(BadInput, match="`labels` is None"):
        make_trainer(tmp_path, CONFIGS["bft"], 2, 4, rows=rows).train()


def test_the_mixin_refuses_label_smoothing_that_a_trainer_would_leave_out(tmp_path):
    with pytest.raises(BadInput, match=r"label_smoothing_factor` is 0\.1"):
        make_trainer(tmp_path, CONFIGS["bft"], 8, 1, label_smoothing_factor=0.1)


@pytest.mark.parametrize("given", [{"return_flash_attn_kwargs": True}, {"return_seq_idx": True}])
def test_packed_rows_without_positions_are_refused(tmp_path, given):
    rows = [{name: value.tolist() for name, value in row.items()} for row in make_rows()]
    trainer = make_trainer(tmp_path, CONFIGS["bft"], 4, 2, rows=rows)
    trainer.data_collator = transformers.DataCollatorWithFlattening(return_position_ids=False, **given)
    with pytest.raises(BadInput, match="`position_ids` is None"):
        trainer.train()


@pytest.mark.parametrize("method, is_refused", [("bft", True), ("bft_group", True), ("sft", False), ("dft", False)])
def test_rows_that_trl_wraps_are_refused_where_the_loss_is_by_sample(tmp_path, method, is_refused):
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    arguments.packing, arguments.packing_strategy = True, "wrapped"  # as TRL's SFTConfig has them
    given = {
        "model": make_model(),
        "args": arguments,
        "compute_loss_func": compute_loss_func(LossConfig(method=method)),
    }
    if not is_refused:
        assert BftTrainer(**given)
        return
    with pytest.raises(BadInput, match="`packing_strategy` is 'wrapped', but must be bfd"):
        BftTrainer(**given)


_SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def _t5() -> torch.nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)
    )


def test_the_mixin_refuses_an_encoder_with_a_decoder(tmp_path):
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(BadInput, match="`model` is 'T5ForConditionalGeneration', but must be of a causal"):
        BftTrainer(model=_t5(), args=arguments, compute_loss_func=compute_loss_func(CONFIGS["bft"]))


@pytest.mark.parametrize(
    "make",
    [
        _t5,
        lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_SMALL)),
        lambda: transformers.LlamaForTokenClassification(transformers.LlamaConfig(**_SMALL, num_labels=64)),
    ],
    ids=["encoder-decoder", "masked", "tokens"],
)
def test_logits_that_are_not_of_the_next_token_are_refused(make):
    """Their labels would be shifted, without a word."""
    ids = torch.stack([row["input_ids"] for row in make_rows()])
    model = make()
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    outputs = model(input_ids=ids, **given)
    with pytest.raises(BadInput, match="of a causal language model, whose logits are of the next token"):
        compute_loss_func(CONFIGS["sft"])(outputs, ids)


def test_what_is_no_config_is_refused():
    with pytest.raises(BadInput, match="`config` is 'dict', but must be a LossConfig"):
        compute_loss_func({"method": "bft"})


# ---- several ranks -------------------------------------------------------------------------------------


def _rank(rank: int, folder: str, port: int) -> None:
    """One of two ranks: one step for each setting, compared with that of the whole batch."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    passed = []
    for name, micro_batch in (("bft", 1), ("sft", 1), ("bft_inverse", 1), ("bft_inverse", 4)):
        trainer = make_trainer(folder, CONFIGS[name], micro_batch, 4 // micro_batch)
        trainer.train()
        assert trainer.accelerator.num_processes == 2
        if rank == 0:
            assert_same_step(trainer, CONFIGS[name])
            passed.append([name, micro_batch])
    uncounted = make_trainer(folder, CONFIGS["bft"], 2, 2, average_tokens_across_devices=False)
    uncounted.train()
    sft = make_trainer(folder, CONFIGS["sft"], 2, 2, cls=Trainer)
    sft.train()
    with pytest.raises(BadInput, match="CountSamplesMixin"):
        make_trainer(folder, CONFIGS["bft"], 4, 1, cls=Trainer).train()
    if rank == 0:
        assert_same_step(uncounted, CONFIGS["bft"])
        assert_same_step(sft, CONFIGS["sft"])
        Path(folder, "passed.json").write_text(json.dumps(passed))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over loopback is tested on Unix")
def test_two_ranks_give_the_step_of_the_whole_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path), port), nprocs=2)
    passed = json.loads((tmp_path / "passed.json").read_text())
    assert len(passed) == 4
