"""Micro-batches: what stands where, and that a packed neighbour changes nothing for the model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bft_ray.config import DataConfig, SourceConfig
from bft_ray.data.dataset import prepare
from bft_ray.data.pack import collate
from tests.support.laid import laid_out
from tests.support.tiny_tokenizer import tiny_tokenizer

PAD = 0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    rows = [{"id": f"r{i}", "prompt": "gene?", "completion": "protein binds " * (i + 1)} for i in range(6)]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train=[SourceConfig(path=str(folder / "r.jsonl"))], cache_dir=str(folder / "cache"))
    return prepare(config.train, tiny_tokenizer(), config)


def test_packed(dataset):
    batch = collate(dataset, [4, 1], packing=True, pad_id=PAD)
    long, short = int(dataset.lengths[4]), int(dataset.lengths[1])
    assert batch.input_ids.tolist() == [dataset.tokens(4).tolist() + dataset.tokens(1).tolist()]
    labels, sample = laid_out(batch)
    assert labels.tolist() == [dataset.labels(4).tolist() + dataset.labels(1).tolist()]
    assert labels[0, 0] == labels[0, long] == -100  # nothing predicts across the border
    assert batch.position_ids.tolist() == [[*range(long), *range(short)]]
    assert sample[labels != -100].tolist() == [0] * batch.lengths[0] + [1] * batch.lengths[1]
    assert batch.lengths == dataset.num_supervised[[4, 1]].tolist()
    assert (batch.sample_ids, batch.num_samples) == (["r4", "r1"], 2)
    assert all(
        t.dtype == torch.int64
        for t in (batch.input_ids, batch.position_ids, batch.position, batch.sample, batch.target)
    )


def test_padded(dataset):
    batch = collate(dataset, [4, 1], packing=False, pad_id=PAD)
    long, short = int(dataset.lengths[4]), int(dataset.lengths[1])
    rest = long - short
    assert batch.input_ids.tolist() == [dataset.tokens(4).tolist(), dataset.tokens(1).tolist() + [PAD] * rest]
    labels, sample = laid_out(batch)
    assert labels.tolist() == [dataset.labels(4).tolist(), dataset.labels(1).tolist() + [-100] * rest]
    assert [row[row >= 0].unique().tolist() for row in sample] == [[0], [1]]
    assert batch.position_ids is None


@pytest.mark.parametrize("packing", [True, False])
def test_stand_in_of_an_empty_micro_batch(dataset, packing):
    batch = collate(dataset, [], packing, PAD)
    assert (batch.num_samples, batch.sample_ids) == (0, [])
    assert batch.position.tolist() == batch.sample.tolist() == batch.target.tolist() == batch.lengths == []
    assert batch.input_ids.shape == (1, 2)
    assert torch.isfinite(logits_of(tiny_llama("eager"), batch)).all()


def test_to_moves_every_tensor(dataset):
    batch = collate(dataset, [0, 1], packing=True, pad_id=PAD).to("meta")
    tensors = (batch.input_ids, batch.position_ids, batch.position, batch.sample, batch.target)
    assert all(tensor is not None and tensor.device.type == "meta" for tensor in tensors)
    assert batch.sample_ids == ["r0", "r1"]


def tiny_llama(attention: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # large enough that attention matters
    )
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    return model


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, batch) -> torch.Tensor:
    return model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        use_cache=False,
    ).logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_neighbour_changes_nothing(dataset, attention):
    model = tiny_llama(attention)

    def logits_of_sample_2(indices: list[int], packing: bool) -> torch.Tensor:
        batch = collate(dataset, indices, packing, pad_id=7)  # a token like any other: it must not be seen
        logits, number, length = logits_of(model, batch), indices.index(2), int(dataset.lengths[2])
        start = int(dataset.lengths[indices[:number]].sum())
        return logits[0, start : start + length] if packing else logits[number, :length]

    alone = logits_of_sample_2([2], packing=True)
    for neighbours in ([2, 5], [5, 2], [0, 2, 4], [3, 1, 2]):
        for packing in (True, False):
            found = logits_of_sample_2(neighbours, packing)
            assert (found - alone).abs().max() <= 1e-5 * alone.abs().max(), (neighbours, packing)
    # the test can fail: without positions that restart, neighbours do leak
    batch = collate(dataset, [5, 2], packing=True, pad_id=PAD)
    running = torch.arange(batch.input_ids.shape[1])[None]
    with torch.no_grad():
        leaking = model(input_ids=batch.input_ids, position_ids=running, use_cache=False).logits
    assert (leaking[0, int(dataset.lengths[5]) :] - alone).abs().max() > 1e-2 * alone.abs().max()
