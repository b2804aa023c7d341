"""Part `inputs` of `jobs.chaos`: malformed configs, search spaces, rows, tokenizers and models, drawn from a seed.

Each begins as one that is right. A few of its bytes, lines or values are then changed. It may still be accepted; otherwise one
error of bft-ray must say why, within seconds, with no text of a row in it, and with nothing written beside it.
"""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bft_ray.errors import BftError
from jobs.chaos_files import Fault, Kind, restore

_LIMIT_S = 20  # of one input; what takes longer hangs
#: in every cell of every row: whoever finds one in a message has found text of a row
SECRETS = ("quokkaword", "numbatword", "bilbyword", "dunnartword")
_ODD: list[Any] = [
    None, "", " ", -1, 0, 1e308, float("nan"), float("inf"), 10**40, True, [], {}, [[]], {"a": {}}, "text", "\u0000", "\ud7ff",
    "../../etc", "1e-3", "yes", "2020-01-01", [None], "x" * 5000, {"": None}, -0.0, 0.5,
]  # fmt: skip
_SCRAPS = [b"\t", b"\0", b"\xff\xfe", b"\xc3", b"{{", b"]", b"&a *a", b"!!python/object/apply:os.getcwd []", b": :", b"\r", b"\xef\xbb\xbf",
           b"'", b'"', b"- ", b"%", b"@", b"<<: *x", b"\xe2\x80\xae", b"[" * 3000, b"1e999", b"\n---\n"]  # fmt: skip


class _Hangs(Exception):
    """It took longer than `_LIMIT_S`."""


def run_inputs(folder: Path, seed: int, count: int) -> tuple[Counter[tuple[str, str]], list[Fault]]:
    """Try `count` malformed inputs, each kind equally often; returns how often each kind came out how, and the faults."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    outcomes: Counter[tuple[str, str]] = Counter()
    faults: list[Fault] = []
    for index, kind in enumerate(all_kinds := kinds()):
        whole, work = folder / "whole", folder / "work"
        shutil.rmtree(folder, ignore_errors=True)
        whole.mkdir(parents=True)
        kind.write(whole)
        kind.read(whole)
        for number in range(index, count, len(all_kinds)):
            draw = random.Random(f"{seed}/{number}")
            restore(whole, work)
            path = draw.choice(sorted(work.glob(kind.files)))
            how = mutate(path, draw)
            before = sorted(work.rglob("*"))
            outcome, text = _outcome(kind, work)
            if outcome != "fault" and sorted(work.rglob("*")) != before:
                outcome, text = "fault", "it left files beside what it read"
            outcomes[kind.name, outcome] += 1
            if outcome == "fault":
                faults.append(Fault(kind.name, number, path.name, how, text))
    shutil.rmtree(folder, ignore_errors=True)
    return outcomes, faults


def _outcome(kind: Kind, work: Path) -> tuple[str, str]:
    try:
        with _limited():
            kind.read(work)
    except BftError as error:
        text = str(error)
        quoted = any(secret in text for secret in SECRETS)
        if quoted or "Traceback" in text or len(text) > 20_000:
            return "fault", f"the error quotes a row, or is no message: {text[:300]}"
        return "one error", ""
    except _Hangs:
        return "fault", f"took longer than {_LIMIT_S} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "fault", f"{type(error).__name__}: {str(error)[:200]}"
    return "accepted", ""


@contextmanager
def _limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- changes ----------------------------------------------------------------------------------------------------------


def mutate(path: Path, draw: random.Random) -> str:
    """Change a file where it lies, by its bytes or, where it is a tree, by its values; returns how."""
    content = path.read_bytes()
    if draw.random() < 0.5 and (changed := _by_value(path, draw)) is not None:
        path.write_bytes(changed)
        return "a value changed"
    ways = [_cut, _scrap, _flip, _line_gone, _line_twice, _lines_swapped, _indented]
    way = draw.choice(ways)
    path.write_bytes(way(content, draw))
    return way.__name__.strip("_")


def _by_value(path: Path, draw: random.Random) -> bytes | None:
    """Of YAML, JSON or JSON lines: a value replaced by an odd one, a key renamed, lost or added."""
    if path.suffix not in (".yaml", ".json", ".jsonl"):
        return None
    text = path.read_text()
    if path.suffix == ".yaml":
        tree = yaml.safe_load(text)
        _change(tree, draw)
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    if path.suffix == ".json":
        tree = json.loads(text)
        _change(tree, draw)
        return json.dumps(tree).encode()
    rows = [json.loads(line) for line in text.splitlines()]
    _change(rows[draw.randrange(len(rows))], draw)
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _change(tree: Any, draw: random.Random) -> None:
    while True:
        inner = [
            value
            for value in (tree.values() if isinstance(tree, dict) else tree)
            if isinstance(value, dict | list) and value
        ]
        if not inner or draw.random() < 0.3:
            break
        tree = draw.choice(inner)
    key = draw.choice(list(tree)) if isinstance(tree, dict) else draw.randrange(len(tree))
    what = draw.random()
    if what < 0.6:
        tree[key] = draw.choice(_ODD)
    elif what < 0.75:
        del tree[key]
    elif isinstance(tree, dict):
        tree[f"{key}_" if draw.random() < 0.5 else str(key)[:-1]] = tree[key] if draw.random() < 0.5 else tree.pop(key)
    else:
        tree.append(tree[key])


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def _scrap(content: bytes, draw: random.Random) -> bytes:
    where = draw.randrange(len(content))
    return content[:where] + draw.choice(_SCRAPS) + content[where:]


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _line_gone(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def _line_twice(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    where = draw.randrange(len(lines))
    return b"".join(lines[:where] + lines[where : where + 1] + lines[where:])


def _lines_swapped(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


def _indented(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    where = draw.randrange(len(lines))
    lines[where] = b" " * draw.randint(1, 5) + lines[where]
    return b"".join(lines)


# --- the kinds --------------------------------------------------------------------------------------------------------


def kinds() -> list[Kind]:
    """All kinds."""
    return [
        Kind("config", _write_config, "*.yaml", _read_config),
        Kind("search space", _write_space, "*.yaml", _read_space),
        Kind("rows, JSON lines", lambda folder: _write_lines(folder / "rows.jsonl"), "rows.jsonl", _read_rows),
        Kind("rows, JSON", _write_json, "rows.json", _read_rows),
        Kind("rows, CSV", _write_csv, "rows.csv", _read_rows),
        Kind("conversations", _write_messages, "rows.jsonl", _read_rows),
        Kind("choices", _write_choices, "rows.jsonl", _read_choices),
        Kind("tokenizer", _write_model, "tokenizer*.json", _read_tokenizer),
        Kind("model", _write_model, "[cm]*[ns]", _read_model),
    ]


def _write_config(folder: Path) -> None:
    from bft_ray.config import load_config, to_yaml

    (folder / "config.yaml").write_text(to_yaml(load_config("starter")))


def _read_config(folder: Path) -> Any:
    from bft_ray.config import load_config

    return load_config(folder / "config.yaml")


def _write_space(folder: Path) -> None:
    from bft_ray.space.load import find_space

    shutil.copy(find_space("starter"), folder / "space.yaml")


def _read_space(folder: Path) -> Any:
    from bft_ray.space.load import load_study

    return load_study(folder / "space.yaml")


def _rows() -> list[dict[str, Any]]:
    draw = random.Random(0)

    def text(most: int) -> str:
        return " ".join(draw.choice(SECRETS) for _ in range(draw.randint(1, most)))

    return [{"id": f"row-{number}", "prompt": f"{text(6)} {number}", "completion": text(12)} for number in range(20)]


def _write_lines(path: Path, rows: list[dict[str, Any]] | None = None) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or _rows()))


def _write_json(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps(_rows(), indent=1))


def _write_csv(folder: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "prompt", "completion"])
    writer.writeheader()
    writer.writerows(_rows())
    (folder / "rows.csv").write_text(text.getvalue())


def _write_messages(folder: Path) -> None:
    roles = (("user", "prompt"), ("assistant", "completion"))
    rows = [{"messages": [{"role": role, "content": row[name]} for role, name in roles]} for row in _rows()]
    _write_lines(folder / "rows.jsonl", rows)


def _write_choices(folder: Path) -> None:
    rows = [{"question": row["prompt"], "choices": [f"{each} {row['id']}" for each in SECRETS], "answer": number % 4}
            for number, row in enumerate(_rows())]  # fmt: skip
    _write_lines(folder / "rows.jsonl", rows)


def _source(folder: Path) -> Any:
    from bft_ray.config import SourceConfig

    return SourceConfig(path=str(next(folder.glob("rows.*"))))


def _read_rows(folder: Path) -> Any:
    from bft_ray.data.rows import read_rows

    return list(read_rows(_source(folder), "data.train.0"))


def _read_choices(folder: Path) -> Any:
    from bft_ray.data.rows import read_choices

    return list(read_choices(_source(folder), "evaluation.tasks.0"))


def _write_model(folder: Path) -> None:
    """The tokenizer of the starter model, and a model of two thin layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bft_ray.model.named import starter_folder

    starter = Path(starter_folder())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(starter / name, folder)
    size = json.loads((starter / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def _model(folder: Path) -> Any:
    from bft_ray.config import ModelConfig

    return ModelConfig(path=str(folder))


def _read_tokenizer(folder: Path) -> Any:
    from bft_ray.model.causal_lm import load_tokenizer

    return load_tokenizer(_model(folder))


def _read_model(folder: Path) -> Any:
    from bft_ray.model.causal_lm import load_model

    return load_model(_model(folder))
