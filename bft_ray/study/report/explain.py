"""A choice as text: what won and by how much, what the study could have detected, and how wrong it could still be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bft_ray.config.metrics import format_value, higher_is_better
from bft_ray.page.model import listed
from bft_ray.stats.comparison import Comparison
from bft_ray.study.confirm.choice import Arm, Choice
from bft_ray.study.report.arms import ROUNDING, arms_table, gain_text, markdown, signed, size
from bft_ray.study.report.claims import claims_sentence

_NAMED = 8  # arms that a sentence names
_SEEMS = 2.0  # standard errors from which on a gain seems to be one
_FEW_GROUPS = 20  # of fewer, errors that hold cost much power (docs/statistics.md)


def explain(choice: Choice) -> str:
    """Markdown: the verdict as the first sentence, a table of all arms, and the limits of the evidence.

    Gains are in the metric's unit, above 0 for better, whichever way the metric points.
    """
    parts = [verdict(choice)]
    if choice.num_items:
        parts += [measured(choice), markdown(arms_table(choice))]
    parts.append(claims_sentence(choice.claims))
    parts += [" ".join(doubts(choice)), *limits(choice)]
    return "\n\n".join(part for part in parts if part) + "\n"


def limits(choice: Choice) -> list[str]:
    """What else to know of the choice, Markdown."""
    found = [_second(choice), _missing(choice), _left_out(choice), _waiver(choice), _few_groups(choice)]
    return [text for text in found if text]


def verdict(choice: Choice) -> str:
    """The first sentence, Markdown: what won, and by how much."""
    if choice.champion is None:
        return f"**Nothing was chosen**: {choice.reason}."
    arm = choice.arm(choice.champion)
    if choice.verdict == "default":
        best = choice.best_candidate
        text = f"**The default `{arm.name}` stays**: {choice.reason}"
        if best is not None and best.gain is not None:
            is_same = not best.gain.has_spread and best.gain.gain == 0
            text += f"; the best candidate, `{best.name}`, " + (
                "is identical to it" if is_same else f"differs from it by {gain_text(best.gain)}"
            )
        return f"{text}.{_ahead(choice)}"
    gain = f", by {gain_text(arm.gain)} over the default" if arm.gain else ""
    if choice.verdict == "baseline":
        other = "the default" if arm.name.startswith("bft") else "BFT"  # its published forms are baselines as well
        return f"**The baseline `{arm.name}` wins, not {other}**{gain}: {choice.reason}."
    return f"**`{arm.name}` wins**{gain}: {choice.reason}.{_ahead(choice)}"


def _ahead(choice: Choice) -> str:
    """A sentence on baselines with a better mean than the champion; it must follow the verdict at once."""
    own = choice.arm(choice.champion or "").mean
    sign = 1 if higher_is_better(choice.plan.metric) else -1
    ahead = [a for a in choice.arms if a.kind == "baseline" and not a.excluded and a.mean is not None]
    names = [
        f"`{a.name}`" for a in ahead if own is not None and a.mean is not None and sign * (a.mean - own) > ROUNDING
    ]
    if not names:
        return ""
    if choice.verdict == "default":
        return f" But {listed(names)} had a better mean than the default, within noise."
    return f" But {listed(names)} had a better mean than it, without beating both the default and it beyond noise."


def measured(choice: Choice) -> str:
    """What was measured, and how the table of the arms is read."""
    plan = choice.plan
    better = "higher" if higher_is_better(plan.metric) else "lower"
    shared = _num_groups(choice)
    items = f"{choice.num_items:,} items of the confirmation split" + (
        f" that share {shared:,} groups" if shared else ""
    )
    return (
        f"Measured: {plan.metric} ({better} is better) on {items}, "
        f"{len(plan.seeds)} paired seeds. Gains over `{plan.default}` are positive for better; the intervals hold for "
        f"all {sum(arm.gain is not None for arm in choice.arms)} arms together at {1 - plan.alpha:.0%}. p asks, one-sided "
        f"and for all of them together, whether there is a gain; best is the probability that none of the others is better."
    )


def doubts(choice: Choice) -> list[str]:
    """Sentences on what the data do not rule out; [] where nothing was chosen."""
    if choice.champion is None:
        return []
    arm = choice.arm(choice.champion)
    sentences = _default_doubt(choice) if choice.verdict == "default" else _winner_doubt(choice, arm)
    if not sentences:
        return []
    lines = [f"**How far this could still be wrong**, as far as intervals of {1 - choice.plan.alpha:.0%} tell."]
    lines += sentences
    lines += [
        f"Over `{c.against}` it gains {gain_text(c)}." for c in choice.against if c.against != choice.plan.default
    ]
    lines += [_not_told(choice), _rare(choice)]
    lines.append("All of it is about this data, this base model and this budget.")
    return [line for line in lines if line]


def _default_doubt(choice: Choice) -> list[str]:
    gains = {arm.name: arm.gain for arm in choice.arms if arm.gain and not arm.excluded and arm.gain.has_spread}
    if not gains:
        return []
    name, most = max(gains.items(), key=lambda pair: pair[1].high)
    least = min((gain.detectable for gain in gains.values() if math.isfinite(gain.detectable)), default=math.nan)
    if most.high > 0:
        first = f"`{name}` could be better than the default by up to {size(most.high)}."
    else:
        first = "The intervals of all arms end at or below 0: none is likely to be better than the default."
    missed = (
        ""
        if math.isnan(least)
        else (
            f"A true gain below {size(least)} would have been missed more often than in about 2 of 10 such studies, "
            "so no difference shown is not the same as none."
        )
    )
    skewed = [gain for gain in gains.values() if gain.is_skewed and gain.gain > _SEEMS * gain.se]
    return [first, missed, *map(_skew, skewed[:1]), _cause(choice, name, most)]


def _winner_doubt(choice: Choice, arm: Arm) -> list[str]:
    gain = arm.gain
    if gain is None:
        return []
    if not gain.has_spread:
        return [
            "All its items and seeds differ from the default's by the same, so there is no noise to compare it with."
        ]
    span = (
        f"The true gain over the default may be as small as {signed(gain.low)} or as large as {signed(gain.high)}"
        + (
            "."
            if math.isnan(gain.detectable)
            else f"; a gain of {size(gain.detectable)} shows in {gain.shows_in} such studies."
        )
    )
    return [span, _rivals(choice, arm), _cause(choice, arm.name, gain)]


def _skew(gain: Comparison) -> str:
    """A sentence on a gain that depends on rare items, which the split may lack."""
    return (
        f"`{gain.name}` seems better, but most of its items gain a little and few lose much: with so few items the gain may be chance, "
        "and the default stays. More items, or a bounded metric such as token accuracy, would show which."
    )


def _not_told(choice: Choice) -> str:
    """A sentence on the set of arms that holds the best one."""
    if len(choice.not_told) < 2:
        return ""
    return f"The data do not separate {_names(choice.not_told)}; the best is one of these with {1 - choice.plan.alpha:.0%}."


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} others"


def _rare(choice: Choice) -> str:
    """A sentence on what so few runs cannot show: an event of a share q of all runs is absent from S runs with
    probability (1 - q)^S.
    """
    count = len(choice.plan.seeds)
    share = 1 - 0.05 ** (1 / count)
    return f"What happens to up to {share:.0%} of all runs, such as a collapse, could be absent from {count} seeds."


def _rivals(choice: Choice, champion: Arm) -> str:
    """A sentence on the arms that the champion was not compared with, and is not shown to be better than."""
    compared = {comparison.against for comparison in choice.against}
    near = [
        f"`{arm.name}`"
        for arm in choice.arms
        if arm.gain
        and champion.gain
        and arm is not champion
        and arm.name not in compared
        and not arm.excluded
        and arm.gain.has_spread
        and arm.gain.high >= champion.gain.low
    ]
    if not near:
        return ""
    return f"That it is better than {', '.join(near)} is not shown: their intervals overlap with its own."


def _cause(choice: Choice, name: str, gain: Comparison) -> str:
    """A sentence on how much narrower the interval would be with more seeds or more items."""
    seeds, items = len(choice.plan.seeds), choice.num_items
    return (
        f"The interval of `{name}` reaches {size((gain.high - gain.low) / 2)} to each side; with {2 * seeds} seeds it would be about "
        f"{size(gain.half_seeds)}, with {2 * items:,} items {size(gain.half_items)}."
    )


def _second(choice: Choice) -> str:
    limit = choice.plan.second
    if limit is None:
        return ""
    front = ", ".join(f"`{arm.name}`" for arm in choice.arms if arm.on_front)
    return (
        f"Second objective: {limit.metric}, {format_value(limit.metric, limit.before)} before; an arm may be worse than "
        f"that by {format_value(limit.metric, limit.largest_loss)} at most: shown over seeds for an arm that is to win, and not "
        "refuted for the default. "
        f"Pareto front: {front or 'empty'}. The choice is made among the arms that keep the limit."
    )


def _missing(choice: Choice) -> str:
    if not choice.num_missing:
        return ""
    return f"{choice.num_missing} items lack a verdict in some run and are left out of all."


def _left_out(choice: Choice) -> str:
    lines = [f"- `{arm.name}`: {arm.excluded}" for arm in choice.arms if arm.excluded]
    return "Not eligible:\n\n" + "\n".join(lines) if lines else ""


def _waiver(choice: Choice) -> str:
    count = len(choice.plan.seeds)
    return f"Only {count} seeds: a demonstration, not evidence (at least 5 are asked for)." if count < 5 else ""


def _num_groups(choice: Choice) -> int:
    return len({name for own in choice.plan.groups.values() for name in own})


def _few_groups(choice: Choice) -> str:
    count = _num_groups(choice)
    if not 0 < count < _FEW_GROUPS:
        return ""
    return f"Only {count} groups: too few to tell how far groups differ, so that a small gain does not show."
