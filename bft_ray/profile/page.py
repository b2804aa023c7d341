"""The profile as one HTML page that needs nothing beside it, and as text for a terminal."""

from __future__ import annotations

import base64
import html
import io
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bft_ray.profile.result import Profile

_NEAREST = 20  # pairs on the page; the JSON has all
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .15rem .7rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f6f8; }
img { max-width: 100%; } code { background: #f4f6f8; padding: 0 .25rem; } pre { background: #f4f6f8; padding: .7rem; }
"""


def to_html(profile: Profile, pictures: dict[str, bytes]) -> str:
    """One page: what was found, in words, pictures and tables; only names of settings, no text of the data."""
    parts = [f"<h1>Window profile of {html.escape(profile.title)}</h1>"]
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in profile.findings]
    for name, text in (("lengths", "Lengths"), ("windows", "Windows"), ("tokens", "Tokens")):
        parts += [f"<h2>{text}</h2>", _image(pictures[name], text)]
    parts.append(_table(["window", "covered whole", "confidence p10", "median", "p90"], _window_rows(profile)))
    parts += ["<h2>Starting weights</h2>", _image(pictures["settings"], "effective share of the samples")]
    header = ["setting", "effective share", "largest share", "cut by the cap", "p10", "median", "p90"]
    parts.append(_table(header, _setting_rows(profile)))
    parts += ["<h2>Token weights</h2>", "<p>A `prior` weight starts as the power of its exponent does.</p>"]
    below = f"{profile.stretches.below:g}"
    header = ["form", "mean weight", "effective share of the tokens", f"weight where p < {below}", "weight 0"]
    parts.append(_table(header, _token_rows(profile)))
    parts += [
        "<h2>Hard stretches</h2>",
        _image(pictures["stretches"], "share and longest run of low-confidence tokens"),
    ]
    parts += ["<h2>Which settings differ</h2>", _image(pictures["ranks"], "rank correlations")]
    if equal := [group for group in profile.equal if len(group) > 1]:
        names = [", ".join(profile.settings[index]["name"] for index in group) for group in equal]
        parts.append("<p>The same run at every step, so one of each is enough:</p>")
        parts.append("<ul>" + "".join(f"<li>{html.escape(name)}</li>" for name in names) + "</ul>")
    if profile.near:
        shown = profile.near_rows(_NEAREST)
        parts.append(
            f"<p>Different runs that start nearly alike, nearest first ({len(shown)} of {len(profile.near)} pairs); "
            "they are no duplicates for that:</p>"
        )
        parts.append(
            _table(["setting", "setting", "share of the weight that differs", "rank correlation"], _near(shown))
        )
    if profile.drift:
        parts += ["<h2>How far the weights have moved</h2>"]
        rows = [[name, f"{row['moved']:.3f}", f"{row['rank_correlation']:.3f}"] for name, row in profile.drift.items()]
        parts.append(_table(["setting", "share of the weight that moved", "rank correlation"], rows))
    parts += ["<h2>Proposed search space</h2>", f"<pre>{html.escape(profile.proposal)}</pre>"]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Window profile</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>"
    )


def to_text(profile: Profile) -> str:
    """For a terminal: the findings and the table of windows."""
    header = ["window", "covered whole", "confidence p10", "median", "p90"]
    rows = [header, *_window_rows(profile)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*profile.findings, "", *lines])


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


def png(figure: Any) -> bytes:
    """A figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _window_rows(profile: Profile) -> list[list[str]]:
    names = ("confidence_p10", "confidence_p50", "confidence_p90")
    return [
        [f"{row['window']:g}", f"{row['whole_share']:.1%}", *(f"{row[name]:.3f}" for name in names)]
        for row in profile.windows
    ]


def _setting_rows(profile: Profile) -> list[list[str]]:
    names = ("weight_p10", "weight_p50", "weight_p90")
    return [
        [
            row["name"],
            f"{row['effective_share']:.3f}",
            f"{row['largest_share']:.2e}",
            f"{row['capped_share']:.1%}",
            *(f"{row[name]:.2f}" for name in names),
        ]
        for row in profile.settings
    ]


def _token_rows(profile: Profile) -> list[list[str]]:
    return [
        [
            row["name"],
            f"{row['mean']:.3f}",
            f"{row['effective_share']:.3f}",
            f"{row['low_share']:.1%}",
            f"{row['zero_share']:.1%}",
        ]
        for row in profile.token_weights
    ]


def _near(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [row["a"], row["b"], f"{row['moved']:.2%}", "" if (rank := row["rank_correlation"]) is None else f"{rank:.4f}"]
        for row in rows
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(header, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _image(content: bytes, text: str) -> str:
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
