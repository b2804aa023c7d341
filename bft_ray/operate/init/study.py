"""The files of a study from a user's own rows, and the lines that `init` prints about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bft_ray.config import config_from_yaml, load_config
from bft_ray.config.words import without_accents
from bft_ray.errors import BadInput
from bft_ray.model.unreadable import check_place
from bft_ray.operate.init.config_text import config_text
from bft_ray.operate.init.files import check_free, rows_text, write_all
from bft_ray.operate.init.labels import with_labels
from bft_ray.operate.init.look import CHARACTERS_PER_TOKEN, Found, Look, beside, inspect
from bft_ray.operate.init.plan import StudyPlan
from bft_ray.operate.init.related import hint_of_groups
from bft_ray.operate.init.request import Request
from bft_ray.operate.init.settings import Device, quantile
from bft_ray.operate.init.space_text import SPACE, space_text
from bft_ray.operate.init.split import SPLITS, TRAIN, VALIDATION, assign
from bft_ray.operate.init.tell import can_search, can_show, next_commands, rare_labels, summary
from bft_ray.space.draft import MARK
from bft_ray.space.load import load_study


def write_study(request: Request, device: Device | None = None) -> str:
    """Write config, search space and the files of the splits; returns the text to print.

    Nothing is written unless all of it is valid: the files are made in a folder of their own, the config and the space are
    loaded from there and checked against each other, and then each file is moved to its place.

    Raises:
        BadInput, BadConfig: a model folder that holds none, data that cannot be read or are too few, columns that mean
            nothing, outputs that exist (without `force`), a bad domain name.
    """
    check_place(request.model, "--model")
    if request.out.suffix not in (".yaml", ".yml"):
        request = replace(request, out=request.out / "bft.yaml")
    out = request.out
    paths = {name: out.with_name(f"{out.stem}_{name}.jsonl") for name in SPLITS}
    look = inspect(request.source(), request.data)
    others, notes = beside(Path(request.data), look, request)
    look, others, hints = with_labels(look, others)
    inputs = [Path(request.data), *(Path(other.path) for other in others.values())]
    check_free([out, out.with_name(SPACE), *paths.values()], inputs, request.force)
    parts, left_out = _parts(look, others)
    made = {name: path for name, path in paths.items() if parts.get(name)}
    domain = request.domain or domain_of(request.data)
    plan = StudyPlan(request, domain, look.kind == "choice", parts, made, device or Device.here())
    rows = {path.name: rows_text(_records(look.kind, name, parts[name])) for name, path in made.items()}
    config = config_text(plan, _about(look, request.data, left_out))
    # a space that no search takes would make `doctor` refuse a config that can train
    spaces = {SPACE: space_text(plan, config_from_yaml(config, str(out)))} if can_search(parts) else {}
    texts = rows | spaces | {out.name: config}
    stale = [path.name for name, path in paths.items() if name not in made] + ([] if spaces else [SPACE])

    def check(folder: Path) -> None:
        """Both must load and fit each other, as `bft-ray search` requires."""
        if spaces:
            load_study(folder / SPACE, folder / out.name)
        else:
            load_config(folder / out.name)

    write_all(out.parent, texts, check, stale)
    return "\n".join(
        [
            *summary(look),
            *notes,
            *left_out,
            *hints,
            *hint_of_groups(request.source(), look),
            "",
            *(f"{name:<13}{len(parts[name]):>7,} rows  {path}" for name, path in made.items()),
            f"{'config':<25}  {out}",
            f"{'search space':<25}  {out.with_name(SPACE) if spaces else 'none, for too few rows'}",
            "",
            *can_show(parts, plan.metric),
            *(rare_labels(parts, len(look.labels)) if look.labels else []),
            "",
            *next_commands(out, out.with_name(SPACE), can_search=can_search(parts)),
        ]
    )


def domain_of(data: str) -> str:
    """A domain name from a file name or hub id: `My Genes_train.csv` -> my_genes."""
    words = re.sub(r"[^a-z0-9]+", "_", without_accents(Path(data).stem).casefold())
    return re.sub(r"(^|_)(train|training|data|dataset)(?=_|$)", "", words).strip("_") or "my_data"


def _parts(look: Look, others: Mapping[str, Look]) -> tuple[dict[str, list[Found]], list[str]]:
    """(split -> its rows, lines on what was left out)."""
    given = [(TRAIN, row) for row in look.rows] + [(name, row) for name, other in others.items() for row in other.rows]
    keys, groups = [row.key for _, row in given], [row.group for _, row in given]
    held = assign(keys, groups, [name for name, _ in given])
    parts: dict[str, list[Found]] = {name: [] for name in SPLITS}
    lost: dict[str, list[str]] = {}
    for (name, row), split in zip(given, held, strict=True):
        if split is None:
            lost.setdefault(name, []).append(row.where)
        else:
            parts[split].append(row)
    for name in [TRAIN, VALIDATION] if lost else []:
        if not parts[name]:
            rule = "a file with questions (and groups) of its own: all of them are in a later split too"
            raise BadInput("data", f"the {name} rows", rule, "Add rows, or move the files beside it away.")
    notes = [
        f"left out     {len(places):,} {name} rows whose question or group is in a later split too: "
        f"{', '.join(places[:3])}{', ...' if len(places) > 3 else ''}"
        for name, places in lost.items()
    ]
    return parts, notes


def _records(kind: str, split: str, rows: Sequence[Found]):
    """(place, record) of a split's file: choice rows where they are measured, prompt and completion where trained."""
    for row in rows:
        yield row.where, row.taught if kind == "choice" and split == TRAIN else row.record


def _about(look: Look, data: str, left_out: Sequence[str]) -> list[str]:
    lengths = sorted(row.answer_tokens for row in look.rows)
    return [
        f"{MARK.removeprefix('# ')} for {Path(data).name}: {len(look.rows):,} rows, form {look.form}.",
        *(f"Left out: {count:,} rows, {reason}." for reason, count in look.left_out.items()),
        *(line.replace("left out     ", "Left out: ") + "." for line in left_out),
        f"Tokens an answer, estimated at {CHARACTERS_PER_TOKEN} characters each: half of them up to "
        f"{quantile(lengths, 0.5):,}, 99 % up to {quantile(lengths, 0.99):,}, the longest {lengths[-1]:,}.",
    ]
