"""Pretrain the bundled starter model from random weights, and write it with its tokenizer and its measured figures.

    python jobs/make_starter_data.py --pretrain-out /tmp/starter_pretrain
    python jobs/pretrain_starter.py --starter-facts /tmp/starter_pretrain --work /tmp/starter_work --compile

What it sees: the `pretrain` splits of the data folder, general text, and the share of the starter facts that no
starter row repeats. Each document is shown in one of two forms, drawn anew every epoch: "prompt, newline, completion",
or the chat template, so that the model can be fine-tuned in either.

The step is a pure function of (seed, k): batch k is cut from one endless stream of tokens, which is made epoch by
epoch. So `--resume` continues an interrupted run as if nothing had happened. The learning rate is flat up to
`--decay-from` (default: half of `--steps`) and then falls in a line to zero at `--steps`; a run may be resumed with
another end.

On a shared machine set `OMP_WAIT_POLICY=passive`: threads that wait by spinning take the time that they wait for.

The figure that counts is *bits per byte*: the negative log-likelihood of all tokens of a text, in bits, given a start
token, over its UTF-8 bytes; pooled over the validation rows of four biomedical folders (prompt, newline, completion).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AttentionInterface,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

FOLDERS = ("medical_qa", "gene_interaction", "biological_process", "cell_type")  # those of the bits per byte
# How often a source's documents come in one epoch. Below 1: that share of them, drawn anew every epoch.
SOURCES = {
    "medical_qa": 1.0,
    "gene_interaction": 1.0,
    "biological_process": 1.0,
    "cell_type": 1.0,
    "math": 0.5,
    "general": 0.7,
    "starter": 1.0,
}
BOS, EOS, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
MAX_POSITIONS = 2048
NUM_STEP_TOKENS = 8192
SEED = 20260101
# `generation` marks what the assistant says, its end token included: that is what a loss is taken on.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# A word with the space before it, up to two digits, a run of other signs, line ends.
WORD_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def main() -> None:
    """Make the tokenizer, train, report, and bundle the model."""
    parser = argparse.ArgumentParser(description="pretrain the starter model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the pretrain splits")
    parser.add_argument("--starter-facts", type=Path, required=True, help="what make_starter_data --pretrain-out wrote")
    parser.add_argument("--out", type=Path, default=Path("bft_ray/model/starter"), help="folder of the bundled model")
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints")
    parser.add_argument("--steps", type=int, default=1600, help="steps of 8,192 tokens")
    parser.add_argument(
        "--decay-from",
        type=int,
        default=None,
        help="step from which the learning rate falls and rows grow longer; default: half of --steps",
    )
    parser.add_argument(
        "--stop-after", type=int, default=None, help="stop after this step, with the schedule of --steps"
    )
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="for the hidden matrices")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate of the hidden matrices")
    parser.add_argument("--embedding-lr", type=float, default=3e-3, help="peak learning rate of embeddings and norms")
    parser.add_argument("--compile", action="store_true", help="torch.compile; needs a C++ compiler")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --work")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--earlier", type=int, nargs="*", default=[], help="steps whose model is kept as well, as --work/step-N"
    )
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure --out on the validation text, write figures"
    )
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    documents = read_documents(args.data, args.starter_facts)
    if args.evaluate_only:
        measure_bundle(args.out, args.data, documents)
        return
    for source, docs in documents.items():
        print(f"{source}: {len(docs)} documents, {sum(num_bytes(d) for d in docs):,} bytes", flush=True)
    tokenizer_path = args.work / "tokenizer"
    if not (args.resume and tokenizer_path.is_dir()):
        make_tokenizer([text for docs in documents.values() for doc in docs for text in doc]).save_pretrained(
            tokenizer_path
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_path)
    train(tokenizer, documents, args)
    if args.stop_after is None:
        measure_bundle(args.out, args.data, documents)


# --- text ----------------------------------------------------------------------------


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def read_documents(data: Path, starter_facts: Path) -> dict[str, list[tuple[str, str]]]:
    """The pretraining documents by source, as (prompt, completion); a plain text has an empty prompt."""
    documents = {}
    for source in (*FOLDERS, "math"):
        documents[source] = [(row["prompt"], row["completion"]) for row in read_jsonl(data / source / "pretrain.jsonl")]
    documents["general"] = [("", row["text"]) for row in read_jsonl(data / "general" / "text_pretrain.jsonl")]
    documents["starter"] = [
        (row["prompt"], row["completion"]) for path in sorted(starter_facts.glob("*.jsonl")) for row in read_jsonl(path)
    ]
    return documents


def num_bytes(document: tuple[str, str]) -> int:
    """UTF-8 bytes of a document."""
    return len(document[0].encode()) + len(document[1].encode())


def plain(document: tuple[str, str]) -> str:
    """A document as one text: prompt, newline, completion."""
    return f"{document[0]}\n{document[1]}" if document[0] else document[1]


def make_tokenizer(texts: list[str], size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of `size` entries on `texts`, with role tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES)]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        extra_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def encode_forms(tokenizer: PreTrainedTokenizerFast, documents: list[tuple[str, str]]) -> list[tuple[np.ndarray, ...]]:
    """The tokens of every document in each of its forms: plain and chat (a plain text has one form)."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    user, assistant = (tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ("user", "assistant"))

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    forms = []
    whole = encode([plain(doc) for doc in documents])
    prompts, completions = encode([doc[0] for doc in documents]), encode([doc[1] for doc in documents])
    for document, text, prompt, completion in zip(documents, whole, prompts, completions, strict=True):
        variants = [np.array([bos, *text, eos], dtype=np.uint16)]
        if document[0]:
            chat = [bos, user, *prompt, eos, assistant, *completion, eos]
            variants.append(np.array(chat, dtype=np.uint16))
        forms.append(tuple(variants))
    return forms


def token_stream(forms: dict[str, list[tuple[np.ndarray, ...]]]) -> Iterator[np.ndarray]:
    """Epoch after epoch of all tokens: documents in an order, a form and a selection drawn from (seed, epoch)."""
    epoch = 0
    while True:
        rng = random.Random(f"{SEED}-{epoch}")
        chosen = []
        for source, docs in forms.items():
            chosen += rng.sample(docs, round(len(docs) * SOURCES[source]))
        rng.shuffle(chosen)
        yield np.concatenate([rng.choice(variants) for variants in chosen])
        epoch += 1


class Batches:
    """Batch k of the stream: `NUM_STEP_TOKENS` + 1 tokens, folded to rows of the step's length."""

    def __init__(self, forms: dict[str, list[tuple[np.ndarray, ...]]]) -> None:
        self.stream = token_stream(forms)
        self.buffer = np.zeros(0, dtype=np.uint16)
        self.start = 0  # position in the stream of the buffer's first token

    def get(self, step: int, length: int) -> torch.Tensor:
        """The tokens of `step` [rows, length + 1]; neighbouring rows share one token. Steps must not go back."""
        begin = step * NUM_STEP_TOKENS
        while self.start + len(self.buffer) < begin + NUM_STEP_TOKENS + 1:
            skip = min(max(begin - self.start, 0), len(self.buffer))
            self.buffer, self.start = (
                np.concatenate([self.buffer[skip:], next(self.stream)]),
                self.start + skip,
            )
        offset = begin - self.start
        flat = torch.from_numpy(self.buffer[offset : offset + NUM_STEP_TOKENS + 1].astype(np.int64))
        return flat.unfold(0, length + 1, length)


# --- training ----------------------------------------------------------------------------


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 3.9 M parameters with random weights: narrow and deep, the embedding tied, so that 8 MB hold it."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.02,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("plain")
    return model


def make_optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon (or AdamW) for the matrices of the layers, AdamW for embeddings and norms."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    rest = torch.optim.AdamW(others, lr=args.embedding_lr, betas=(0.9, 0.95), weight_decay=0.0)
    if args.optimizer == "adamw":
        return [torch.optim.AdamW(hidden, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1), rest]
    # match_rms_adamw: an update is as long as AdamW's, so the learning rates mean the same.
    return [
        torch.optim.Muon(hidden, lr=args.lr, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        rest,
    ]


def lr_scale(step: int, steps: int, decay_from: int, warmup: int = 50) -> float:
    """Linear warm-up, flat up to `decay_from`, then a line to 1 % of the peak at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * min(1.0, (steps - step) / (steps - decay_from))


def length_at(step: int, decay_from: int) -> int:
    """Positions of a row: 512, from `decay_from` 1,024 and every eighth step 2,048, so that long texts are known."""
    if step < decay_from:
        return 512
    return 2048 if step % 8 == 7 else 1024


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Causal softmax(q k^T * scaling) v [B, heads, T, D]; on a CPU the fused kernel's backward is slower."""
    batch, heads, length, width = query.shape
    future = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    scores = torch.bmm((query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2)) + future
    mixed = torch.bmm(scores.softmax(-1).to(value.dtype), value.flatten(0, 1))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register("plain", plain_attention)


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of rows [B, T + 1], each token but the first."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def train(tokenizer: PreTrainedTokenizerFast, documents: dict, args: argparse.Namespace) -> None:
    """Run the steps, save every `--save-every`, bundle what is saved."""
    forms = {source: encode_forms(tokenizer, docs) for source, docs in documents.items()}
    lengths = {source: sum(len(doc[0]) for doc in docs) for source, docs in forms.items()}
    print(
        f"tokens by source: {lengths}; {args.steps} steps of {NUM_STEP_TOKENS} tokens = "
        f"{args.steps * NUM_STEP_TOKENS / sum(lengths[s] * SOURCES[s] for s in lengths):.2f} epochs",
        flush=True,
    )
    batches, model = Batches(forms), make_model(tokenizer)
    optimizers = make_optimizers(model, args)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    start, spent_s = 0, 0.0
    decay_from = args.steps // 2 if args.decay_from is None else args.decay_from
    checkpoint = args.work / "checkpoint.pt"
    if args.resume and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        start, spent_s = saved["step"], saved["spent_s"]
    loss_of = torch.compile(next_token_loss, dynamic=False) if args.compile else next_token_loss
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {start}", flush=True)

    last = time.perf_counter()
    for step in range(start, args.stop_after or args.steps):
        scale = lr_scale(step, args.steps, decay_from)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * scale
        rows = batches.get(step, length_at(step, decay_from))  # [rows, length + 1]
        loss = loss_of(model, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss of step {step} is {loss.item()}")
        if step % 10 == 9:
            now = time.perf_counter()
            spent_s, last = spent_s + now - last, now
            print(f"step {step + 1} loss {loss.item():.4f} {spent_s:.0f} s", flush=True)
        done = step + 1
        if done in args.earlier:
            bundle(model, tokenizer, args.work / f"step-{done}")
        if done % args.save_every == 0 or done == args.steps:
            saved = {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "step": done,
                "spent_s": spent_s,
            }
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
            bundle(model, tokenizer, args.out)
            figures = evaluate(model, tokenizer, args.data, subset=40)
            print(f"step {done} bits per byte on a subset: {figures['bits_per_byte']}", flush=True)
            write_run(args, documents, done, spent_s)
            last = time.perf_counter()


# --- figures and files ----------------------------------------------------------------------------


@torch.inference_mode()
def text_bits(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Bits of all tokens of `texts`, each given a start token; longer than the context: in windows of its length."""
    pad, cases = tokenizer.pad_token_id, []
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids = [tokenizer.bos_token_id, *ids]
        # Each window begins with the last token of the one before, so that every token is scored once.
        cases += [ids[i : i + MAX_POSITIONS + 1] for i in range(0, len(ids) - 1, MAX_POSITIONS)]
    cases.sort(key=len, reverse=True)
    bits = 0.0
    while cases:
        num = max(1, 8192 // len(cases[0]))
        group, cases = cases[:num], cases[num:]
        width = len(group[0])
        rows = torch.tensor([case + [pad] * (width - len(case)) for case in group])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        # Padding stands behind the text, where causal attention cannot see it.
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), ignore_index=pad, reduction="sum")
        bits += loss.item() / math.log(2)
    return bits


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, data: Path, subset: int | None) -> dict:
    """Bits per byte on the validation rows of each of the four folders and pooled; `subset`: of so many rows each."""
    bits, sizes = {}, {}
    for folder in FOLDERS:
        texts = [plain((row["prompt"], row["completion"])) for row in read_jsonl(data / folder / "validation.jsonl")]
        texts = texts[:: max(1, len(texts) // subset)] if subset else texts
        bits[folder] = text_bits(model, tokenizer, texts)
        sizes[folder] = sum(len(text.encode()) for text in texts)
    per_byte = {folder: round(bits[folder] / sizes[folder], 4) for folder in FOLDERS}
    per_byte["pooled"] = round(sum(bits.values()) / sum(sizes.values()), 4)
    return {"bits_per_byte": per_byte, "num_bytes": sizes}


def bundle(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write model (bf16 safetensors), tokenizer and generation config to `out`, file by file in one move each."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    copy = LlamaForCausalLM(model.config).bfloat16()
    copy.load_state_dict(model.state_dict())
    copy.config.dtype = torch.bfloat16
    copy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=256,
    )
    copy.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    out.mkdir(parents=True, exist_ok=True)
    for path in fresh.iterdir():
        path.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(path, out / path.name)
    fresh.rmdir()


def write_run(args: argparse.Namespace, documents: dict, step: int, spent_s: float) -> None:
    """Record in pretraining.json how far the run is and what it was made of."""
    sizes = {source: round(sum(num_bytes(doc) for doc in docs) * SOURCES[source]) for source, docs in documents.items()}
    total = sum(sizes.values())
    path = args.out / "pretraining.json"
    record = {
        "steps": step,
        "steps_planned": args.steps,
        "decay_from": args.steps // 2 if args.decay_from is None else args.decay_from,
        "num_step_tokens": NUM_STEP_TOKENS,
        "optimizer": args.optimizer,
        "lr": args.lr,
        "embedding_lr": args.embedding_lr,
        "train_s": round(spent_s),
        "threads": args.threads,
        "torch": torch.__version__,
        "bytes_per_epoch": sizes,
        "share_of_bytes": {source: round(size / total, 4) for source, size in sizes.items()},
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def measure_bundle(out: Path, data: Path, documents: dict) -> None:
    """Add to pretraining.json, which the card refers to, what the bundled weights reach and the model-written share.

    Model-written are the completions of biological_process (GPT-4) and the CASSIA rows of cell_type.
    """
    model = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    figures = evaluate(model, tokenizer, data, subset=None)
    total = sum(sum(num_bytes(doc) for doc in docs) * SOURCES[source] for source, docs in documents.items())
    written = sum(len(doc[1].encode()) for doc in documents["biological_process"])
    written += sum(
        len(row["completion"].encode())
        for row in read_jsonl(data / "cell_type" / "pretrain.jsonl")
        if row["id"].startswith("cassia")
    )
    figures["model_written_share_of_bytes"] = round(written / total, 4)
    path = out / "pretraining.json"
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(record | figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
