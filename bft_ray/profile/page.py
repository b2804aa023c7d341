"""The profile as one page, and as text for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.page.model import (
    Axis,
    Cell,
    Code,
    Figure,
    Marks,
    Number,
    Page,
    Part,
    Section,
    Shape,
    Stroke,
    Table,
    Tone,
    as_text,
)

if TYPE_CHECKING:
    from bft_ray.profile.result import Profile  # which needs torch

_NEAREST = 20  # pairs on the page; the JSON has all


def page_of(profile: Mapping[str, Any], proposal: str) -> Page:
    """One page: what was found, in words, figures and tables; only names of settings, no text of the data.

    Args:
        profile: as `Profile.to_dict` gives it.
        proposal: a search space, YAML.
    """
    first, *others = profile["findings"]
    sections = [
        Section("windows", "What windows see", parts_of({**profile, "findings": others})),
        Section("space", "Proposed search space", [Code(proposal)]),
    ]
    asked = "Which windows, epsilons and caps differ at all on this data, before anything is trained?"
    title = f"Window profile of {profile['title']}"
    return Page(title=title, above=title, question=asked, answer=first, sections=sections)


def parts_of(profile: Mapping[str, Any]) -> list[Part]:
    """A profile as parts of a page: of its own, and of a study's.

    Args:
        profile: as `Profile.to_dict` gives it.
    """
    parts: list[Part] = [list(profile["findings"])] if profile["findings"] else []
    parts += [_windows(profile["windows"]), _window_table(profile["windows"]), _length_table(profile)]
    counted = profile.get("histograms")
    if counted:
        parts += [_lengths(counted["lengths"], profile["windows"]), _tokens(counted["tokens"])]
    if profile["settings"]:
        parts += [_shares(profile["settings"]), _setting_table(profile["settings"])]
    if profile.get("token_weights"):
        parts.append(_token_table(profile["token_weights"], profile["low_confidence"]["below"]))
        if counted:
            parts.append(_runs(counted["runs"], profile["low_confidence"]))
        parts.append(_run_table(profile["low_confidence"]))
    if profile["equal"]:
        rows: list[list[Cell]] = [[first, ", ".join(others)] for first, *others in profile["equal"]]
        parts.append(
            Table(["setting", "is also"], rows, "The same run at every step: one of each is enough", is_open=False)
        )
    if profile["near"]:
        parts.append(_near_table(profile["near"]))
    if profile["drift"]:
        parts.append(_drift_table(profile["drift"]))
    return parts


# ---- figures -----------------------------------------------------------------------------------------------------------


def _windows(rows: Sequence[Mapping[str, float]]) -> Figure:
    at = [row["window"] for row in rows]

    def line(label: str, name: str, shape: Shape, stroke: Stroke, tone: Tone) -> Marks:
        texts = [f"window {row['window']:g}: {label} {row[name]:.3f}" for row in rows]
        return Marks(label, at, [row[name] for row in rows], shape=shape, stroke=stroke, tone=tone, texts=texts)

    return Figure(
        "windows",
        "What a window sees",
        "Median confidence and the share of samples that a window covers whole, by window; the table has the numbers.",
        Axis("window, supervised tokens", is_log=True),
        Axis("share"),
        [
            line("confidence, 10 % of the samples below", "confidence_p10", "none", "dots", "main"),
            line("median confidence", "confidence_p50", "dot", "line", "main"),
            line("confidence, 90 % below", "confidence_p90", "none", "dash", "main"),
            line("samples that the window covers whole", "whole_share", "square", "line", "best"),
        ],
        "Confidence is that of the least sure window of a sample. Windows that cover a sample whole are one and the same for it.",
    )


def _lengths(counted: Mapping[str, Sequence[float]], windows: Sequence[Mapping[str, float]]) -> Figure:
    known = ", ".join(f"{row['window']:g}" for row in windows)
    return Figure(
        "lengths",
        "How long the answers are",
        "Samples by their number of supervised tokens; the table has the percentiles.",
        Axis("supervised tokens of a sample", is_log=True),
        Axis("samples"),
        [_histogram(counted)],
        f"A window longer than a sample covers it whole. Windows of the profile: {known}.",
    )


def _tokens(counted: Mapping[str, Sequence[float]]) -> Figure:
    return Figure(
        "tokens",
        "How sure the model is, token by token",
        "Supervised tokens by the probability that the model gives them.",
        Axis("probability of a supervised token"),
        Axis("tokens"),
        [_histogram(counted)],
    )


def _runs(counted: Mapping[str, Sequence[float]], low: Mapping[str, float]) -> Figure:
    return Figure(
        "runs",
        "Hard stretches: spread, or in one piece",
        f"Samples by their longest run of tokens with a probability below {low['below']:g}; the table has the percentiles.",
        Axis("longest run of low-confidence tokens in a sample"),
        Axis("samples"),
        [_histogram(counted)],
        "Long runs are dense hard stretches, short ones are spread over the sample.",
    )


def _histogram(counted: Mapping[str, Sequence[float]]) -> Marks:
    """Steps over the edges of bins; a step says its ends and its count."""
    ends, counts = counted["edges"], counted["counts"]
    texts = [
        f"{low:.3g} to {high:.3g}: {count:,}" for low, high, count in zip(ends[:-1], ends[1:], counts, strict=True)
    ]
    return Marks("", [*ends], [*counts, 0], shape="none", stroke="step", texts=[*texts, ""])


def _shares(settings: Sequence[Mapping[str, Any]]) -> Figure:
    lines: dict[tuple[Any, ...], list[tuple[float, float, str]]] = {}
    for row in settings:
        is_inverse = row["sample_weight"] == "inverse"
        own = (row["epsilon"], row["weight_cap"]) if is_inverse else (None, None)
        text = f"{row['name']}: {row['effective_share']:.3f}"
        lines.setdefault((row["sample_weight"], row["confidence"], *own), []).append(
            (row["window"], row["effective_share"], text)
        )
    marks = []
    for (form, confidence, *_), points in lines.items():
        x, y, texts = map(list, zip(*sorted(points), strict=True))
        stroke: Stroke = "dash" if confidence == "arithmetic" else "line"
        tone: Tone = "main" if form == "inverse" else "dark"
        marks.append(Marks(f"{form}, {confidence}", x, y, shape="dot", stroke=stroke, tone=tone, texts=texts))
    return Figure(
        "weights",
        "How even the starting weights are",
        "Effective share of the samples under each setting, by window; the table has the numbers.",
        Axis("window, supervised tokens", is_log=True),
        Axis("effective share of the samples"),
        marks,
        "1: all samples weigh the same; 0.5: as if half of them counted. A line is an epsilon and a cap.",
    )


# ---- tables ------------------------------------------------------------------------------------------------------------


def _numbers(row: Mapping[str, Any], forms: Mapping[str, str]) -> list[Cell]:
    """Numbers of a row by their names, each in its form."""
    return [Number.of(row[name], form) for name, form in forms.items()]


def _window_table(rows: Sequence[Mapping[str, float]]) -> Table:
    forms = {"whole_share": ".1%", "confidence_p10": ".3f", "confidence_p50": ".3f", "confidence_p90": ".3f"}
    cells: list[list[Cell]] = [[f"{row['window']:g}", *_numbers(row, forms)] for row in rows]
    return Table(["window", "covered whole", "confidence p10", "median", "p90"], cells)


def _length_table(profile: Mapping[str, Any]) -> Table:
    lengths = profile["lengths"]
    row = [f"{profile['num_samples']:,} samples", *_numbers(lengths, dict.fromkeys(lengths, ",.0f"))]
    return Table(["supervised tokens", *lengths], [row])


def _setting_table(settings: Sequence[Mapping[str, Any]]) -> Table:
    forms = {"effective_share": ".3f", "largest_share": ".2e", "capped_share": ".1%"}
    forms |= {"weight_p10": ".2f", "weight_p50": ".2f", "weight_p90": ".2f"}
    rows: list[list[Cell]] = [[row["name"], *_numbers(row, forms)] for row in settings]
    head = ["setting", "effective share", "largest share", "cut by the cap", "p10", "median", "p90"]
    return Table(head, rows, "Starting weights of all settings", is_open=False)


def _token_table(rows: Sequence[Mapping[str, Any]], below: float) -> Table:
    forms = {"mean": ".3f", "effective_share": ".3f", "low_share": ".1%", "zero_share": ".1%"}
    cells: list[list[Cell]] = [[row["name"], *_numbers(row, forms)] for row in rows]
    head = ["form", "mean weight", "effective share of the tokens", f"weight where p < {below:g}", "weight 0"]
    return Table(head, cells, "Token weights at the start; `prior` starts as the `power` of its exponent does")


def _run_table(low: Mapping[str, float]) -> Table:
    levels = (10, 50, 90)
    rows: list[list[Cell]] = [
        ["share of a sample's tokens", *_numbers(low, {f"share_p{level}": ".1%" for level in levels})],
        ["longest run, tokens", *_numbers(low, {f"longest_run_p{level}": ".0f" for level in levels})],
    ]
    return Table([f"tokens with p < {low['below']:g}", "p10", "median", "p90"], rows)


def _near_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    shown = rows[:_NEAREST]
    cells: list[list[Cell]] = [
        [
            row["a"],
            row["b"],
            Number.of(row["moved"], ".2%"),
            "" if (rank := row["rank_correlation"]) is None else Number.of(rank, ".4f"),
        ]
        for row in shown
    ]
    title = f"Different runs that start nearly alike, nearest first ({len(shown)} of {len(rows)} pairs); they are no duplicates for that"
    return Table(
        ["setting", "setting", "share of the weight that differs", "rank correlation"], cells, title, is_open=False
    )


def _drift_table(drift: Mapping[str, Mapping[str, float]]) -> Table:
    forms = {"moved": ".3f", "rank_correlation": ".3f"}
    cells: list[list[Cell]] = [[name, *_numbers(row, forms)] for name, row in drift.items()]
    return Table(
        ["setting", "share of the weight that moved", "rank correlation"], cells, "How far the weights have moved"
    )


def to_text(profile: Profile) -> str:
    """For a terminal: the findings and the table of windows."""
    return "\n".join([*profile.findings, "", as_text(_window_table(profile.windows).texts(), num_left=0)])


def next_steps(profile: Profile, out: Path, beside: Path | None) -> str:
    """For a terminal: the search space that the profile made or rewrote, what it lacks, and the next commands.

    Args:
        out: folder of the profile.
        beside: the space that `bft-ray init` wrote for the config, whether or not this profile has rewritten it.
    """
    made = profile.rewritten
    path = out / "search_space.yaml" if made is None else made.path
    lines = [f"space     {path}"]
    if made is not None and made.changes:
        lines[0] += f" (rewritten; what it was: {path.name}.before)"
        lines += [f"          {change}" for change in made.changes]
    elif made is not None:
        lines[0] += " (as it was: its windows, epsilons and caps are what this data calls for)"
    elif beside is not None:
        lines.append(f"          {beside} stays as it is: this profile is of other settings than its config's")
    if made is None:
        lines += [f"          {line[2:]}" for line in profile.proposal.splitlines() if line.startswith("# ")]
    command = f"bft-ray search {shlex.quote(str(path))}"
    return "\n".join([*lines, f"next      {command} --dry-run", f"          {command}"])
