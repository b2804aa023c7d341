"""The pictures of a profile, drawn only from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bft_ray.profile.result import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PICTURES = ("lengths", "tokens", "windows", "settings", "stretches", "ranks")
_BAND = ("confidence_p10", "confidence_p50", "confidence_p90")
_STYLES = ("-", "--", "-.", ":")  # of caps, from the smallest
_OF_CONFIDENCE = {"geometric": "black", "arithmetic": "grey"}
_LEGIBLE = 24  # settings whose names fit beside a matrix


def draw(profile: Profile) -> dict[str, Figure]:
    """Name -> figure, for each of PICTURES."""
    figures = (_lengths, _tokens, _windows, _settings, _stretches, _ranks)
    return {name: figure(profile) for name, figure in zip(PICTURES, figures, strict=True)}


def _figure(width: float = 7, height: float = 3.6) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _lengths(profile: Profile) -> Figure:
    figure, axes = _figure()
    lengths = profile.tokens.num_tokens
    bins = np.geomspace(max(lengths.min(), 1), lengths.max() + 1, 40)
    axes.hist(lengths, bins=bins, color="tab:blue", alpha=0.6)
    for row in profile.windows:
        if bins[0] <= row["window"] <= bins[-1]:
            axes.axvline(row["window"], color="black", linestyle=":", linewidth=1)
            axes.text(row["window"], axes.get_ylim()[1], f" {row['window']:g}", rotation=90, va="top", fontsize=8)
    axes.set(xscale="log", xlabel="supervised tokens of a sample (dotted: windows)", ylabel="samples")
    axes.set_title("A window longer than a sample covers it whole")
    return figure


def _tokens(profile: Profile) -> Figure:
    figure, axes = _figure()
    axes.hist(np.exp(profile.tokens.logp), bins=50, color="tab:blue", alpha=0.6)
    axes.set(xlabel="probability of a supervised token", ylabel="tokens", yscale="log")
    axes.set_title("How sure the model is, token by token")
    return figure


def _windows(profile: Profile) -> Figure:
    figure, axes = _figure()
    windows = [row["window"] for row in profile.windows]
    low, middle, high = ([row[name] for row in profile.windows] for name in _BAND)
    axes.fill_between(windows, low, high, color="tab:blue", alpha=0.2, label="10 % to 90 % of the samples")
    axes.plot(windows, middle, color="tab:blue", marker="o", label="median confidence")
    axes.plot(
        windows,
        [row["whole_share"] for row in profile.windows],
        color="tab:orange",
        marker=".",
        label="samples that the window covers whole",
    )
    axes.set(xscale="log", xlabel="window, tokens", ylabel="confidence, share", ylim=(0, 1.02))
    axes.set_xticks(windows, [f"{window:g}" for window in windows], minor=False)
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=8)
    axes.set_title("What a window sees")
    return figure


def _settings(profile: Profile) -> Figure:
    """A line for each form, epsilon (colour) and cap (style) over the windows; `complement` in black and grey."""
    figure, axes = _figure(height=4.2)
    lines: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in profile.settings:
        is_inverse = row["sample_weight"] == "inverse"
        own = (row["epsilon"], row["weight_cap"]) if is_inverse else (None, None)
        lines.setdefault((row["sample_weight"], row["confidence"], *own), []).append(
            (row["window"], row["effective_share"])
        )
    epsilons = sorted({key[2] for key in lines if key[2] is not None})
    caps = sorted({key[3] for key in lines if key[0] == "inverse"}, key=lambda cap: cap or np.inf)
    for key, points in lines.items():
        form, confidence, epsilon, cap = key
        if form == "complement":
            look = {"color": _OF_CONFIDENCE[confidence], "linewidth": 2}
            label = f"complement, {confidence}"
        else:
            look = {"color": f"C{epsilons.index(epsilon)}", "linestyle": _STYLES[caps.index(cap) % len(_STYLES)]}
            label = f"inverse e{epsilon:g}" + (f" c{cap:g}" if cap is not None else ", no cap")
        axes.plot(*zip(*sorted(points), strict=True), label=label, marker=".", **look)
    windows = sorted({row["window"] for row in profile.settings})
    axes.set(xscale="log", xlabel="window, tokens", ylabel="effective share of the samples", ylim=(0, 1.02))
    axes.set_xticks(windows, [f"{window:g}" for window in windows])
    axes.set_xticks([], minor=True)
    axes.legend(fontsize=6, ncols=3)
    axes.set_title("How even the starting weights are (1: all samples weigh the same)")
    return figure


def _stretches(profile: Profile) -> Figure:
    """A point a sample, a little apart where many have the same numbers."""
    figure, axes = _figure()
    low = profile.stretches
    shaken = low.longest + np.random.default_rng(0).uniform(-0.3, 0.3, len(low.longest))
    axes.scatter(low.share, shaken, s=6, alpha=0.4, color="tab:blue")
    axes.set(xlabel=f"share of tokens with a probability below {low.below:g}", ylabel="longest run of them, tokens")
    axes.set_yscale("symlog")
    axes.set_title("Where the model is unsure: spread (low) or in one stretch (high), a point a sample", fontsize=10)
    return figure


def _ranks(profile: Profile) -> Figure:
    names = [profile.settings[index]["name"] for index in profile.distinct]
    figure, axes = _figure(7, 6.2)
    shown = axes.imshow(profile.ranks, vmin=-1, vmax=1, cmap="RdBu")
    step = max(1, len(names) // _LEGIBLE)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90, fontsize=6)
    axes.set_yticks(range(0, len(names), step), names[::step], fontsize=6)
    figure.colorbar(shown, label="rank correlation of the starting weights")
    axes.set_title("Which settings order the samples alike (grey: all weights equal)", fontsize=10, loc="left")
    axes.set_facecolor("lightgrey")
    return figure
