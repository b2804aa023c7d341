"""Which architectures of transformers may be packed: each causal LM, made tiny, packed and padded against alone.

    python -m jobs.check_packing [--only NAME ...] [--limit SECONDS] [--out docs/packing.md]

Weights are random and sharpened (times 4: attention at random weights is all but uniform, and hides what leaks), fp32,
on CPU. Per architecture: the largest relative difference of a sample's loss, and of the gradient of all parameters,
between samples in one row and each alone; the same for padding; and what bft-ray does on a GPU where `data.packing` is
null. Fails where bft-ray would pack what differs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.model.halves import check_halves
from bft_ray.model.layouts import measure_layouts
from bft_ray.model.packing import choose_rows

LIMIT = 1e-5  # of packed against alone, in loss and gradient
SHARP = 4.0
LARGEST = 30_000_000  # parameters of what counts as tiny
VOCABULARY = 320
SAMPLES = (11, 7, 19)  # tokens

#: what makes a model tiny, wherever its config has such a field
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim", "attention_hidden_size")
_INNER = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff", "moe_intermediate_size",
          "shared_expert_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size", "n_inner", "d_inner",
          "moe_shared_expert_intermediate_size", "intermediate_size_mlp", "shared_intermediate_size")  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads", "num_heads")
_PAIRS = {
    "num_key_value_heads": 2, "head_dim": 16, "global_head_dim": 16, "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_k": 2, "moe_topk": 2, "top_k_experts": 2, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1, "first_k_dense_replace": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "qk_head_dim": 16, "v_head_dim": 16,
    "max_position_embeddings": 256, "n_positions": 256, "n_ctx": 256, "seq_length": 256, "max_seq_len": 256,
    "context_length": 256, "sliding_window": 16, "attention_chunk_size": 8, "rotary_dim": 8, "state_size": 8,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_num_heads": 8, "mamba_d_head": 16, "mamba_head_dim": 16,
    "mamba_expand": 2, "mamba_n_groups": 1, "n_groups": 1, "mamba_d_ssm": 128, "time_step_rank": 4,
    "mamba_dt_rank": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "lru_width": 64, "hidden_size_per_layer_input": 8, "attention_window_size": 16,
    "num_mem_blocks": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1, "index_n_heads": 4, "index_head_dim": 16, "index_topk": 64, "num_kv_shared_layers": 0,
    "laurel_rank": 8, "altup_num_inputs": 2, "conv_L_cache": 3, "zero_expert_num": 1, "num_memory_heads": 2,
    "qk_dim": 16, "v_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "sep_token_id": 3, "decoder_start_token_id": 1, "is_decoder": True, "use_cache": False, "num_nextn_predict_layers": 0,
}  # fmt: skip
_ZERO = ("dropout", "pdrop", "layerdrop", "droprate")
#: what some want besides
_OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "expand": 2},
    "falcon": {"alibi": False, "multi_query": True, "new_decoder_architecture": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "reformer": {"axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32], "attn_layers": ["local", "local"]},
    "xlnet": {"n_layer": 2},
    "ctrl": {"dff": 64},
}


def tiny_config(kind: str) -> Any:
    """The config of an architecture with small sizes."""
    cls = CONFIG_MAPPING[kind]
    default = cls()
    if default.get_text_config() is not default:
        raise ValueError("text and more; its text model stands for it")

    def has(name: str, type_: type = object) -> bool:
        try:
            value = getattr(default, name, None)
        except AttributeError:  # differs by layer
            return False
        return value is not None and isinstance(value, type_) and not isinstance(getattr(cls, name, None), property)

    changes: dict[str, Any] = {}
    for names, value in ((_LAYERS, 4), (_WIDTHS, 64), (_INNER, 96), (_HEADS, 4)):
        changes |= {name: value for name in names if has(name, int)}
    changes |= {name: value for name, value in _PAIRS.items() if has(name)}
    unset = {name for name in ("head_dim", "num_experts_per_tok", "num_key_value_heads") if name in vars(default)}
    changes |= {name: _PAIRS[name] for name in unset if getattr(default, name, None) is None}
    if has("qk_rope_head_dim") and "head_dim" in changes:
        changes["head_dim"] = changes["qk_rope_head_dim"]
    if has("kv_lora_rank") and "num_key_value_heads" in changes:  # latent attention has a key for every head
        changes["num_key_value_heads"] = 4
    changes |= {
        name: 0.0
        for name, value in vars(default).items()
        if isinstance(value, float) and any(part in name for part in _ZERO)
    }
    if has("layer_types", list) and not hasattr(cls, "layers_block_type"):
        each = list(dict.fromkeys(default.layer_types))  # one of each kind of layer
        changes["layer_types"] = (each * 4)[: max(4, len(each))]
        changes |= {name: len(changes["layer_types"]) for name in _LAYERS if name in changes}
    if has("attn_layer_indices", list):
        changes["attn_layer_indices"] = [1]
    return cls(**(changes | _OWN.get(kind, {})))


def made(kind: str) -> Any:
    """The model with random weights."""
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(SHARP)
    model.config.use_cache = False
    return model


def losses_and_gradient(model: Any, rows: list[tuple[Tensor, Tensor | None, list[tuple[int, int, int]]]]) -> Any:
    """Loss of each sample, and the gradient of their sum over all parameters."""
    model.zero_grad()
    losses = []
    for ids, positions, spans in rows:
        given = {} if positions is None else {"position_ids": positions}
        logits = model(input_ids=ids, use_cache=False, **given).logits
        own = [
            torch.nn.functional.cross_entropy(
                logits[row, first : stop - 1], ids[row, first + 1 : stop], reduction="sum"
            )
            for row, first, stop in spans
        ]
        torch.stack(own).sum().backward()
        losses += own
    return torch.stack(losses).detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def differences(model: Any) -> dict[str, Any]:
    """Packed and padded against alone."""
    draw = torch.Generator().manual_seed(1)
    samples = [torch.randint(8, VOCABULARY, (length,), generator=draw) for length in SAMPLES]
    alone = losses_and_gradient(model, [(one[None], None, [(0, 0, len(one))]) for one in samples])
    starts = [sum(SAMPLES[:n]) for n in range(len(SAMPLES))]
    positions = torch.cat([torch.arange(length) for length in SAMPLES])[None]
    spans = [(0, start, start + length) for start, length in zip(starts, SAMPLES, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=0)
    layouts = {
        "packed": (torch.cat(samples)[None], positions, spans),
        "padded": (padded, None, [(row, 0, length) for row, length in enumerate(SAMPLES)]),
    }
    found: dict[str, Any] = {}
    for name, layout in layouts.items():
        try:
            losses, gradient = losses_and_gradient(model, [layout])  # type: ignore[list-item]
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            found |= {f"{name}_loss": math.inf, f"{name}_gradient": math.inf, f"{name}_error": str(error)[:80]}
            continue
        found[f"{name}_loss"] = float(((losses - alone[0]).abs() / alone[0].abs()).max())
        pairs = [(a, b) for a, b in zip(gradient, alone[1], strict=True) if a is not None and b is not None]
        worst = max(float((a - b).abs().max()) for a, b in pairs)
        found[f"{name}_gradient"] = worst / max(float(b.abs().max()) for _, b in pairs)
    return found


def verdict(model: Any) -> str:
    """What bft-ray does with it on a GPU."""
    data = {"train": [{"path": "none"}], "max_length": 64, "micro_batch_tokens": 256}
    config = make_config({"domain": "check", "data": data, "checkpoint": {"export": "last"}})
    try:
        check_halves(model, "cpu")
        return choose_rows(config, measure_layouts(model, "cpu"), model, "cuda").why.partition(":")[0]
    except BadInput as error:
        return f"refused: {error.rule}"
    except Exception as error:  # what the head of a strange architecture may raise is a refusal too
        return f"refused: {type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"


def examine(kind: str) -> dict[str, Any]:
    """The row of one architecture."""
    try:
        model = made(kind)
    except Exception as error:
        return {"made": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:90]}"}
    try:
        found = differences(model)
    except Exception as error:
        return {"made": f"does not run: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:80]}"}
    return found | {"verdict": verdict(model)}


def in_child(kind: str, limit_s: float) -> dict[str, Any]:
    """`examine` in a fork of this process, which is ended when its time is up."""
    fork = multiprocessing.get_context("fork")
    reading, writing = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: writing.send(examine(kind)))
    child.start()
    writing.close()  # so that only the child has it open, and its end is heard
    try:
        return reading.recv() if reading.poll(limit_s) else {"made": f"not within {limit_s:.0f} s"}
    except EOFError:
        return {"made": "the process died"}
    finally:
        child.kill()
        child.join()


def is_wrong(row: dict[str, Any]) -> bool:
    """Whether bft-ray would lay out samples in a way that is not exact."""
    used = row.get("verdict")
    limits = {"packed": LIMIT, "padded": 10 * LIMIT}
    return used in limits and max(row[f"{used}_loss"], row[f"{used}_gradient"]) > limits[used]


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The table as Markdown."""
    ran = {kind: row for kind, row in rows.items() if "verdict" in row}
    counts = Counter(row["verdict"].partition(":")[0] for row in ran.values())
    number = lambda value: "does not run" if not math.isfinite(value) else f"{value:.0e}" if value else "0"  # noqa: E731
    lines = [
        "# Packing, by architecture",
        "",
        f"Made by `python -m jobs.check_packing` with transformers {transformers.__version__} and torch {torch.__version__}:",
        "tiny models with random weights (sharpened, fp32, CPU; sdpa, or eager where transformers has no sdpa, as for bloom and gemma2:",
        "there set `model.attention=eager`, which bft-ray asks for). Each figure is the largest relative difference",
        "from samples that run alone: of a sample's loss, and of the gradient of all parameters. The last column is what",
        "bft-ray does on a GPU with `data.packing: null`; it finds out by itself, on the model at hand, before training.",
        "",
        f"{len(rows)} architectures: "
        + ", ".join(f"{count} {name}" for name, count in counts.most_common())
        + f", {len(rows) - len(ran)} could not be made or run this small.",
        "",
        "| architecture | packed: loss | gradient | padded: loss | gradient | bft-ray |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{kind}` | {number(row['packed_loss'])} | {number(row['packed_gradient'])} | {number(row['padded_loss'])} "
        f"| {number(row['padded_gradient'])} | {row['verdict']} |"
        for kind, row in ran.items()
    ]
    lines += ["", "Not made or run here; on the model itself the comparison is made all the same:", ""]
    lines += [f"- `{kind}`: {row['made']}" for kind, row in rows.items() if "verdict" not in row]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="these architectures (names of transformers' configs)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each")
    parser.add_argument("--out", type=Path, default=Path("docs/packing.md"))
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)  # and none started before the first fork
    rows: dict[str, dict[str, Any]] = {}
    for kind in sorted(args.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        began = time.perf_counter()
        rows[kind] = in_child(kind, args.limit)
        print(f"{kind}: {rows[kind]} ({time.perf_counter() - began:.1f} s)", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(page(rows))
    wrong = [kind for kind, row in rows.items() if is_wrong(row)]
    print(f"not exact and neither padded nor refused: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
