"""How often a whole study names the best setting, and how often it names one where there is none: search to choice, simulated.

    python -m jobs.bench.named --studies 1000

The product's own functions decide what comes next (`bft_ray.study.agenda`), who is promoted at a rung and what is chosen; only the
values are drawn. A study has 10 settings (two forms, five windows), TPE with 14 trials under ASHA, three
candidates, three baselines, five seeds and 120 items. One setting is better than all others by a multiple of the smallest
detectable effect, which is what studies without any difference say of themselves (the median). Told are, with Monte Carlo errors,

    named           the champion is the best setting
    false champion  the champion is an arm that is no better than the default
    default         the default stays
"""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np

from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import DEFAULT, Asha
from bft_ray.study.agenda import PARTS, next_trial
from bft_ray.study.confirm.candidates import arms_of, confirmed, plan_of
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.confirm.choose import choose
from bft_ray.study.propose.halving import is_promoted
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH

METRIC = "choices/probability"
BEST = {"loss.method": "bft_inverse", "loss.window": 32}
NUM_ITEMS, STEPS = 120, 36
#: deviations of an item's difficulty, of a run, of a setting on an item, and of the rest
_ITEM, _RUN, _OWN, _REST = 0.15, 0.01, 0.03, 0.05


@dataclass(frozen=True)
class Study:
    """What a simulated study has found.

    Args:
        outcome: named, false champion, or default.
        detectable: smallest detectable gains of its candidates, where they claim one.
    """

    outcome: str
    detectable: tuple[float, ...]


def space(deterministic: bool = False) -> SearchSpace:
    """The search space of all studies."""
    return SearchSpace.model_validate(
        {
            "name": "simulated",
            "parameters": {
                "loss.method": {"kind": "categorical", "values": ["bft", "bft_inverse"]},
                "loss.window": {"kind": "categorical", "values": [16, 32, 64, 128, 192]},
            },
            "objective": {"metric": METRIC},
            "budget": {"trials": 14, "steps": STEPS},
            "sampler": {"kind": "tpe", "startup_trials": 6},
            "scheduler": {"kind": "asha", "grace_steps": 12, "reduction": 3},
            "confirmation": {"overrides": {"evaluation.tasks.0.path": "other.jsonl"}},
            "deterministic": deterministic,
        }
    )


def run(seed: int, gain: float, one: SearchSpace) -> Study:
    """One study, from its first trial to its choice.

    Args:
        gain: of the best setting over all others, in the metric's unit; 0: there is none.
    """
    draw = np.random.default_rng(seed)
    one = one.model_copy(update={"sampler": one.sampler.model_copy(update={"seed": seed})})
    truth = _Truth(draw, gain)
    records: dict[str, list[TrialRecord]] = {part: [] for part in PARTS}
    while (proposed := next_trial(one, records)) is not None:
        record = replace(proposed, state="running", planned_steps=STEPS, key=_key(proposed))
        before = next((own for own in records[SEARCH] if own.key == record.key and record.part == SEARCH), None)
        records[record.part].append(record)
        place = records[record.part]
        if before is not None:  # as a duplicate: not trained, with the result of its original
            place[-1] = replace(before, number=record.number, duplicate_of=before.id)
        else:
            place[-1] = _trained(one, truth, record, records)
    choice = _choice(one, records)
    champion = next(arm for arm in arms_of(one, records[BASELINES], records[SEARCH]) if arm.name == choice.champion)
    outcome = "default" if champion.name == DEFAULT else "false champion"
    if champion.kind == "candidate" and gain > 0 and dict(champion.trial.assignment) == BEST:
        outcome = "named"
    gains = [arm.gain.detectable for arm in choice.arms if arm.kind == "candidate" and arm.gain]
    return Study(outcome, tuple(each for each in gains if math.isfinite(each)))


class _Truth:
    """Scores of items: difficulty of an item + effect of the setting + noise of the run, of the setting on it, and the rest."""

    def __init__(self, draw: np.random.Generator, gain: float):
        self._draw, self._gain = draw, gain
        self._items = {split: draw.normal(0.5, _ITEM, NUM_ITEMS) for split in (SEARCH, CONFIRMATION)}
        self._own: dict[tuple[str, str], np.ndarray] = {}

    def scores(self, record: TrialRecord, step: int = STEPS) -> np.ndarray:
        """[n] of one run; at a rung the effect is as far as the run is."""
        split = CONFIRMATION if record.part == CONFIRMATION else SEARCH
        place = (split, _key(record))
        if place not in self._own:
            self._own[place] = self._draw.normal(0, _OWN, NUM_ITEMS)
        effect = self._gain * (dict(record.assignment) == BEST) * math.sqrt(step / STEPS)
        noise = self._draw.normal(0, _RUN) + self._draw.normal(0, _REST, NUM_ITEMS)
        return self._items[split] + effect + self._own[place] + noise


def _key(record: TrialRecord) -> str:
    """Equal for equal settings."""
    name = record.extra.get("baseline") or (record.name if not record.assignment else "")
    return f"{name}{sorted(record.assignment.items())}"


def _trained(
    one: SearchSpace, truth: _Truth, record: TrialRecord, records: Mapping[str, list[TrialRecord]]
) -> TrialRecord:
    rungs: dict[int, dict[int, float]] = {}
    if record.part == SEARCH and isinstance(one.scheduler, Asha):
        for step in one.scheduler.rungs(STEPS):
            rungs[step] = {record.seeds[0]: float(truth.scores(record, step).mean())}
            record = replace(record, rungs=dict(rungs))
            reached = [*records[SEARCH][:-1], record]
            if not is_promoted(reached, record.number, step, one.scheduler.reduction, METRIC):
                return replace(record, state="pruned", num_steps=step)
    scores = truth.scores(record)
    items = {str(item): float(score) for item, score in enumerate(scores)}
    extra = {**record.extra, "items": items} if record.part == CONFIRMATION else record.extra
    value = float(scores.mean())
    return replace(record, state="complete", value=value, metrics={METRIC: value}, num_steps=STEPS, extra=extra)


def _choice(one: SearchSpace, records: Mapping[str, list[TrialRecord]]) -> Choice:
    arms = arms_of(one, records[BASELINES], records[SEARCH])
    return choose(confirmed(one, records[CONFIRMATION]), plan_of(one, arms, None, records[CONFIRMATION]), draws=500)


def detectable(num_studies: int, one: SearchSpace) -> float:
    """The median of what studies without any difference call detectable."""
    return median(each for seed in range(num_studies) for each in run(10_000_000 + seed, 0.0, one).detectable)


def main() -> None:
    """Simulate, and print a row for each true gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies a row")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    args = parser.parse_args()
    one = space()
    least = detectable(50, one)
    print(f"smallest detectable gain {least:.4f}\n")
    print(
        "| true gain, in the smallest detectable | named | false champion | default stays |\n| --- | --- | --- | --- |"
    )
    with ProcessPoolExecutor(args.workers) as pool:
        for times in (0.0, 1.0, 2.0):
            found = pool.map(partial(run, gain=times * least, one=one), range(args.studies), chunksize=10)
            told = Counter(study.outcome for study in found)
            shares = [told[name] / args.studies for name in ("named", "false champion", "default")]
            cells = [f"{share:.3f} +- {math.sqrt(share * (1 - share) / args.studies):.3f}" for share in shares]
            print(f"| {times:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
