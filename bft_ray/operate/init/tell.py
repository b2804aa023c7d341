"""What `bft-ray init` prints: what it read and used, what so few items can show, what comes next."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from bft_ray.data.form_table import DOUBTFUL_WORDS
from bft_ray.data.rows import text_key
from bft_ray.errors import enumerate_names
from bft_ray.operate.init.look import Found, Look
from bft_ray.operate.init.split import CONFIRMATION, SHARES, TEST, TRAIN, VALIDATION, num_units
from bft_ray.stats.power import DISCORDANT, smallest_share

_LARGE = 0.25  # share of the rows that one group seldom has
_MOSTLY_ONE = 0.9  # share of one label from which accuracy says little


def summary(look: Look) -> list[str]:
    """Lines on what was read, from which columns, and what was left out."""
    used = ", ".join(
        field if field == column else f"{field} = {json.dumps(column, ensure_ascii=False)}"
        for field, column in look.used.items()
    )
    lines = [f"{'read':<13}{len(look.rows):,} rows, form {look.form}", f"{'used':<13}{used}"]
    lines.append(f"{'not used':<13}{enumerate_names(look.unused) or 'no column'}")
    if groups := Counter(text_key(row.group) for row in look.rows if row.group is not None):
        of = json.dumps(look.used.get("group", "group"), ensure_ascii=False)
        lines.append(f"{'grouped':<13}by {of}: {len(groups):,} groups, whose rows stay on one side of the splits")
        largest = max(groups.values())
        if largest > max(_LARGE * len(look.rows), 1):  # such as all rows whose cell says `nan`
            lines.append(f"{'note':<13}one group has {largest:,} of the {len(look.rows):,} rows; is it one?")
    if look.labels:
        what = f"{len(look.labels)} labels"
        lines.append(f"{'taught':<13}the label after its prompt; the answers are {what}")
        lines.append(f"{'measured':<13}how likely each of the {what} is after the same prompt: the task `choices`")
    elif look.kind == "choice":
        lines.append(f"{'taught':<13}the text of the right option, after the question with its options by letter")
        lines.append(f"{'measured':<13}how likely each option is after the same question: the task `choices`")
    if blank := sum(not str(row.record.get("prompt", "?")).strip() for row in look.rows):
        lines.append(
            f"{'note':<13}{blank:,} row{'s have an' if blank > 1 else ' has an'} empty question: the answer is learned without one. "
            f"If that is not meant, remove {'them' if blank > 1 else 'it'}, and init again with --force"
        )
    words = Counter(str(row.taught.get("completion", "")).strip() for row in look.rows)
    for word in sorted(DOUBTFUL_WORDS & set(words)):
        lines.append(
            f"{'note':<13}{words[word]:,} answer{'s are' if words[word] > 1 else ' is'} {word}, and taught as such. "
            f"If it stands for a missing value, empty the cell, and init again with --force"
        )
    lines += [f"{'left out':<13}{count:,} rows: {reason}" for reason, count in look.left_out.items()]
    return lines


def can_search(parts: Mapping[str, Sequence[Found]]) -> bool:
    """Whether a study can compare trials on these splits: a split of one row has no spread."""
    return all(len(parts[name]) != 1 for name in (VALIDATION, CONFIRMATION, TEST) if name in parts)


def can_show(parts: Mapping[str, Sequence[Found]], metric: str) -> list[str]:
    """Lines on what so few items can and cannot show."""
    units = {name: num_units([row.key for row in rows], [row.group for row in rows]) for name, rows in parts.items()}
    lines = ["what so many items can show"]
    for name, use in ((VALIDATION, "search"), (CONFIRMATION, "choice"), (TEST, "final test")):
        if units.get(name):
            effect = smallest_share(units[name])
            items = "item" if units[name] == 1 else "items"
            seen = "no difference at all" if effect is None else f"differences of {100 * effect:.0f} points and more"
            lines.append(f"  {name:<13}{units[name]:>5,} independent {items}, for the {use}: {seen}")
    lines += [
        "  of a share such as accuracy, between two models on the same items, in 8 of 10 studies; assumed: exactly one of",
        f"  the two is right on {DISCORDANT:.0%} of the items, or on as many as it takes. {metric} moves",
        "  more finely, and the study prints what it could have detected.",
    ]
    total = sum(units.values())
    if not parts.get(CONFIRMATION):
        least = SHARES[1][0]
        lines += [
            f"  {total} independent items are too few for a confirmation: the study compares and chooses no champion.",
            f"  for a confirmation: {least} or more (different questions, or values of --group); then init again with --force.",
        ]
    elif not parts.get(TEST):
        lines += [
            f"  {total} independent items are too few for a test: the champion is confirmed, but not tested.",
            f"  for a test: {SHARES[0][0]} or more (different questions, or values of --group); then init again with --force.",
        ]
    return lines


def rare_labels(parts: Mapping[str, Sequence[Found]], num_labels: int) -> list[str]:
    """Lines on labels that a split lacks, and on how often the most frequent one is right there, where that is often."""
    lines = []
    for name, rows in parts.items():
        counts = Counter(row.taught["completion"] for row in rows)
        if not counts:
            continue
        said = []
        if len(counts) < num_labels:
            lacks = f"lacks {num_labels - len(counts)} of the {num_labels} labels"
            said.append(f"{lacks}, which cannot be learned" if name == TRAIN else lacks)
        share = max(counts.values()) / len(rows)
        if name != TRAIN and share >= _MOSTLY_ONE:
            said.append(f"always saying its most frequent label is right in {share:.0%} of it")
        if said:
            lines.append(f"{'note':<13}{name}: {'; '.join(said)}")
    return lines


def next_commands(config: Path, space: Path, *, can_search: bool) -> list[str]:
    """The next commands; without a search where the splits are too small for one."""
    given = shlex.quote(str(config))
    if not can_search:
        return [
            "a search needs 2 rows or more in each split: give 8 rows or more, then init again with --force. As it is, these",
            "rows can be trained on, with the settings of the config:",
            f"{'next':<13}bft-ray evaluate {given} --out before",
            f"{'':<13}bft-ray train {given}",
        ]
    commands = (
        f"doctor {given}",
        f"evaluate {given} --out before",
        f"profile {given}",
        f"search {shlex.quote(str(space))}",
    )
    return [f"{'' if place else 'next':<13}bft-ray {command}" for place, command in enumerate(commands)]
