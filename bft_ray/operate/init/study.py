"""The files of a study from a user's own rows, and the lines that `init` prints about them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from bft_ray.config import config_from_yaml, load_config
from bft_ray.config.steps import num_steps
from bft_ray.config.words import without_accents
from bft_ray.domains import domain as domain_named
from bft_ray.errors import BadInput
from bft_ray.model.unreadable import check_place
from bft_ray.operate.init.config_text import Device, Settings, config_text, max_length_for, quantile, settings_for
from bft_ray.operate.init.files import check_free, rows_text, write_all
from bft_ray.operate.init.labels import with_labels
from bft_ray.operate.init.look import CHARACTERS_PER_TOKEN, Found, Look, beside, inspect
from bft_ray.operate.init.related import hint_of_groups
from bft_ray.operate.init.request import Request
from bft_ray.operate.init.space_text import SPACE, SpacePlan, space_text
from bft_ray.operate.init.split import SPLITS, TRAIN, VALIDATION, assign
from bft_ray.operate.init.tell import can_search, can_show, next_commands, rare_labels, summary
from bft_ray.space.draft import MARK, differing_windows, window_grid
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
    plan = _Plan(request, look, parts, made, domain, device or Device.here())
    rows = {path.name: rows_text(_records(look.kind, name, parts[name])) for name, path in made.items()}
    # a space that no search takes would make `doctor` refuse a config that can train
    spaces = {SPACE: plan.space()} if can_search(parts) else {}
    texts = rows | spaces | {out.name: plan.config(_about(look, request.data, left_out))}
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


@dataclass(frozen=True)
class _Plan:
    """What the two texts share."""

    request: Request
    look: Look
    parts: Mapping[str, Sequence[Found]]
    made: Mapping[str, Path]
    domain: str
    device: Device

    @cached_property
    def row_tokens(self) -> list[int]:
        return sorted(row.row_tokens for row in self.parts[TRAIN])

    @cached_property
    def answer_tokens(self) -> list[int]:
        """Tokens of each answer, ascending; at most as many as a row may have, because the rest is cut off."""
        longest = max_length_for(self.row_tokens, self.request.model)
        return sorted(min(row.answer_tokens, longest) for row in self.parts[TRAIN])

    @cached_property
    def windows(self) -> list[int]:
        return differing_windows(window_grid(self.answer_tokens[-1]), self.answer_tokens)

    @property
    def metric(self) -> str:
        """The domain's headline where this config measures it."""
        headline = domain_named(self.domain).headline
        usual = "choices/probability" if self.look.kind == "choice" else "validation/token_accuracy"
        measured = "choices/" if self.look.kind == "choice" else "validation/"
        return headline if headline.startswith(measured) else usual

    @cached_property
    def settings(self) -> Settings:
        return settings_for(self.row_tokens, self.windows, self.request.model, self.device)

    def config(self, about: Sequence[str]) -> str:
        return config_text(
            about,
            self.domain,
            self.request.model,
            self.settings,
            self.answer_tokens,
            self.made[TRAIN],
            self.made[VALIDATION],
            is_choice=self.look.kind == "choice",
        )

    def space(self) -> str:
        num_train = len(self.parts[TRAIN])
        return space_text(
            SpacePlan(
                name=self.domain,
                config=self.request.out.name,
                windows=self.windows,
                rates=self.settings.rates,
                metric=self.metric,
                is_choice=self.look.kind == "choice",
                is_family=self.request.space == "families",
                num_train=num_train,
                num_steps=num_steps(config_from_yaml(self.config([]), str(self.request.out)), [num_train]),
                paths=self.made,
            )
        )


def _about(look: Look, data: str, left_out: Sequence[str]) -> list[str]:
    lengths = sorted(row.answer_tokens for row in look.rows)
    return [
        f"{MARK.removeprefix('# ')} for {Path(data).name}: {len(look.rows):,} rows, form {look.form}.",
        *(f"Left out: {count:,} rows, {reason}." for reason, count in look.left_out.items()),
        *(line.replace("left out     ", "Left out: ") + "." for line in left_out),
        f"Tokens an answer, estimated at {CHARACTERS_PER_TOKEN} characters each: half of them up to "
        f"{quantile(lengths, 0.5):,}, 99 % up to {quantile(lengths, 0.99):,}, the longest {lengths[-1]:,}.",
    ]
