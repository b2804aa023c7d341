"""A config from a user's own file: guesses the columns, looks at the lengths, keeps rows for validation."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bft_ray.config import SourceConfig, make_config
from bft_ray.data.rows import BadRow, Row, read_rows, read_table
from bft_ray.errors import BadInput

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("question", "long_answer"),
    ("problem", "solution"),
    ("question", "solution"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
    ("source", "target"),
)
MESSAGES = ("messages", "conversation", "conversations")
TEXTS = ("text", "content", "document", "abstract", "body")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
VALIDATION_NAMES = ("validation", "valid", "val", "dev", "eval")
SHARE = 0.1  # of the prompts kept for validation
CHARACTERS_PER_TOKEN = 3.5  # of English text, roughly
NO_ID = "-"  # a column that no file has: the place of a row then serves as its id


@dataclass(frozen=True)
class Look:
    """What a file holds."""

    columns: dict[str, str]  # field -> column of the file, where they differ
    rows: list[Row]
    num_bad: int
    num_tokens: list[int]  # estimated, ascending

    def quantile(self, share: float) -> int:
        """Estimated tokens that this share of the rows does not exceed."""
        return self.num_tokens[min(len(self.num_tokens) - 1, math.floor(share * len(self.num_tokens)))]


def write_config(data: Path, out: Path, domain: str | None = None, model: str = "starter", force: bool = False) -> Path:
    """Write a commented config that trains on the user's file as it is.

    A validation file beside the data (train.csv, validation.csv) is used. Otherwise a tenth of the prompts, drawn by
    their hash, is kept for it, and both parts are written beside the config, as OUT_train.jsonl and
    OUT_validation.jsonl: equal prompts stay on one side, and the same file always gives the same split.

    Raises:
        BadInput: a file that is missing, unreadable or too small, columns that cannot be guessed, or an output that
            exists (without `force`).
    """
    if not data.is_file() or data.suffix.lower() not in SUFFIXES:
        raise BadInput("data", str(data), f"a file that exists and ends with {', '.join(SUFFIXES)}")
    look = look_at(data)
    beside = _validation_beside(data, look.columns)
    paths = [out.with_name(f"{out.stem}_{use}.jsonl") for use in ("train", "validation")]
    for path in [out, *([] if beside else paths)]:
        if path.exists() and not force:
            raise BadInput("out", str(path), "a file that does not exist yet", "Give --force to overwrite it.")
    if beside:
        train, validation, columns, how = data, beside, look.columns, "the file beside the data"
        parts, num_train = {}, len(look.rows)
    else:
        kept, held_out = split(look.rows)
        train, validation, columns, num_train = *paths, {}, len(kept)
        parts = {train: kept, validation: held_out}
        how = f"{len(held_out)} of the {len(look.rows)} rows, drawn by the hash of their prompt"
    text = make_config_text(look, num_train, train, validation, columns, how, data, domain, model)
    make_config(yaml.safe_load(text), str(out))  # refuses a bad domain before anything is written
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, rows in parts.items():
        _write_rows(path, rows)
    out.write_text(text, encoding="utf-8")
    return out


def look_at(path: Path) -> Look:
    """Guess the columns from the first row, then read and check all rows with them."""
    first = next((record for _, record in read_table(str(path))), None)
    if first is None:
        raise BadInput("data", str(path), "a file with rows")
    columns = guess_columns(first, path)
    try:
        found = list(read_rows(SourceConfig(path=str(path), columns=columns), "data"))
    except BadInput as error:
        if not error.field.endswith(" id"):
            raise
        columns = {"id": NO_ID} | columns  # its ids repeat
        found = list(read_rows(SourceConfig(path=str(path), columns=columns), "data"))
    rows = [row for row in found if isinstance(row, Row)]
    if len(rows) < 2:
        reasons = sorted({row.reason for row in found if isinstance(row, BadRow)})
        rule = f"a file with at least 2 usable rows{': ' + ', '.join(reasons) if reasons else ''}"
        raise BadInput("data", str(path), rule)
    if columns.get("prompt") == "instruction" and "input" in first:
        _refuse_inputs(path)
    return Look(columns, rows, len(found) - len(rows), sorted(map(_num_tokens, rows)))


def guess_columns(record: dict[str, Any], path: Path) -> dict[str, str]:
    """Field -> column, as `columns` of a data source; only names that differ.

    Raises:
        BadInput: no known pair of names; lists the columns and the option that maps them.
    """
    names = {str(name).strip().lower(): str(name) for name in record}
    for name in MESSAGES:
        turns = record.get(names.get(name, ""))
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and {"role", "content"} <= set(turns[0]):
            return _differing({"messages": names[name]})
    for prompt, completion in PAIRS:
        if prompt in names and completion in names:
            return _differing({"prompt": names[prompt], "completion": names[completion]})
    for name in TEXTS:
        if isinstance(record.get(names.get(name, "")), str):
            return _differing({"text": names[name]})
    raise BadInput(
        str(path),
        f"columns {', '.join(map(str, record))}",
        "prompt and completion, question and answer, instruction and output, messages, or text (or the like)",
        "Rename them, or write a config with data.train.0.columns, e.g. {prompt: case, completion: finding}.",
    )


def _differing(columns: dict[str, str]) -> dict[str, str]:
    return {field: column for field, column in columns.items() if field != column}


def _refuse_inputs(path: Path) -> None:
    for where, record in read_table(str(path)):
        if str(record.get("input") or "").strip():
            remedy = "Join instruction and input into one `prompt` column first."
            raise BadInput(where, "a row with instruction, input and output", "one prompt and one completion", remedy)


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(training rows, validation rows): by the hash of the prompt, so that equal prompts stay together."""
    keys = [_key(row) for row in rows]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        remedy = "Add rows, or put a validation file beside it (train.csv, validation.csv)."
        raise BadInput("data", f"{len(rows)} rows", "at least 2 different prompts", remedy)
    held_out = set(distinct[: max(1, round(SHARE * len(distinct)))])
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def _key(row: Row) -> bytes:
    asked = row.text or row.prompt or [turn for turn in row.messages or [] if turn["role"] != "assistant"]
    return hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).digest()


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    fields = ("id", "prompt", "completion", "messages", "text")
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            record = {name: value for name in fields if (value := getattr(row, name)) is not None}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _validation_beside(data: Path, columns: dict[str, str]) -> Path | None:
    """The validation file that belongs to this one by its name, if it can be read in the same way."""
    names = [re.sub("train(ing)?", name, data.stem, count=1, flags=re.I) for name in VALIDATION_NAMES]
    for name in dict.fromkeys(names):
        path = data.with_name(name + data.suffix)
        if path != data and path.is_file():
            for row in itertools.islice(read_rows(SourceConfig(path=str(path), columns=columns), "data"), 100):
                if isinstance(row, Row):
                    return path
    return None


def _num_tokens(row: Row) -> int:
    parts = [row.prompt, row.completion, row.messages, row.text]
    size = sum(
        len(part) if isinstance(part, str) else sum(len(turn.get("content") or "") for turn in part)
        for part in parts
        if part
    )
    return math.ceil(size / CHARACTERS_PER_TOKEN)


def domain_of(path: Path) -> str:
    """A domain name from a file name: `My Genes_train.csv` -> my_genes."""
    words = re.sub(r"[^a-z0-9]+", "_", path.stem.lower())
    return re.sub(r"(^|_)(train|training|data|dataset)(?=_|$)", "", words).strip("_") or "my_data"


def _longest_positions(model: str) -> int:
    from bft_ray.model.causal_lm import resolve_model

    path = Path(resolve_model(model)) / "config.json"
    if not path.is_file():
        return 4096
    return min(4096, json.loads(path.read_text()).get("max_position_embeddings") or 4096)


def make_config_text(
    look: Look,
    num_train: int,
    train: Path,
    validation: Path,
    columns: dict[str, str],
    how: str,
    data: Path,
    domain: str | None = None,
    model: str = "starter",
) -> str:
    """The YAML text of a config for what was found in a file.

    Args:
        columns: mapping for the files `train` and `validation`.
        how: where the validation rows come from, for a comment.
    """
    needed = 1.25 * look.quantile(0.99) + 32  # the estimate may be low, and a chat template adds some
    max_length = min(_longest_positions(model), max(256, 128 * math.ceil(needed / 128)))
    batch = 16 if num_train >= 160 else max(1, num_train // 10)
    is_starter = model == "starter"
    mapping = f", columns: {json.dumps(columns, ensure_ascii=False)}" if columns else ""

    def source(path: Path) -> str:
        return f"{{path: {json.dumps(str(path.resolve()), ensure_ascii=False)}{mapping}}}"

    lora = (
        "lora: null  # null trains all weights; {rank: 16, alpha: 32.0} trains adapters only"
        if is_starter
        else "lora: {rank: 16, alpha: 32.0}  # trains adapters only; null trains all weights (far more memory)"
    )
    left_out = f", {look.num_bad} left out (empty)" if look.num_bad else ""
    lengths = (
        f"half of them up to {look.quantile(0.5)}, 99 % up to {look.quantile(0.99)}, the longest {look.num_tokens[-1]}"
    )
    text = f"""\
# Written by `bft-ray init` for {data.name}: {len(look.rows)} rows{left_out}.
# Tokens a row, estimated at {CHARACTERS_PER_TOKEN} characters each: {lengths}.
# Check it: bft-ray doctor FILE. Change a field for one run: bft-ray train FILE loss.window=64.
# All fields: bft-ray config --schema.
domain: {domain or domain_of(data)}  # names the MLflow experiment, bft/<domain>
seed: 0  # of the batch order and of LoRA's first weights
model:
  path: {json.dumps(model)}  # folder or hub id of any causal language model; starter: the small bundled one
  dtype: {"fp32" if is_starter else "bf16"}  # of weights and computation; bf16 halves the memory
{lora}
data:
  train:
    - {source(train)}
  validation:  # {how}
    - {source(validation)}
  max_length: {max_length}  # tokens a row; longer ones are handled as too_long says
  too_long: truncate  # or drop, or error; counted in the data report
  global_batch_size: {batch}  # rows a step, over all workers: part of the result
  micro_batch_tokens: {max(4096, max_length)}  # tokens a worker handles at once: memory and speed, never the result
loss:
  method: bft  # sft, dft, bft, bft_group, bft_inverse ...: compare them on your data
  window: 256  # tokens of the confidence window; at or above the longest answer it is the whole answer
optimizer:
  learning_rate: {"0.001" if is_starter else "0.0001"}  # peak; try a third and three times of it
schedule:
  epochs: 3.0  # passes over the training rows
  warmup_ratio: 0.1  # share of the steps in which the rate rises
deepspeed:
  preset: zero1  # zero2, zero3: spread more of the memory over the workers
evaluation:
  tasks: []  # what else is measured, e.g. [{{kind: choice, path: exam.jsonl}}]; the README lists the kinds
  batch_tokens: {max(8192, max_length)}  # tokens a worker evaluates at once
cluster:
  address: null  # null: this machine; auto or host:port: a Ray cluster
  num_workers: 1  # one a GPU, or a few cores; the result stays the same
  cpus_per_worker: 1.0  # cores of each worker
  storage_path: bft_results  # checkpoints and exports; on a cluster a folder that all nodes share, or a URI
checkpoint:
  metric: validation/nll  # decides which checkpoint is exported: nats a token, lower is better
tracking:
  uri: sqlite:///mlflow.db  # or http://host:port of an MLflow server
"""
    return "".join(map(_align, text.splitlines(keepends=True)))


def _align(line: str) -> str:
    value, mark, comment = line.partition("  # ")
    return f"{value:<32}{mark}{comment}" if mark else line
