"""The champion of a study: a pure function of the records of its confirmation.

Gains are over the default (`bft` at window 256, as published). "Beyond noise" means that the one-sided test of
`bft_ray.stats.simultaneous` shows a difference; its level holds for all comparisons together. It shows none where there is
no noise to compare with, or where a gain depends on the skewness of too few items. In this order:

1. An arm counts if every seed of its runs is there, none failed, and all its scores are finite numbers. A run that
   failed is never a score. Items without a verdict (of a judge) are left out where at least 99 % of all are there.
   With a second objective, an arm must be shown to keep the limit: the upper bound of its mean loss against the base
   model, one-sided over seeds, must be `largest_loss` at most (a test of non-inferiority). For the default the test is
   the opposite: it is excluded only where its loss exceeds the limit beyond noise, by the lower bound.
2. Contenders are the candidates that beat the default beyond noise, or, if there are none, the default: within noise it
   wins against every candidate. Where the default itself breaks the limit of the second objective, all candidates that
   keep it are contenders.
3. The contender with the best mean is BFT's own winner.
4. A baseline that beats the default and BFT's own winner beyond noise is the champion instead; of several the one with
   the best mean. (A claim about both needs each single comparison to hold, so these need no further correction: an
   intersection-union test, Berger 1982. That the winner is the best of several is in its favour.) Other candidates need
   not be beaten: otherwise one that is only noisy would keep the winner, although a baseline is shown to be better.
5. Where items were left out, the winner must win again with these counted worst for it and best for the others; else
   the default stays.

Equal means are ordered by name, so the order of the records decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from bft_ray.config.metrics import higher_is_better
from bft_ray.errors import BadInput
from bft_ray.stats.comparison import Comparison
from bft_ray.stats.errors import Groups, as_groups
from bft_ray.stats.paired import mean_bounds
from bft_ray.stats.simultaneous import DRAWS, as_arrays, compare_pair, compare_with, not_told_from_best
from bft_ray.study.confirm.choice import Arm, Choice, Plan, Record, Verdict
from bft_ray.study.confirm.claims import judge_all
from bft_ray.study.confirm.items import COMPLETE

#: arm -> seed -> item -> score, higher is better
Items = Mapping[str, Mapping[int, Mapping[str, float]]]


def choose(records: Iterable[Record], plan: Plan, draws: int = DRAWS) -> Choice:
    """The champion by the rules at the head of the file; the order of the records does not matter.

    Args:
        records: of the confirmation, one a run.
        plan: what was to be run.
        draws: bootstrap draws.

    Raises:
        BadInput: a record of an unknown arm or seed, a run given twice, a metric without a direction.
    """
    runs = _runs(records, plan)
    flaws = _flaws(runs, plan)
    kept = {name: runs[name] for name in sorted(runs) if not flaws[name]}
    bare = {name: Arm(name, plan.kind_of(name), excluded=flaws[name]) for name in sorted(runs)}
    if plan.default not in kept:
        reason = f"the default {plan.default} has no whole set of runs ({flaws[plan.default]})"
        return Choice(plan, None, "none", reason, tuple(bare.values()), against=(), num_items=0)

    sign = 1.0 if higher_is_better(plan.metric) else -1.0
    items = _items(kept, plan.metric, plan)
    measured, num_all = _measured(items)
    oriented = as_arrays(items, plan.seeds, measured)
    groups = as_groups([plan.groups.get(item, ()) for item in measured]) if plan.groups else None
    family = compare_with(oriented, plan.default, plan.alpha, draws, groups=groups)
    gains = family.comparisons
    means = {name: float(array.mean()) for name, array in oriented.items()}
    seconds = {name: _second(own, plan) for name, own in kept.items()}
    broken = {name: _broken(name, own, plan) for name, own in kept.items()}
    front = _front(means, seconds, plan)

    order = sorted(kept, key=lambda name: (-means[name], name))
    allowed = [name for name in order if not broken[name]]
    champion, verdict, reason, against = _decide(plan, allowed, oriented, gains, groups)
    if num_all > len(measured) and champion != plan.default and champion is not None:
        worst = _counted_worst(items, champion, plan)
        again = compare_with(worst, plan.default, plan.alpha, draws, in_full=False)
        if plan.default in allowed and _decide(plan, allowed, worst, again.comparisons, None)[0] != champion:
            left = f"{num_all - len(measured)} items without a verdict"
            reason = f"{champion} would win, but not with the {left} counted worst for it"
            champion, verdict, against = plan.default, "default", ()
    arms = [Arm(n, plan.kind_of(n), sign * means[n], seconds[n], gains.get(n), broken[n], n in front) for n in order]
    arms += [arm for name, arm in bare.items() if flaws[name]]
    near_best = not_told_from_best(oriented, plan.alpha, draws, groups)
    return Choice(
        plan,
        champion,
        verdict,
        reason,
        tuple(arms),
        against,
        num_items=len(measured),
        num_missing=num_all - len(measured),
        best=family.best,
        not_told=tuple(name for name in order if name in near_best),
        claims=judge_all(plan.claims, plan.metric, _scores_of(kept, oriented, plan), plan.alpha, groups, flaws),
    )


def without_each_seed(records: Sequence[Record], plan: Plan) -> dict[int, str | None]:
    """Seed -> the champion that the other seeds would have chosen; {} for fewer than three seeds.

    Args:
        records, plan: as for `choose`.
    """
    if len(plan.seeds) < 3:
        return {}
    found = {}
    for left_out in plan.seeds:
        fewer = replace(plan, seeds=tuple(seed for seed in plan.seeds if seed != left_out))
        found[left_out] = choose([one for one in records if one.seed != left_out], fewer).champion
    return found


def _items(kept: Mapping[str, Mapping[int, Record]], metric: str, plan: Plan) -> Items:
    """The scores in the objective, or in the metric of a claim: none where its items were not kept."""
    sign, of_claim = 1.0 if higher_is_better(metric) else -1.0, metric != plan.metric

    def scores(run: Record) -> dict[str, float]:
        own = run.others.get(metric, {}) if of_claim else run.items
        return {item: sign * value for item, value in own.items()}

    return {name: {seed: scores(run) for seed, run in own.items()} for name, own in kept.items()}


def _scores_of(
    kept: Mapping[str, Mapping[int, Record]], oriented: Mapping[str, np.ndarray], plan: Plan
) -> dict[str, Mapping[str, np.ndarray]]:
    """Metric -> arm -> scores, for the objective and for the metrics of claims; without those whose items were not kept."""
    scores: dict[str, Mapping[str, np.ndarray]] = {plan.metric: oriented}
    for metric in {claim.metric for claim in plan.claims if claim.metric} - {plan.metric}:
        items = _items(kept, metric, plan)
        measured, _ = _measured(items)
        scores[metric] = as_arrays(items, plan.seeds, measured) if measured else {}
    return scores


def _measured(items: Items) -> tuple[list[str], int]:
    """Items that all runs have, sorted, and the number of those that any has."""
    sets = [set(run) for own in items.values() for run in own.values()]
    return sorted(set.intersection(*sets)), len(set.union(*sets))


def _counted_worst(items: Items, winner: str, plan: Plan) -> dict[str, np.ndarray]:
    """Scores of every item. A missing score of the winner becomes the worst score seen, a missing score of another arm the
    best.
    """
    seen = [value for own in items.values() for run in own.values() for value in run.values()]
    every = sorted({item for own in items.values() for run in own.values() for item in run})
    return {
        name: np.array(
            [
                [run[i] if i in run else (min(seen) if name == winner else max(seen)) for i in every]
                for run in (own[seed] for seed in sorted(plan.seeds))
            ]
        )
        for name, own in items.items()
    }


def _decide(
    plan: Plan,
    allowed: Sequence[str],
    scores: Mapping[str, np.ndarray],
    gains: Mapping[str, Comparison],
    groups: Groups | None,
) -> tuple[str | None, Verdict, str, tuple[Comparison, ...]]:
    """Champion, verdict, reason, and the comparisons of a baseline that won. `allowed` is best mean first."""
    candidates = [name for name in allowed if name in plan.candidates]
    others = [name for name in allowed if name in plan.baselines and name != plan.default]
    contenders = candidates
    if plan.default in allowed:
        contenders = [name for name in candidates if gains[name].is_better] or [plan.default]
    if not contenders:  # the default breaks the limit, and so does every candidate
        if others:
            return others[0], "baseline", "nothing else keeps the limit of the second objective", ()
        return None, "none", "no arm keeps the limit of the second objective", ()
    rivals = [*contenders, *([plan.default] if plan.default in allowed and plan.default not in contenders else [])]
    for name in others:
        against = tuple(compare_pair(name, rival, scores, plan.alpha, groups) for rival in rivals)
        if plan.default in allowed and not gains[name].is_better:
            continue  # as one of all comparisons with the default
        if all(one.is_better for one in against if one.against in (contenders[0], plan.default)):
            beaten = _beaten(plan, contenders, against, plan.default in allowed)
            return name, "baseline", f"beyond noise it beats {beaten}", against
    best = contenders[0]
    if best == plan.default:
        rival = "candidate" if plan.candidates else "baseline"
        return best, "default", f"no {rival} beats it beyond noise, and ties go to it", ()
    if plan.default not in allowed:
        return best, "candidate", "the best mean of the candidates within the limit, which the default breaks", ()
    return best, "candidate", "the best mean, and better than the default beyond noise", ()


def _beaten(plan: Plan, contenders: Sequence[str], against: Sequence[Comparison], has_default: bool) -> str:
    """A clause on what a baseline that wins has beaten.

    Args:
        against: its comparisons with the contenders and the default.
        has_default: whether the default is among the arms that count.
    """
    default = f"the default {plan.default}"
    if not all(one.is_better for one in against):
        return f"the best candidate, {contenders[0]}" + (f", and {default}" if has_default else "")
    if not has_default:
        return "every candidate that keeps the limit"
    if not plan.candidates:
        return default
    if list(contenders) == [plan.default]:
        return f"{default}, which no candidate does"
    return f"{default} and every candidate that does so too"


def _runs(records: Iterable[Record], plan: Plan) -> dict[str, dict[int, Record]]:
    runs: dict[str, dict[int, Record]] = {name: {} for name in (*plan.candidates, *plan.baselines)}
    for record in records:
        if record.name not in runs:
            raise BadInput("record", record.name, f"of an arm of the plan: {', '.join(runs)}")
        if record.seed not in plan.seeds:
            raise BadInput(f"record of {record.name}", record.seed, f"of a seed of the plan: {list(plan.seeds)}")
        if record.seed in runs[record.name]:
            raise BadInput(f"record of {record.name}", record.seed, "given once for each seed")
        runs[record.name][record.seed] = record
    return runs


def _flaws(runs: Mapping[str, Mapping[int, Record]], plan: Plan) -> dict[str, str]:
    """Arm -> why it does not count; "" where it does. Its items must be those of the default, except a few without a
    verdict.
    """
    items = {item for run in runs[plan.default].values() for item in run.items}

    def flaw(own: Mapping[int, Record]) -> str:
        for seed in sorted(plan.seeds):
            if seed not in own:
                return f"no run with seed {seed}"
            run = own[seed]
            if run.failed:
                return f"seed {seed} failed: {run.failed}"
            if not run.items or not all(map(math.isfinite, run.items.values())):
                return f"seed {seed} has {'a score that is not finite' if run.items else 'no scores'}"
            if not set(run.items) <= items:
                return f"seed {seed} was measured on other items than the default"
            if len(run.items) < COMPLETE * len(items):
                return f"seed {seed} has a score for only {len(run.items)} of {len(items)} items"
            if plan.second and (run.second is None or not math.isfinite(run.second)):
                return f"seed {seed} has no finite {plan.second.metric}"
        return ""

    return {name: flaw(own) for name, own in runs.items()}


def _second(own: Mapping[int, Record], plan: Plan) -> float | None:
    if plan.second is None:
        return None
    return math.fsum(own[seed].second or 0.0 for seed in plan.seeds) / len(plan.seeds)


def _broken(name: str, own: Mapping[int, Record], plan: Plan) -> str:
    """Why an arm is not within the limit of the second objective; "" where it is, or there is none."""
    limit = plan.second
    if limit is None:
        return ""
    sign = -1.0 if higher_is_better(limit.metric) else 1.0
    losses = [sign * ((own[seed].second or 0.0) - limit.before) for seed in sorted(plan.seeds)]
    low, high = mean_bounds(losses)
    slack = 1e-9 * max(1.0, abs(limit.before), abs(limit.largest_loss))  # 1.1 - 1.0 is above 0.1
    if name == plan.default:
        return "breaks the limit beyond noise" if low > limit.largest_loss + slack else ""
    return "" if high <= limit.largest_loss + slack else "is not shown to keep the limit"


def _front(means: Mapping[str, float], seconds: Mapping[str, float | None], plan: Plan) -> set[str]:
    """Names that no other dominates; without a second objective, those with the best mean. Means: higher is better."""
    sign = 1.0 if plan.second is None or higher_is_better(plan.second.metric) else -1.0
    points = {name: (mean, sign * (seconds[name] or 0.0)) for name, mean in means.items()}
    return {
        name
        for name, own in points.items()
        if not any(other[0] >= own[0] and other[1] >= own[1] and other != own for other in points.values())
    }
