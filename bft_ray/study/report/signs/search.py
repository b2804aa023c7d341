"""What the search could tell apart: rungs, metric, ranges, duplicates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from bft_ray.config.metrics import format_value
from bft_ray.page.model import Finding
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import Asha
from bft_ray.space.ranges import is_number
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.leaderboard import value_text
from bft_ray.study.records.ranking import ranked
from bft_ray.study.records.record import Records
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report import agreement

_FEW = 5  # trials; of fewer no sign is told
_MANY_DUPLICATES = 0.4  # share of the trials
_TOP = 3  # trials that must agree on an end of a range


def blind_rungs(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
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


def misleading_rungs(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
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
        f"[{order.low:.2f}, {order.high:.2f}], of {order.num_trials} trials: it may be no better than chance.",
        "A later scheduler.grace_steps, or `scheduler: {kind: none}`; then a trial costs more and none is lost.",
    )


def at_an_end(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
    """The best trials all lie at one end of a range: the best value may lie beyond it."""
    own = [record for record in ranked(parts.get(SEARCH, ()), space.objective.metric) if record.ran_to_end]
    if len(own) < 2 * _TOP + 2:
        return None
    for name, parameter in space.parameters.items():
        known = [value for value in parameter.finite() or parameter.ends() if is_number(value)]
        values = [record.assignment.get(name) for record in own[:_TOP]]
        if (
            (len(set(known)) < 3 and parameter.finite() is not None)
            or not all(map(is_number, values))
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


def duplicates(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
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


def unmoved(parts: Records, space: SearchSpace, choice: Choice | None) -> Finding | None:
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


def _is_at(value: float, end: float, known: Sequence[float], is_log: bool) -> bool:
    """Whether a value is the end, or within a twentieth of the range from it."""
    low, high = float(min(known)), float(max(known))
    if is_log:
        low, high, value, end = (math.log(one) for one in (low, high, value, end))
    return abs(value - end) <= 0.05 * (high - low) + 1e-12
