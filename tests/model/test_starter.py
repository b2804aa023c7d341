"""The bundled starter data and starter model: what they promise in their cards."""

from __future__ import annotations

import datetime
import filecmp
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from bft_ray.model.causal_lm import resolve_model
from tests.support.paths import ROOT

SHARED = ROOT.parent / "shared" / "data"
DATA = ROOT / "bft_ray" / "data" / "starter"
MODEL = ROOT / "bft_ray" / "model" / "starter"
DOMAINS = ("gene_interaction", "biological_process", "medical_qa")
SPLITS = ("train", "validation", "confirmation", "test")
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does TP53 do?"},
    {"role": "assistant", "content": "It takes part in apoptosis."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "In the nucleus."},
]

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: no facts and no validation text")


def load_job(name: str) -> ModuleType:
    """A script of jobs/ as a module, whether or not jobs is a package."""
    spec = importlib.util.spec_from_file_location(f"starter_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look their module up by name.
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(MODEL)


def test_earlier_checkpoints_know_less():
    """Those of 50, 200 and 1,600 steps have the same tokenizer, and each next one gives bundled answers a higher likelihood."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    losses = []
    for name in ("starter-step50", "starter-step200", "starter"):
        folder = resolve_model(name)
        assert filecmp.cmp(f"{folder}/tokenizer.json", MODEL / "tokenizer.json", shallow=False)
        tokenizer, model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        )
        texts = [f"{row['prompt']}\n{row['completion']}" for row in rows_of(DATA / "medical_qa" / "train.jsonl")[:8]]
        with torch.inference_mode():
            ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
            losses.append(sum(float(model(input_ids=one, labels=one).loss) for one in ids) / len(ids))
    assert losses[0] > losses[1] + 0.3 and losses[1] > losses[2] + 0.3, losses


@pytest.fixture(scope="module")
def remade(tmp_path_factory) -> tuple[Path, Path]:
    """The starter data and the pretraining share, made again from the facts."""
    out = tmp_path_factory.mktemp("starter")
    job = load_job("make_starter_data")
    job.make(SHARED / "facts", SHARED, out / "starter", out / "pretrain")
    return out / "starter", out / "pretrain"


# --- data ----------------------------------------------------------------------------


@pytest.mark.release
@needs_shared
def test_data_is_what_the_script_makes(remade) -> None:
    names = [f"{domain}/{path.name}" for domain in DOMAINS for path in sorted((DATA / domain).glob("*.jsonl"))]
    assert len(names) == 3 * 7
    same, different, missing = filecmp.cmpfiles(DATA, remade[0], names, shallow=False)
    assert not different and not missing and len(same) == len(names)


@pytest.mark.release
@needs_shared
def test_pretraining_share_repeats_no_starter_row_and_no_term(remade) -> None:
    pretrain = [row for path in remade[1].glob("*.jsonl") for row in rows_of(path)]
    starter = [row for domain in DOMAINS for split in SPLITS for row in rows_of(DATA / domain / f"{split}.jsonl")]
    assert len(pretrain) == 3000
    assert not {row["completion"] for row in pretrain} & {row["completion"] for row in starter}
    assert not {row["prompt"] for row in pretrain} & {row["prompt"] for row in starter}
    keys = json.loads((remade[1] / "keys.json").read_text(encoding="utf-8"))
    hidden_terms, hidden_genes, hidden_cells = (set(keys[kind]) for kind in ("terms", "genes", "cells"))
    items = [
        item for domain in DOMAINS for split in SPLITS[1:] for item in rows_of(DATA / domain / f"choices_{split}.jsonl")
    ]
    for row in starter + items:
        key = row["id"].split("-", 2)[2].removeprefix("choice-")
        assert not set(re.findall(r"GO:\d+", key)) & hidden_terms
        assert not set(re.findall(r"CL_\d+", key)) & hidden_cells
        if row["id"].startswith("gene_interaction"):
            assert not set(key.rstrip("*").split("+")) & hidden_genes
    # Options are names of GO terms: none of a term of the share.
    names = {row["id"]: row["name"] for row in rows_of(SHARED / "facts" / "go_gene_sets.jsonl")}
    hidden_names = {names[term] for term in hidden_terms}
    assert not {option.removeprefix("Process: ") for item in items for option in item["choices"]} & hidden_names


@needs_shared
def test_pretraining_text_tells_of_no_starter_key() -> None:
    told = {row["id"] for row in rows_of(SHARED / "biological_process" / "pretrain.jsonl")}
    told |= {row["id"] for row in rows_of(SHARED / "cell_type" / "pretrain.jsonl")}
    told |= {row["id"].rsplit("-", 1)[0] for row in rows_of(SHARED / "gene_interaction" / "pretrain.jsonl")}
    for domain in DOMAINS:
        for split in SPLITS:
            for row in rows_of(DATA / domain / f"{split}.jsonl"):
                assert not set(re.split(r"[ +]", row["id"].split("-", 2)[2].rstrip("*"))) & told


def test_the_other_domains_are_what_their_script_makes() -> None:
    """Sums and dates: the files are those of the script, no key is in two splits, and each answer is worked out right."""
    job = load_job("make_control_data")
    for domain in job.DOMAINS:
        files = job.make(domain)
        assert {name: len(rows) for name, rows in files.items()} == {
            name: len(rows_of(DATA / domain / f"{name}.jsonl")) for name in files
        }
        for name, rows in files.items():
            assert rows == rows_of(DATA / domain / f"{name}.jsonl")
        prompts = [row.get("prompt", row.get("question")) for rows in files.values() for row in rows]
        assert len(set(prompts)) == len(prompts) == 480 + 3 * 110 + 3 * 120
        for row in (row for name, rows in files.items() if "choices" not in name for row in rows):
            given = [int(n) for n in re.findall(r"\d+", row["prompt"])]
            answer = row["completion"].removesuffix(".").rsplit(" ", 1)[1]
            assert answer == str(by_hand(row["prompt"], given)), row["id"]


def by_hand(prompt: str, given: list[int]) -> object:
    if "jars" in prompt:
        return given[0] * given[1] + given[2]
    if "coins" in prompt:
        return given[2] - given[0] * given[1]
    if "apples" in prompt:
        return given[0] // given[1]
    if "train" in prompt:
        return given[0] * given[1] + given[2]
    if "Today" in prompt:
        days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
        return days[(days.index(re.search(r"is (\w+)\.", prompt)[1]) + given[0]) % 7]  # type: ignore[index]
    first, last = (
        datetime.datetime.strptime(f"{text} 2001", "%d %B %Y") for text in re.findall(r"\d+ [A-Z]\w+", prompt)
    )
    return (last - first).days


def test_counts_and_no_completion_twice() -> None:
    completions = Counter()
    for domain in DOMAINS:
        ids = Counter()
        for split in SPLITS:
            rows = rows_of(DATA / domain / f"{split}.jsonl")
            assert len(rows) >= (400 if split == "train" else 100)
            assert all(
                set(row) == {"id", "prompt", "completion"} and row["prompt"] and row["completion"] for row in rows
            )
            ids.update(row["id"] for row in rows)
            completions.update(row["completion"] for row in rows)
        assert max(ids.values()) == 1
    assert max(completions.values()) == 1
    assert sum(path.stat().st_size for path in DATA.rglob("*")) < 3_500_000


def test_keys_stay_in_one_split() -> None:
    job = load_job("make_starter_data")
    for domain in DOMAINS:
        owner: dict[str, str] = {}
        for split in SPLITS:
            files = [f"{split}.jsonl"] + ([f"choices_{split}.jsonl"] if split != "train" else [])
            for row in (row for name in files for row in rows_of(DATA / domain / name)):
                key = row["id"].removeprefix(f"{domain}-{split}-").removeprefix("choice-")
                parts = job.pair_of(key) if domain == "gene_interaction" else (key.split(" ")[-1],)
                for part in parts:
                    assert owner.setdefault(part, split) == split


def test_choices_are_fair() -> None:
    for domain in DOMAINS:
        for split in SPLITS[1:]:
            items = rows_of(DATA / domain / f"choices_{split}.jsonl")
            assert len(items) >= 100
            assert len({item["question"] for item in items}) == len(items)
            answers = Counter(item["answer"] for item in items)
            assert set(answers) == {0, 1, 2, 3} and max(answers.values()) - min(answers.values()) <= 1
            for item in items:
                sizes = [len(option) for option in item["choices"]]
                assert len(set(item["choices"])) == 4
                assert max(sizes) <= 1.7 * min(sizes) + 8
            # Neither the longest nor the shortest option gives the answer away.
            for pick in (max, min):
                hits = sum(item["choices"][item["answer"]] == pick(item["choices"], key=len) for item in items)
                assert hits / len(items) < 0.45


@pytest.mark.parametrize("domain", DOMAINS)
def test_lengths_are_spread(domain: str, tokenizer) -> None:
    for split in SPLITS:
        texts = [row["completion"] for row in rows_of(DATA / domain / f"{split}.jsonl")]
        lengths = sorted(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
        quantile = {q: lengths[round(q / 100 * (len(lengths) - 1))] for q in (0, 10, 25, 50, 75, 90, 100)}
        assert quantile[0] <= 26 and quantile[10] <= 40 and quantile[25] <= 75
        assert 90 <= quantile[50] <= 160 and quantile[75] >= 200 and quantile[90] >= 350 and quantile[100] >= 550
        assert 0.18 <= sum(length > 256 for length in lengths) / len(lengths) <= 0.35


@needs_shared
def test_rows_state_facts() -> None:
    """Take rows apart again: what they say of genes and terms stands in the facts."""
    go = {row["name"]: set(row["genes"]) for row in rows_of(SHARED / "facts" / "go_gene_sets.jsonl")}
    checked = 0
    for split in SPLITS:
        for row in rows_of(DATA / "biological_process" / f"{split}.jsonl"):
            name = row["completion"].split("\n")[0].removeprefix("Process: ")
            genes = [word for word in re.findall(r"[A-Za-z0-9-]+", row["prompt"].replace(name, "")) if word in go[name]]
            assert len(genes) >= 3
            checked += 1
        for row in rows_of(DATA / "gene_interaction" / f"{split}.jsonl"):
            for gene, name in re.findall(
                r"^([A-Za-z0-9-]+):\n- (.+) \((?:process|function|place)\)$", row["completion"], re.M
            ):
                assert gene in go[name]
                checked += 1
    assert checked > 800


# --- model ----------------------------------------------------------------------------


def test_model_is_small_and_loads() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert (MODEL / "model.safetensors").stat().st_size <= 8_000_000
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto")
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.max_position_embeddings == 2048 and model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.shape == (4096, 192)


def test_chat_template_marks_what_the_assistant_says(tokenizer) -> None:
    encoded = tokenizer.apply_chat_template(MESSAGES, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, said in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if said]
    assert tokenizer.decode(marked) == "It takes part in apoptosis.<|end|>In the nucleus.<|end|>"
    assert encoded["input_ids"][0] == tokenizer.bos_token_id and encoded["input_ids"].count(tokenizer.bos_token_id) == 1
    start = tokenizer.apply_chat_template(MESSAGES[:2], tokenize=False, add_generation_prompt=True)
    assert start == "<|bos|><|system|>Be brief.<|end|><|user|>What does TP53 do?<|end|><|assistant|>"
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert whole.startswith(start)


def test_tokenizer_keeps_every_byte(tokenizer) -> None:
    text = "IL-1β  binds\n\tGABRA1 (1,234 µg)…\r\n末"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.eos_token == "<|end|>" and len(tokenizer) == 4096


@pytest.mark.slow
def test_model_ends_its_turn(tokenizer) -> None:
    """In the form that it was pretrained on it names a process, says something, and stops."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ended = 0
    for row in rows_of(DATA / "biological_process" / "validation.jsonl")[:3]:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**prompt, do_sample=False, max_new_tokens=400)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(out).startswith("Process:")
        ended += int(out[-1] == tokenizer.eos_token_id)
    assert ended >= 1


@needs_shared
@pytest.mark.release
def test_bits_per_byte() -> None:
    """At most 0.75 bits per byte on the validation text of the four biomedical folders, and the card says the truth."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    job = load_job("pretrain_starter")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        figures = job.evaluate(model, transformers.AutoTokenizer.from_pretrained(MODEL), SHARED, subset=None)
    finally:
        torch.set_num_threads(threads)
    told = json.loads((MODEL / "pretraining.json").read_text(encoding="utf-8"))
    assert figures["bits_per_byte"]["pooled"] <= 0.75
    for folder, value in figures["bits_per_byte"].items():
        assert value == pytest.approx(told["bits_per_byte"][folder], abs=0.005)
