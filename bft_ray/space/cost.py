"""What a study would run, and what that costs, from its search space alone: the text of a dry run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bft_ray.config.steps import steps_if_known
from bft_ray.config.tree import Config
from bft_ray.space.assign import baseline_config, config_of
from bft_ray.space.definition import SearchSpace
from bft_ray.space.duplicates import distinct, duplicate_reasons
from bft_ray.space.grid import baseline_assignments, num_combinations, num_trials, representatives
from bft_ray.space.parts import Asha

_LISTED = 2000  # combinations that are compared with each other


@dataclass(frozen=True)
class Cost:
    """Counts of a study; steps are optimizer steps and None where they depend on the number of training samples.

    Args:
        trials: that the search proposes, duplicates included.
        combinations: of the space; None: endless.
        distinct: combinations without duplicates, of those that were compared; None: too many to compare.
        duplicates: (number of duplicate combinations, reason), most first.
        steps: of a full trial, the longest.
        rungs: steps after which trials may stop.
        search_runs, tuning_runs, confirmation_runs: runs of trials, of baselines in the search, of the confirmation.
        test_looks: models measured on the test split.
        search_steps: at most, as if no trial stopped early.
        search_steps_stopped: about, if at each rung only one of `reduction` trials is promoted; None without rungs.
        tuning_steps, confirmation_steps: exactly.
    """

    trials: int
    combinations: int | None
    distinct: int | None
    duplicates: tuple[tuple[int, str], ...]
    steps: int | None
    rungs: tuple[int, ...]
    search_runs: int
    tuning_runs: int
    confirmation_runs: int
    test_looks: int
    search_steps: int | None
    search_steps_stopped: int | None
    tuning_steps: int | None
    confirmation_steps: int | None


def cost_of(
    space: SearchSpace, base: Config, longest: int | None = None, samples_per_source: Sequence[int] | None = None
) -> Cost:
    """Count what a study would run.

    Duplicates are counted among the combinations of the space. In an endless space each continuous parameter has only its
    two ends, so duplicates among these are counted, while `distinct` is None.

    Args:
        longest: supervised tokens of the longest training sample; None: unknown, so no windows count as duplicates.
        samples_per_source: see `num_steps`; None: unknown, `schedule.epochs` cannot be turned into steps.

    Raises:
        BadConfig, BadInput: a combination that the config refuses; `check_space` lists all of them.
    """
    combinations = num_combinations(space)
    configs = [config_of(base, space, assignment) for assignment in representatives(space, _LISTED)]
    groups = distinct(configs, longest)
    whole = combinations is not None and combinations <= _LISTED
    trials = num_trials(space)
    num_distinct = len(groups) if whole else None
    known = [steps_if_known(config, samples_per_source) for config in configs]
    steps = None if None in known else max(step for step in known if step is not None)
    rungs = space.scheduler.rungs(steps) if isinstance(space.scheduler, Asha) and steps is not None else []

    tuned = [
        baseline_config(base, space, baseline, assignment)
        for baseline in space.baselines
        for assignment in baseline_assignments(space)
    ]
    run_trials = trials if num_distinct is None else min(trials, num_distinct)
    search_runs = run_trials * len(space.seeds)
    return Cost(
        trials=trials,
        combinations=combinations,
        distinct=num_distinct,
        duplicates=_duplicates(configs, groups, longest),
        steps=steps,
        rungs=tuple(rungs),
        search_runs=search_runs,
        tuning_runs=len(tuned) * len(space.seeds),
        confirmation_runs=space.most_confirmation_runs,
        test_looks=2 if space.confirmation and space.confirmation.test else 0,
        search_steps=_times(search_runs, steps),
        search_steps_stopped=_stopped(space, run_trials, steps, rungs),
        tuning_steps=_times(len(tuned) * len(space.seeds), steps),
        confirmation_steps=_times(space.most_confirmation_runs, steps),
    )


def describe(
    space: SearchSpace, base: Config, longest: int | None = None, samples_per_source: Sequence[int] | None = None
) -> str:
    """What would run and what it costs, as a table; arguments and errors as for `cost_of`."""
    cost = cost_of(space, base, longest, samples_per_source)
    rows = [
        ("study", f"{space.name}: {space.objective.metric}, domain {space.domain_of(base)}"),
        ("combinations", _combinations(cost, longest)),
        *(("  duplicates", f"{count}: {reason}") for count, reason in cost.duplicates),
        (
            "trials",
            f"{cost.trials} by {space.sampler.kind}, seed {space.sampler.seed}; {_seeds(len(space.seeds))} each",
        ),
        ("steps of a trial", _count(cost.steps) if cost.steps is not None else _epochs(base)),
        ("a run", _workers(space, base)),
    ]
    if isinstance(space.scheduler, Asha):
        rows.append(("rungs", _rungs(cost, space.scheduler)))
    if space.budget.time_s is not None:
        rows.append(("time", f"no trial starts when trials ran for {space.budget.time_s:g} s"))
    if space.budget.worker_hours is not None:
        used = f"baselines and search took {space.budget.worker_hours:g} worker-hours"
        rows.append(("worker-hours", f"no trial starts when {used}; the confirmation always runs"))
    rows += [
        ("", ""),
        ("part", f"{'runs':>8}  {'steps':>12}"),
        ("search, at most", _pair(cost.search_runs, cost.search_steps)),
    ]
    if cost.search_steps_stopped is not None:
        rows.append(("  with early stops, about", _pair(None, cost.search_steps_stopped)))
    if cost.tuning_runs:
        rows.append(("tuning of baselines", _pair(cost.tuning_runs, cost.tuning_steps)))
    if space.confirmation:
        top, seeds = space.confirmation.top_k, len(space.confirmation.seeds)
        rows.append(("confirmation", _pair(cost.confirmation_runs, cost.confirmation_steps)))
        rows.append(("", f"({top} candidates + {len(space.baselines)} baselines) x {seeds} seeds"))
    total_runs = cost.search_runs + cost.tuning_runs + cost.confirmation_runs
    parts = [cost.search_steps, cost.tuning_steps, cost.confirmation_steps]
    rows.append(("all, at most", _pair(total_runs, None if None in parts else sum(part or 0 for part in parts))))
    if cost.test_looks:
        rows.append(("test split", f"{cost.test_looks} models measured, once"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def _rungs(cost: Cost, scheduler: Asha) -> str:
    if cost.rungs:
        return f"{', '.join(map(str, cost.rungs))}: 1 of {scheduler.reduction} is promoted"
    return "not known without the data" if cost.steps is None else "none before the last step: no trial stops early"


def _stopped(space: SearchSpace, trials: int, steps: int | None, rungs: Sequence[int]) -> int | None:
    """Steps if one in `reduction` of the trials at each rung is promoted, rounded up."""
    if not isinstance(space.scheduler, Asha) or steps is None:
        return None
    total, left, done = 0, trials, 0
    for rung in (*rungs, steps):
        total += left * (rung - done)
        left, done = math.ceil(left / space.scheduler.reduction), rung
    return total * len(space.seeds)


def _duplicates(
    configs: Sequence[Config], groups: Sequence[Sequence[int]], longest: int | None
) -> tuple[tuple[int, str], ...]:
    counts: dict[str, int] = {}
    for first, *others in groups:
        for other in others:
            reasons = duplicate_reasons(configs[first].loss, configs[other].loss, longest)
            text = "; ".join(reasons) or "the same settings"
            counts[text] = counts.get(text, 0) + 1
    return tuple(sorted(((count, text) for text, count in counts.items()), key=lambda pair: (-pair[0], pair[1])))


def _combinations(cost: Cost, longest: int | None) -> str:
    unknown = "" if longest is not None else " (the longest sample is not known: no windows count as duplicates)"
    if cost.combinations is None:
        return f"endless{unknown}"
    if cost.distinct is None:
        return f"{cost.combinations:,}{unknown}"
    return f"{cost.combinations:,}, of which {cost.distinct:,} differ{unknown}"


def _workers(space: SearchSpace, base: Config) -> str:
    config = config_of(base, space, representatives(space, 1)[0])
    number = config.cluster.num_workers
    if number == 1:
        return "1 worker, in a process that stays warm from trial to trial"
    return f"{number} workers, in processes that stay warm from trial to trial"


def _epochs(base: Config) -> str:
    return f"{base.schedule.epochs:g} epochs; how many steps that is follows from the data"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _times(count: int, steps: int | None) -> int | None:
    return None if steps is None and count else count * (steps or 0)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _pair(runs: int | None, steps: int | None) -> str:
    return f"{'' if runs is None else _count(runs):>8}  {_count(steps):>12}"
