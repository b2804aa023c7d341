"""Signs of trouble in the records of a study, each with its remedy. Every diagnosis is a pure function of the records.

The failure signatures of Balanced Fine-Tuning are among them: `bft_no_token` below `sft`, unstable runs, an early plateau.
Where noise could make a sign, a test decides (its level is named); so a sound study shows few false ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from bft_ray.config.metrics import format_value, higher_is_better
from bft_ray.page.model import Finding
from bft_ray.space.definition import DEFAULT, LEARNING_RATE, Asha, SearchSpace
from bft_ray.study.confirm.choose import Choice
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.leaderboard import ranked, tuned, value_text
from bft_ray.study.records.record import TrialRecord, mean
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from bft_ray.study.report import agreement, cards
from bft_ray.study.report.arms import signed, size

Parts = Mapping[str, Sequence[TrialRecord]]

_LEVEL = 0.01  # of a test for a sign
_NOISE, _FEWEST_SEEDS = 0.05, 3  # of a comparison of two arms
_FEW = 5  # trials; of fewer no sign is told
_NO_NUMBER = ("not finite", "non-finite", "nan", " inf")
_MANY_FAILED, _MANY_DUPLICATES, _LITTLE = 0.1, 0.4, 0.1
_LONGEST = 300  # letters of a reason
_TOP = 3  # trials that must agree on an end of a range


def diagnose(parts: Parts, space: SearchSpace, choice: Choice | None) -> list[Finding]:
    """What the records show, most urgent first; [] where nothing does.

    Args:
        parts: part -> its trials.
        choice: of the confirmation; None: there was none, or not yet.
    """
    found = (check(parts, space, choice) for check in CHECKS)
    return [finding for finding in found if finding is not None]


# ---- runs that broke ---------------------------------------------------------------------------------------------------


def not_finite(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Trials whose loss or metric was no number: training is unstable at these settings."""
    lost = [
        one for one in _own(parts) if one.state == "failed" and any(word in one.reason.lower() for word in _NO_NUMBER)
    ]
    if not lost:
        return None
    rates = [record.assignment[LEARNING_RATE] for record in lost if LEARNING_RATE in record.assignment]
    where = f", at learning rates from {value_text(min(rates))}" if rates else ""
    return Finding(
        "Unstable: trials ended without a number",
        f"{len(lost)} of {len(_own(parts))} trials failed because a loss or a metric was not finite{where}. For "
        f"example `{lost[0].id}`: "
        f"{lost[0].reason[:_LONGEST]}",
        f"Leave out learning rates from {value_text(min(rates))} on, or lengthen schedule.warmup_ratio."
        if rates
        else "Lower optimizer.learning_rate, or lengthen schedule.warmup_ratio; with half precision, try "
        "model.dtype=bf16.",
    )


def failures(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """More than a tenth of the trials failed for other reasons."""
    own = [record for record in _own(parts) if record.is_finished]
    lost = [
        record for record in own if record.state == "failed" and not any(w in record.reason.lower() for w in _NO_NUMBER)
    ]
    if len(lost) <= _MANY_FAILED * len(own):
        return None
    reason, times = Counter(record.reason for record in lost).most_common(1)[0]
    return Finding(
        "Many trials failed",
        f"{len(lost)} of {len(own)} trials failed; {times} of them: {reason[:_LONGEST]}",
        "Mend the cause and give the study another `name`: `bft-ray doctor` with its config finds most causes "
        "before they cost time.",
    )


def unstable_seeds(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
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
        f"The runs of `{name}` have a standard deviation of {sd:.2g} over seeds, those of the other arms "
        f"{usual:.2g}. Some of its runs may "
        "collapse.",
        "Do not train it once and trust the result: lower its optimizer.learning_rate, set or lower "
        "loss.weight_cap, or raise loss.epsilon, so "
        "that no few samples carry the batch.",
    )


# ---- the paper's signatures --------------------------------------------------------------------------------------------


def no_token_below_sft(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
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


def sft_wins(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Ordinary fine-tuning beats BFT."""
    if choice is None or choice.champion != "sft":
        return None
    return Finding(
        "Ordinary fine-tuning wins",
        "`sft` beats the default beyond noise. BFT trusts what the model already gives some probability; where "
        "a base model lacks the knowledge, or "
        "has much to learn and little to overfit, that holds it back.",
        "Train with `sft`. BFT may win with a base model that knows the field, with fewer rows, or with more "
        "passes over them: that is another study.",
    )


def plateau(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Most trials improve hardly after half of their steps."""
    gains = _late_gains(parts.get(SEARCH, ()), space)
    if len(gains) < _FEW:
        return None
    shares = [late / whole for whole, late in gains if whole > 0]
    if len(shares) < _FEW or float(np.median(shares)) >= _LITTLE or _falls(gains):
        return None
    return Finding(
        "An early plateau",
        f"Half of the {len(shares)} trials that ran to their end made at most "
        f"{max(float(np.median(shares)), 0):.0%} of their improvement after their "
        "last rung.",
        "Fewer steps (budget.steps) would find the same; spend them on more trials, seeds or items. If the "
        "level is too low, the limit is the "
        "data or the base model, not the training time.",
    )


def falling(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """More trials end below their last rung than chance allows: they train too long (sign test)."""
    gains = _late_gains(parts.get(SEARCH, ()), space)
    if len(gains) < _FEW or not _falls(gains):
        return None
    count = sum(late < 0 for _, late in gains)
    return Finding(
        "Trials get worse towards their end",
        f"{count} of {len(gains)} trials that ran to their end had a better {rung_metric(space)} at their last "
        f"rung: they learn the training rows by heart.",
        "Fewer steps or epochs, a lower learning rate, or more rows.",
    )


def rising(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Most trials make much of their improvement after their last rung: they are cut short."""
    gains = [(whole, late) for whole, late in _late_gains(parts.get(SEARCH, ()), space) if whole > 0]
    if len(gains) < _FEW or float(np.median([late / whole for whole, late in gains])) < 0.5:
        return None
    share = float(np.median([late / whole for whole, late in gains]))
    return Finding(
        "Trials still rise at their end",
        f"Half of the {len(gains)} trials that ran to their end made at least {share:.0%} of their improvement "
        f"after their last rung.",
        "More steps (budget.steps) under another `name`: the order of settings may change when they have learned.",
    )


# ---- the search --------------------------------------------------------------------------------------------------------


def blind_rungs(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Rungs at which all trials had one value."""
    blind = agreement.blind_rungs(parts.get(SEARCH, ())) if isinstance(space.scheduler, Asha) else {}
    if not blind:
        return None
    steps = ", ".join(f"step {step} ({count} trials)" for step, count in blind.items())
    return Finding(
        "Early stopping had nothing to choose by",
        f"At {steps} all values of {rung_metric(space)} were the same, so the first trial was promoted and "
        f"others were stopped.",
        "Take a scheduler.metric that moves, such as validation/token_accuracy, or a later scheduler.grace_steps.",
    )


def misleading_rungs(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """The order at a rung does not show the order at the end."""
    search = parts.get(SEARCH, ())
    stopped = {
        record.last_rung[0]
        for record in search
        if record.state == "pruned" and record.last_rung and not record.duplicate_of
    }
    if not isinstance(space.scheduler, Asha) or not stopped:
        return None
    orders = agreement.by_rung(search, rung_metric(space), space.objective.metric)
    bad = {step: order for step, order in orders.items() if step in stopped and order.low <= 0}
    if not bad:
        return None
    step, order = next(iter(bad.items()))
    return Finding(
        "Early stopping may have lost a winner",
        f"At step {step} the order of trials agrees with that at the end by Kendall's tau {order.tau:.2f} "
        f"[{order.low:.2f}, {order.high:.2f}], of "
        f"{order.num_trials} trials: it may be no better than chance.",
        "A later scheduler.grace_steps, or `scheduler: {kind: none}`; then a trial costs more and none is lost.",
    )


def at_an_end(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """The best trials all lie at one end of a range: the best value may lie beyond it."""
    own = [
        one
        for one in ranked(parts.get(SEARCH, ()), space.objective.metric)
        if one.state == "complete" and not one.duplicate_of
    ]
    if len(own) < 2 * _TOP + 2:
        return None
    for name, parameter in space.parameters.items():
        known = [value for value in parameter.finite() or parameter.ends() if _is_number(value)]
        values = [record.assignment.get(name) for record in own[:_TOP]]
        if (
            (len(set(known)) < 3 and parameter.finite() is not None)
            or not all(map(_is_number, values))
            or len(known) < 2
        ):
            continue
        for end, word in ((min(known), "lower"), (max(known), "upper")):
            if all(
                _is_at(float(value or 0.0), float(end), known, getattr(parameter, "log", False)) for value in values
            ):
                return Finding(
                    f"The best trials lie at the {word} end of {name}",
                    f"The best {_TOP} of {len(own)} trials have {name} {', '.join(map(value_text, values))}; "
                    f"the range ends at {value_text(end)}.",
                    f"Widen parameters.{name} beyond {value_text(end)} under another `name`.",
                )
    return None


def duplicates(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """Many trials were the same run as an earlier one."""
    search = [record for record in parts.get(SEARCH, ()) if record.is_finished]
    same = [record for record in search if record.duplicate_of]
    if len(search) < _FEW or len(same) <= _MANY_DUPLICATES * len(search):
        return None
    reason = Counter(record.duplicate_because for record in same).most_common(1)[0][0]
    return Finding(
        "Much of the space is the same run",
        f"{len(same)} of {len(search)} trials repeat another one exactly; most often: {reason}",
        "`bft-ray profile` with the config writes a search space without what cannot differ on this data.",
    )


def unmoved(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """All trials have one value: the metric cannot tell settings apart."""
    values = [
        one.value
        for one in [*parts.get(SEARCH, ()), *parts.get(BASELINES, ())]
        if one.value is not None and not one.duplicate_of
    ]
    if len(values) < _FEW or max(values) - min(values) > 1e-9:
        return None
    return Finding(
        "The metric does not move",
        f"All {len(values)} trials have {space.objective.metric} {format_value(space.objective.metric, values[0])}.",
        "Take a continuous metric as objective.metric, such as choices/probability or "
        "validation/token_accuracy, or train longer.",
    )


# ---- the confirmation --------------------------------------------------------------------------------------------------


def too_small(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
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


def flattered(parts: Parts, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """The search showed a larger gain of its best candidate than the confirmation allows."""
    best = choice.best_candidate if choice is not None else None
    if choice is None or best is None or best.gain is None or not best.gain.has_spread:
        return None
    trials = {record.id: record for own in parts.values() for record in own}
    sources = [
        trials.get(record.extra.get("of", ""))
        for record in parts.get(CONFIRMATION, ())
        if record.extra.get("arm") == best.name
    ]
    source = next((one for one in sources if one is not None and one.value is not None), None)
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
        f"{signed(best.gain.high)} at most: it was "
        "picked partly by luck.",
        "Trust the confirmation. A larger validation split, or several `seeds` a trial, lets the search pick better.",
    )


# ---- what they share ---------------------------------------------------------------------------------------------------

CHECKS: Sequence[Callable[[Parts, SearchSpace, Choice | None], Finding | None]] = (
    failures,
    not_finite,
    unmoved,
    unstable_seeds,
    no_token_below_sft,
    sft_wins,
    too_small,
    flattered,
    blind_rungs,
    misleading_rungs,
    falling,
    rising,
    plateau,
    at_an_end,
    duplicates,
    cards.differ,
)


def _own(parts: Parts) -> list[TrialRecord]:
    return [record for own in parts.values() for record in own if not record.duplicate_of]


def _confirmed_by_method(parts: Parts, space: SearchSpace) -> dict[str, dict[int, float]]:
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


def _late_gains(search: Sequence[TrialRecord], space: SearchSpace) -> list[tuple[float, float]]:
    """(improvement from the first rung to the end, that from the last rung to the end) of trials that ran to their end and
    were measured at two rungs or more.
    """
    metric = rung_metric(space)
    sign = 1 if higher_is_better(metric) else -1
    found = []
    for record in search:
        values = [value for value in record.rung_values.values() if math.isfinite(value)]
        if record.state == "complete" and not record.duplicate_of and metric in record.metrics and len(values) > 1:
            end = record.metrics[metric]
            found.append((sign * (end - values[0]), sign * (end - values[-1])))
    return found


def _falls(gains: Sequence[tuple[float, float]]) -> bool:
    moved = [late for _, late in gains if late != 0]
    worse = sum(late < 0 for late in moved)
    return bool(moved) and float(stats.binomtest(worse, len(moved), 0.5, "greater").pvalue) < _LEVEL


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_at(value: float, end: float, known: Sequence[float], is_log: bool) -> bool:
    """Whether a value is the end, or within a twentieth of the range from it."""
    low, high = float(min(known)), float(max(known))
    if is_log:
        low, high, value, end = (math.log(one) for one in (low, high, value, end))
    return abs(value - end) <= 0.05 * (high - low) + 1e-12
