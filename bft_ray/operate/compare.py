"""`bft-ray compare`: the answers of several models to the same held-out prompts, side by side in a page for its user alone.

The page holds text of the data. It is written with mode 0600, whatever `cluster.file_mode` says, and nothing of it goes to
MLflow or to a log.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import Config, SourceConfig, TrackingConfig, config_from_yaml, make_config
from bft_ray.config.tasks import Decoding
from bft_ray.data.rows import BadRow, Row, look, question_key, read_choices, read_rows
from bft_ray.data.tables import naming
from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.generate import run_generate
from bft_ray.evaluate.engine.request import Context, Generate
from bft_ray.evaluate.tasks.choice import prompt_of
from bft_ray.evaluate.tasks.generation import decode, encode_prompts, read_prompts
from bft_ray.model.causal_lm import adapter_of, load_model, load_tokenizer
from bft_ray.model.check import check_headers, describe, position_limit, skeleton
from bft_ray.model.ends import end_tokens
from bft_ray.page.html import to_html
from bft_ray.page.model import Columns, Page, Part, Section, shown_time
from bft_ray.places import storage
from bft_ray.places.cache import check_out_file
from bft_ray.tracking.registry import DEFAULT_SOURCE, Champion, find_champion
from bft_ray.waits import waiting

_FIELD = "--prompts"
_BATCH_TOKENS = 8192
Line = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """A model to compare.

    Args:
        name: on the page.
        path: folder, hub id or short name.
    """

    name: str
    path: str


@dataclass(frozen=True)
class Answered:
    """What a model said: one text a prompt, and whether it came to an end by itself."""

    name: str
    texts: tuple[str, ...]
    ended: tuple[bool, ...]


def compare_models(
    models: Sequence[str],
    prompts: Path,
    *,
    domain: str | None,
    uri: str | None,
    out: Path,
    limit: int,
    max_new_tokens: int,
    line: Line,
) -> Path:
    """Write the page; returns its path.

    Args:
        models: folders, hub ids or short names; with `domain` besides base, default and champion of that.
        prompts: rows of a form that training reads; their answers are shown as gold ones.
        domain: whose champion is compared; None: none.
        uri: of the tracking server that knows it; None: the default.
        limit: first rows that are asked.
        max_new_tokens: of an answer.
        line: called with a line before each model, and with what to know; never with text of the data.

    Raises:
        BadInput: nothing to compare, no such champion, bad rows, a model that cannot be read.
    """
    config, found = _champion(domain, uri, line)
    found += [Candidate(_label(path), path) for path in models]
    if len({one.name for one in found}) < len(found):
        found = [replace(one, name=f"{place + 1}. {one.name}") for place, one in enumerate(found)]
    if not found:
        raise BadInput("MODEL", None, "one model at least, or --champion DOMAIN")
    check_out_file(out, (prompts,))
    rows = _rows(SourceConfig(path=str(prompts), limit=limit))
    if known := _trained_on(rows, config):
        line(
            f"note: {known} of {len(rows)} prompts are questions of the training data: what a model says to "
            f"them shows nothing"
        )
    # all are checked before the first one answers, which may take long
    asked = [_asked(one, rows, _config_of(one, config), max_new_tokens, line) for one in found]
    answered = []
    for one in asked:
        line(f"asking {one.name}")
        answered.append(_answers(one, rows, max_new_tokens))
    _write(out, to_html(_page(rows, answered, prompts, known)))
    return out


def _rows(source: SourceConfig) -> Sequence[Row]:
    """Prompts with a gold answer; of a choice, the text of the right option."""
    with naming(_FIELD):
        use = look(source, _FIELD)
        if use is None or use.form.kind != "choice":
            return read_prompts(source, _FIELD)
        return [
            Row(item.id, item.where, prompt=prompt_of(item), completion=item.choices[item.answer], group=item.group)
            for item in read_choices(source, _FIELD)
        ]


def _champion(domain: str | None, uri: str | None, line: Line) -> tuple[Config | None, list[Candidate]]:
    """The config of a champion; and base, default and champion, as far as they can be had."""
    if domain is None:
        return None, []
    champion = find_champion(TrackingConfig(uri=uri or TrackingConfig().uri), domain)
    config = config_from_yaml(champion.config_yaml, f"the config of {champion.name}/{champion.version}")
    found = [Candidate("base", config.model.path)]
    default = champion.tags.get(DEFAULT_SOURCE, "")
    if default and default != champion.source and storage.exists(default):
        found.append(Candidate("default", default))
    else:
        is_same = default == champion.source
        line(
            "note: the default is the champion"
            if is_same
            else "note: the weights of the default are not to be found here"
        )
    return config, [*found, Candidate("champion", _there(champion))]


def _there(champion: Champion) -> str:
    if not storage.exists(champion.source):
        rule = f"a folder with the weights of {champion.name}/{champion.version}"
        raise BadInput("source", champion.source, rule, "Run this on the machine that has it.")
    return str(storage.fetch_folder(champion.source))


def _label(path: str) -> str:
    """A short name of a model: the run's name for its `export`."""
    folder = Path(path)
    return folder.parent.name if folder.name == "export" else folder.name


def _trained_on(rows: Sequence[Row], config: Config | None) -> int:
    """How many prompts ask what a row of the training data asks; 0 where that is not known."""
    if config is None:
        return 0
    try:
        asked = {
            question_key(row)
            for source in config.data.train
            for row in read_rows(source, "data.train")
            if not isinstance(row, BadRow)
        }
    except BadInput:  # the data are elsewhere
        return 0
    return sum(question_key(row) in asked for row in rows)


# ---- answers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What a model is asked.

    Args:
        config: of its model, template and end of an answer.
        prompts: tokens of each row's prompt.
    """

    name: str
    config: Config
    tokenizer: Any
    prompts: list[np.ndarray]


def _asked(one: Candidate, rows: Sequence[Row], config: Config, max_new_tokens: int, line: Line) -> _Asked:
    """Check a model, and encode the prompts for it.

    Raises:
        BadInput: a model that cannot be read, or a prompt that leaves no room for an answer in its positions.
    """
    for folder in adapter_of(config.model):
        if folder and Path(folder).is_dir():
            check_headers(Path(folder), "MODEL")
    tokenizer: Any = load_tokenizer(config.model)
    unbounded = config.data.model_copy(update={"max_length": 2**31})  # the model's positions are the bound
    prompts = encode_prompts(rows, Context(tokenizer, unbounded, _BATCH_TOKENS, 0))
    longest, described = max(map(len, prompts)), describe(config)
    limit, fails = position_limit(described, skeleton(config, described))
    if limit is not None and longest + max_new_tokens > limit:
        value = f"a prompt of {longest:,} tokens and an answer of up to {max_new_tokens:,}"
        rule = f"at most {limit:,} tokens together, the positions of {one.name}"
        if fails:
            raise BadInput(_FIELD, value, rule, "Take long prompts out, or lower --max-new-tokens.")
        line(f"note: {_FIELD} has {value}; {one.name} was made for {limit:,} positions, and answers badly beyond them")
    return _Asked(one.name, config, tokenizer, prompts)


def _config_of(one: Candidate, champion: Config | None) -> Config:
    """How a model is loaded and asked: as the champion's study did, else as it comes."""
    if champion is not None:
        return champion.model_copy(update={"model": champion.exported(one.path)})
    model = {"path": one.path, "dtype": "bf16" if _device() == "cuda" else "fp32"}
    data = {"train": [{"path": _FIELD}], "validation": []}  # none is trained on
    return make_config({"domain": "compare", "model": model, "data": data, "checkpoint": {"export": "last"}})


def _answers(one: _Asked, rows: Sequence[Row], max_new_tokens: int) -> Answered:
    """Greedy answers of one model, on the GPU where there is one."""
    device, tokenizer = _device(), one.tokenizer
    request = Generate([row.id for row in rows], one.prompts, Decoding(max_new_tokens=max_new_tokens), 0)
    model = load_model(one.config.model).to(device)
    with waiting(f"{one.name} answers"):
        ends = end_tokens(tokenizer, one.config.data)
        made = run_generate(model, request, _BATCH_TOKENS, device, tokenizer.pad_token_id, ends)
    texts = tuple(decode(answers[0], tokenizer) for answers in made)
    return Answered(one.name, texts, tuple(len(answers[0]) < max_new_tokens for answers in made))


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- the page ------------------------------------------------------------------------------------------------------


def _page(rows: Sequence[Row], answered: Sequence[Answered], prompts: Path, known: int) -> Page:
    names = ", ".join(f"`{one.name}`" for one in answered)
    sections = []
    for place, row in enumerate(rows):
        said = [(one.name, one.texts[place] + ("" if one.ended[place] else " [cut off]")) for one in answered]
        parts: list[Part] = [
            Columns([("prompt", _prompt(row))]),
            Columns([("gold answer", str(row.completion)), *said]),
        ]
        sections.append(Section(f"row-{place + 1}", f"{place + 1}. {row.id}", parts))
    note = f" {known} of them are questions of the training data, which shows nothing." if known else ""
    return Page(
        title="bft-ray: answers side by side",
        above=f"{shown_time()}; for you alone: this page holds text of the data",
        question=f"What do {names} say to the same prompts?",
        answer=f"**{len(rows)} prompts** of `{prompts.name}`, answered greedily.{note} A few answers show how a "
        f"model writes, and do not measure it.",
        sections=sections,
    )


def _prompt(row: Row) -> str:
    """The prompt as text; of a conversation its turns before the last one."""
    if isinstance(row.prompt, str):
        return row.prompt
    turns = row.prompt if row.prompt is not None else (row.messages or [])[:-1]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _write(path: Path, text: str) -> None:
    """Readable by its user alone from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
