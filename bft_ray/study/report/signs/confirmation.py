"""What the confirmation shows beside its choice; `bft_no_token` below `sft` is among the method's own failures."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from bft_ray.config.metrics import format_value, higher_is_better
from bft_ray.page.model import Finding
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import DEFAULT
from bft_ray.study.confirm.candidates import sources
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.records.ranking import tuned
from bft_ray.study.records.record import Records, mean
from bft_ray.study.records.store import BASELINES, CONFIRMATION
from bft_ray.study.report.arms import signed, size

_LEVEL = 0.01  # of the test of variances
_NOISE, _FEWEST_SEEDS = 0.05, 3  # of a comparison of two arms


def unstable_seeds(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """An arm whose runs differ more between seeds than those of the other arms (F test, Bonferroni over arms)."""
    arms: dict[str, list[float]] = {}
    for record in parts.get(CONFIRMATION, ()):
        if record.value is not None and not record.duplicate_of:
            arms.setdefault(record.extra.get("arm", record.name), []).append(record.value)
    arms = {name: values for name, values in arms.items() if len(values) > 2}
    if len(arms) < 3:
        return None
    worst: tuple[float, str, float, float] | None = None
    for name, values in arms.items():
        others = [other for key, other in arms.items() if key != name]
        freedom = sum(len(other) - 1 for other in others)
        pooled = sum((len(other) - 1) * float(np.var(other, ddof=1)) for other in others) / freedom
        own = float(np.var(values, ddof=1))
        if pooled <= 0 or own <= 0:
            continue
        p = float(stats.f.sf(own / pooled, len(values) - 1, freedom)) * len(arms)
        if p < _LEVEL and (worst is None or p < worst[0]):
            worst = (p, name, math.sqrt(own), math.sqrt(pooled))
    if worst is None:
        return None
    _, name, sd, usual = worst
    return Finding(
        "Unstable: seeds of one arm lie far apart",
        f"The runs of `{name}` have a standard deviation of {sd:.2g} over seeds, those of the other arms {usual:.2g}. "
        "Some of its runs may collapse.",
        "Do not train it once and trust the result: lower its optimizer.learning_rate, set or lower loss.weight_cap, "
        "or raise loss.epsilon, so that no few samples carry the batch.",
    )


def no_token_below_sft(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Sample weights without token weights do worse than no weights at all, beyond the noise of the confirmation's seeds
    (paired t, one-sided). The search alone shows no such thing: it has one seed, and the best of many trials.
    """
    metric = space.objective.metric
    values = _confirmed_by_method(parts, space)
    if not {"bft_no_token", "sft"} <= set(values):
        return None
    own, other = values["bft_no_token"], values["sft"]
    seeds = sorted(own.keys() & other.keys())
    sign = 1 if higher_is_better(metric) else -1
    difference = [sign * (own[seed] - other[seed]) for seed in seeds]
    if len(seeds) < _FEWEST_SEEDS or np.ptp(difference) == 0 or np.mean(difference) >= 0:
        return None
    if stats.ttest_1samp(difference, 0.0, alternative="less").pvalue > _NOISE:
        return None
    shown = [format_value(metric, mean([values[name][seed] for seed in seeds])) for name in ("bft_no_token", "sft")]
    return Finding(
        "`bft_no_token` is below `sft`",
        f"{metric} {shown[0]} against {shown[1]}, beyond the noise of {len(seeds)} seeds. Sample weights alone raise the "
        "samples that the model is least sure of, and here these teach it little: noise, wrong labels, or facts that it "
        "cannot learn from so few rows.",
        "Keep a token weight (`bft`, `bft_inverse`, `bft_group`). Look at the hardest items for wrong labels. "
        "With `bft_inverse`, raise loss.epsilon or lower loss.weight_cap.",
    )


def sft_wins(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Ordinary fine-tuning beats BFT."""
    if choice is None or choice.champion != "sft":
        return None
    return Finding(
        "Ordinary fine-tuning wins",
        "`sft` beats the default beyond noise. BFT trusts what the model already gives some probability; where a base "
        "model lacks the knowledge, or has much to learn and little to overfit, that holds it back.",
        "Train with `sft`. BFT may win with a base model that knows the field: that is another study. Neither fewer rows "
        "nor more passes are shown to help it (docs/what-we-measured.md).",
    )


def too_small(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """The best candidate is ahead, within noise, and the study could not have shown a gain of that size."""
    best = choice.best_candidate if choice is not None and choice.verdict == "default" else None
    if choice is None or best is None or best.gain is None:
        return None
    gain = best.gain
    if gain.gain <= 0 or not gain.has_spread or math.isnan(gain.detectable) or gain.detectable <= gain.gain:
        return None
    times = (gain.detectable / gain.gain) ** 2
    by_seeds, by_items = gain.half_seeds, gain.half_items
    which = "items" if math.isnan(by_seeds) or by_items <= by_seeds else "seeds"
    return Finding(
        "Too small to show a gain of this size",
        f"`{best.name}` is ahead of the default by {signed(gain.gain)}; this study shows gains from "
        f"{size(gain.detectable)} on in {gain.shows_in} cases.",
        f"More {which} help most here. To show so small a gain, seeds times items would have to be about "
        f"{times:.0f} times as many.",
    )


def flattered(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """The search showed a larger gain of its best candidate than the confirmation allows."""
    best = choice.best_candidate if choice is not None else None
    if choice is None or best is None or best.gain is None or not best.gain.has_spread:
        return None
    source = sources(parts).get(best.name)
    default = tuned(parts.get(BASELINES, ()), space.objective.metric).get(DEFAULT)
    if source is None or default is None or source.value is None or default.value is None:
        return None
    sign = 1 if higher_is_better(space.objective.metric) else -1
    seen = sign * (source.value - default.value)
    if seen <= best.gain.high:
        return None
    return Finding(
        "The search flattered its pick",
        f"`{best.name}` gained {signed(seen)} in the search, and {signed(best.gain.gain)} in the confirmation, "
        f"{signed(best.gain.high)} at most: it was picked partly by luck.",
        "Trust the confirmation. A larger validation split, or several `seeds` a trial, lets the search pick better.",
    )


def _confirmed_by_method(parts: Records, space: SearchSpace) -> dict[str, dict[int, float]]:
    """Method -> seed -> value, of its best arm in the confirmation."""
    overrides = {one.name: one.overrides.get("loss.method") for one in space.baselines}
    arms: dict[str, dict[str, dict[int, float]]] = {}
    for record in parts.get(CONFIRMATION, ()):
        arm = record.extra.get("arm", record.name)
        method = overrides.get(arm) or record.assignment.get("loss.method")
        if record.value is not None and method is not None:
            arms.setdefault(method, {}).setdefault(arm, {})[record.seeds[0]] = record.value
    pick = max if higher_is_better(space.objective.metric) else min
    return {method: pick(own.values(), key=lambda runs: mean(list(runs.values()))) for method, own in arms.items()}
