"""A choice in words: what won and by how much, what could have been seen, and how far it could still be wrong."""

from __future__ import annotations

from bft_ray.metrics import format_value, higher_is_better
from bft_ray.search.choose import Arm, Choice
from bft_ray.search.confirm import Comparison


def explain(choice: Choice) -> str:
    """Markdown: the verdict as the first sentence, a table of all arms, and the limits of the evidence.

    Gains are in the metric's unit, above 0 for better, whichever way the metric points.
    """
    parts = [_verdict(choice)]
    if choice.num_items:
        parts += [_evidence(choice), _table(choice)]
    if choice.champion is not None:
        parts.append(_doubt(choice))
    parts += [_second(choice), _left_out(choice), _waiver(choice)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdict(choice: Choice) -> str:
    if choice.champion is None:
        return f"**Nothing was chosen**: {choice.reason}."
    arm = choice.arm(choice.champion)
    if choice.verdict == "default":
        best = choice.best_candidate
        text = f"**The default `{arm.name}` stays**: {choice.reason}"
        if best is not None and best.gain is not None:
            text += f"; the best candidate, `{best.name}`, differs from it by {_gain(best.gain)}"
        return f"{text}.{_ahead(choice)}"
    gain = f", by {_gain(arm.gain)} over the default" if arm.gain else ""
    if choice.verdict == "baseline":
        return f"**The baseline `{arm.name}` wins, not BFT**{gain}: {choice.reason}."
    return f"**`{arm.name}` wins**{gain}: {choice.reason}.{_ahead(choice)}"


def _ahead(choice: Choice) -> str:
    """A baseline that stands above the champion without winning must be said at once."""
    own = choice.arm(choice.champion or "").mean
    sign = 1 if higher_is_better(choice.plan.metric) else -1
    ahead = [a for a in choice.arms if a.kind == "baseline" and not a.excluded and a.mean is not None]
    names = [f"`{a.name}`" for a in ahead if own is not None and a.mean is not None and sign * (a.mean - own) > 0]
    if not names:
        return ""
    rule = "without beating the default and every candidate that beats it beyond noise"
    return f" But {' and '.join(names)} had a better mean still, {rule}."


def _evidence(choice: Choice) -> str:
    plan = choice.plan
    better = "higher" if higher_is_better(plan.metric) else "lower"
    return (
        f"Measured: {plan.metric} ({better} is better) on {choice.num_items:,} items of the confirmation split, "
        f"{len(plan.seeds)} paired seeds. Gains over `{plan.default}` are positive for better; the intervals hold for "
        f"all {max(len(choice.arms) - 1, 0)} arms together at {1 - plan.alpha:.0%} (each at {1 - choice.level:.2%})."
    )


def _table(choice: Choice) -> str:
    second = choice.plan.second
    header = ["arm", "kind", "mean", "gain", "interval", "detectable"] + ([second.metric, "front"] if second else [])
    lines = [_row(header), _row(["---"] * len(header))]
    for arm in choice.arms:
        name = f"**{arm.name}**" if arm.name == choice.champion else arm.name
        cells = [name, arm.kind, _value(arm.mean)]
        cells += _cells(arm.gain)
        if second:
            cells += ["" if arm.second is None else format_value(second.metric, arm.second), "yes" * arm.on_front]
        lines.append(_row(cells))
    return "\n".join(lines)


def _cells(gain: Comparison | None) -> list[str]:
    if gain is None:
        return ["", "", ""]
    return [_signed(gain.gain), _interval(gain), _size(gain.detectable)]


def _doubt(choice: Choice) -> str:
    """What the data still allow."""
    arm = choice.arm(choice.champion or "")
    lines = [f"**How far this could still be wrong**, as far as intervals of {1 - choice.plan.alpha:.0%} tell."]
    if choice.verdict == "default":
        rest = [other for other in choice.arms if other.gain is not None and not other.excluded]
        if not rest:
            return ""
        most = max(rest, key=lambda other: other.gain.high if other.gain else 0.0)
        least = min(other.gain.detectable for other in rest if other.gain)
        assert most.gain is not None
        if most.gain.high > 0:
            lines.append(f"`{most.name}` could be better than the default by up to {_size(most.gain.high)}.")
        else:
            lines.append("The intervals of all arms end at or below 0: none is likely to be better than the default.")
        lines.append(
            f"A true gain below {_size(least)} would have been missed more often than in 2 of 10 such studies, "
            "so no difference shown is not the same as none."
        )
        lines.append(_cause(most.gain))
    elif arm.gain is not None:
        lines.append(
            f"The true gain over the default may be as small as {_signed(arm.gain.low)} or as large as "
            f"{_signed(arm.gain.high)}; a gain of {_size(arm.gain.detectable)} shows in 8 of 10 such "
            "studies."
        )
        lines.append(_rivals(choice, arm))
        lines.append(_cause(arm.gain))
    lines += [f"Over `{c.against}` it gains {_gain(c)}." for c in choice.against if c.against != choice.plan.default]
    lines.append("All of it is about this data, this base model and this budget.")
    return " ".join(line for line in lines if line)


def _rivals(choice: Choice, champion: Arm) -> str:
    """Arms that it was not compared with, and is not shown to be better than."""
    compared = {comparison.against for comparison in choice.against}
    near = [
        f"`{arm.name}`"
        for arm in choice.arms
        if arm.gain
        and champion.gain
        and arm is not champion
        and arm.name not in compared
        and not arm.excluded
        and arm.gain.high >= champion.gain.low
    ]
    if not near:
        return ""
    return f"That it is better than {', '.join(near)} is not shown: their intervals overlap with its own."


def _cause(gain: Comparison) -> str:
    if gain.se == 0:
        return "All items and seeds differ by the same, so there is no noise to judge it by: look whether that can be."
    what = "more seeds" if gain.seed_share > 0.5 else "more items"
    return f"{gain.seed_share:.0%} of the variance lies between seeds: {what} would narrow it most."


def _second(choice: Choice) -> str:
    limit = choice.plan.second
    if limit is None:
        return ""
    front = ", ".join(f"`{arm.name}`" for arm in choice.arms if arm.on_front)
    return (
        f"Second objective: {limit.metric}, {format_value(limit.metric, limit.before)} before; an arm may be worse than "
        f"that by {format_value(limit.metric, limit.largest_loss)} at most (its mean, without regard to noise). "
        f"Pareto front: {front or 'empty'}. The choice is made among the arms that keep the limit."
    )


def _left_out(choice: Choice) -> str:
    lines = [f"- `{arm.name}`: {arm.excluded}" for arm in choice.arms if arm.excluded]
    return "Not eligible:\n\n" + "\n".join(lines) if lines else ""


def _waiver(choice: Choice) -> str:
    count = len(choice.plan.seeds)
    return f"Only {count} seeds: a demonstration, not evidence (at least 5 are asked for)." if count < 5 else ""


def _gain(gain: Comparison) -> str:
    return f"{_signed(gain.gain)} {_interval(gain)}"


def _interval(gain: Comparison) -> str:
    return f"[{_signed(gain.low)}, {_signed(gain.high)}]"


def _signed(value: float) -> str:
    return f"{value:+.2g}" if abs(value) < 0.001 else f"{value:+.4f}"


def _size(value: float) -> str:
    return _signed(value).removeprefix("+")


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
