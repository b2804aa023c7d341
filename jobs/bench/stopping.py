"""What early stopping costs: recorded full curves, replayed in many orders under several rules.

    python -m jobs.bench.stopping record --out docs/stopping.jsonl [CONFIG] [FIELD=VALUE ...] [--metric NAME]
    python -m jobs.bench.stopping replay --curves docs/stopping.jsonl

record trains every trial to its end, 60 steps (default: the starter model and its data, CPU); the metric is one of which more is
better.

Recorded are numbers alone: the objective of each trial at each rung and at the end, a line a trial; those that the file has are
not trained again, so the run may be cut at any time. A replay draws `--trials` of them in a random
order, lets them come one after the other, and reports for each rule

    steps    share of the steps that all would take to their end
    value    final value of the trial that the rule picks
    regret   final value of the best trial less that of the one that the rule picks, in the objective's unit
    lost     share of the orders in which the pick is not the best trial

with Monte Carlo errors over orders. The rules: `asha` as in the product (`bft_ray.study.propose.halving.is_promoted`); `pasha`
(Bohdal et al. 2023, hard ranking): as asha, but no trial goes beyond the second rung until the order of the two highest rungs
disagrees, which opens the next one, and the pick is the best at the highest rung; `half`: all run to the rung of `--half`, the
better half of them to the end; `none`: all to the end.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.study.propose.halving import is_promoted
from bft_ray.study.report.agreement import Agreement, kendall

METRIC, REDUCTION = "choices/probability", 3
_STARTER = [
    "cluster.num_workers=1",
    "data.max_length=256",
    "data.too_long=drop",
    "data.global_batch_size=8",
    "data.validation=[]",
]
RUNGS, STEPS = (4, 12, 36), 60
Curve = Mapping[int, float]  # step -> value
#: trials in their order -> steps taken, place of the pick
Rule = Callable[[Sequence[Curve]], tuple[int, int]]


def trees(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Configs of trials, drawn from the space of the starter study, with rates around its own."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        loss: dict[str, Any] = {"method": draw.choice(["bft", "bft_inverse", "bft_group"])}
        loss["window"] = draw.choice([16, 64, 256])
        if loss["method"] == "bft_inverse":
            loss |= {
                "epsilon": math.exp(draw.uniform(math.log(0.01), math.log(0.5))),
                "weight_cap": draw.choice([2.0, 4.0, 8.0]),
            }
        rate = math.exp(draw.uniform(math.log(3e-4), math.log(1e-2)))
        found.append({"loss": loss, "optimizer": {"learning_rate": rate}, "seed": number})
    return found


def record(count: int, path: Path, source: str, overrides: Sequence[str], metric: str) -> None:
    """Curves of as many trials, one after the other in this process, added to a file."""
    from bft_ray.config import load_config, make_config
    from bft_ray.study.execute.warm import Warm
    from jobs.bench.one_trial import run_trial

    warm, done = Warm(), set(read(path))
    fixed = [f"schedule.steps={STEPS}", "checkpoint.export=last"]
    base = load_config(source, [*overrides, *fixed]).model_dump(mode="json")
    for number, tree in enumerate(trees(count)):
        if number in done:
            continue
        config = make_config(
            base | {"loss": tree["loss"], "seed": tree["seed"]} | {"optimizer": base["optimizer"] | tree["optimizer"]}
        )
        result = run_trial(config, RUNGS, lambda step, metrics: True, warm)
        curve = {str(step): metrics[metric] for step, metrics in result.metrics.items()}
        with path.open("a") as out:
            out.write(json.dumps({"trial": number, "status": result.status, "curve": curve}) + "\n")


def read(path: Path) -> dict[int, Curve]:
    """Trial -> its curve; empty of one that failed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {
        line["trial"]: {int(step): value for step, value in line["curve"].items()}
        if line["status"] == "complete"
        else {}
        for line in lines
    }


# --- rules ------------------------------------------------------------------------------------------------


def asha(curves: Sequence[Curve], rungs: Sequence[int] = RUNGS) -> tuple[int, int]:
    """As the product: trials come one after the other, and are promoted or stopped on arrival."""
    seen: dict[int, Seen] = {}
    taken, ended = 0, {}
    for number, curve in enumerate(curves):
        own = seen[number] = Seen(number)
        for rung in rungs:
            own.rung_values[rung] = curve[rung]
            taken_here = rung
            if not is_promoted(seen.values(), number, rung, REDUCTION, METRIC):  # type: ignore[arg-type]
                break
        else:
            taken_here, ended[number] = STEPS, curve[STEPS]
        taken += taken_here
    return taken, max(ended, key=lambda number: ended[number])


def pasha(curves: Sequence[Curve]) -> tuple[int, int]:
    """As asha, up to a rung that rises when the orders at the two highest ones disagree."""
    steps = (*RUNGS, STEPS)
    seen: dict[int, Seen] = {}
    top, taken = 1, 0
    for number, curve in enumerate(curves):
        own, taken_here = Seen(number), 0
        seen[number] = own
        for place, step in enumerate(steps):
            if place > top:
                break
            own.rung_values[step], taken_here = curve[step], step
            if place == top or not is_promoted(seen.values(), number, step, REDUCTION, METRIC):  # type: ignore[arg-type]
                break
        taken += taken_here
        both = [one for one in seen.values() if steps[top] in one.rung_values]
        orders = [in_order(both, steps[at]) for at in (top - 1, top)]
        if orders[0] != orders[1] and top < len(steps) - 1:
            top += 1
    high = max(step for one in seen.values() for step in one.rung_values)
    reached = [one for one in seen.values() if high in one.rung_values]
    return taken, max(reached, key=lambda one: one.rung_values[high]).number


def half(curves: Sequence[Curve], rung: int) -> tuple[int, int]:
    """All to a rung, the better half of them to the end."""
    order = sorted(range(len(curves)), key=lambda number: -curves[number][rung])
    kept = order[: math.ceil(len(curves) / 2)]
    return rung * len(curves) + (STEPS - rung) * len(kept), max(kept, key=lambda number: curves[number][STEPS])


def none(curves: Sequence[Curve]) -> tuple[int, int]:
    """All to the end."""
    return STEPS * len(curves), max(range(len(curves)), key=lambda number: curves[number][STEPS])


def in_order(some: Sequence[Seen], step: int) -> list[int]:
    """Numbers, best first."""
    return [one.number for one in sorted(some, key=lambda one: -one.rung_values[step])]


@dataclass
class Seen:
    """What a rule needs of `bft_ray.study.records.record.TrialRecord`."""

    number: int
    rung_values: dict[int, float] = field(default_factory=dict)
    duplicate_of: str | None = None


def replay(curves: Sequence[Curve], rule: Rule, num_trials: int, orders: int) -> dict[str, float]:
    """Share of all steps, regret and losses, over the same orders for every rule."""
    draw = random.Random(0)
    taken, values, regrets = [], [], []
    for _ in range(orders):
        some = draw.sample(list(curves), num_trials)
        steps, pick = rule(some)
        taken.append(steps / (STEPS * num_trials))
        values.append(some[pick][STEPS])
        regrets.append(max(curve[STEPS] for curve in some) - values[-1])
    lost = np.array(regrets) > 0
    error = math.sqrt(orders)
    return {
        "steps": float(np.mean(taken)),
        "value": float(np.mean(values)),
        "value_se": float(np.std(values)) / error,
        "regret": float(np.mean(regrets)),
        "regret_se": float(np.std(regrets)) / error,
        "lost": float(lost.mean()),
        "lost_se": float(lost.std()) / error,
    }


def main() -> None:
    """Record, or replay and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["record", "replay"])
    parser.add_argument("config", nargs="?", default="starter", help="of record")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="of record")
    parser.add_argument("--metric", default=METRIC, help="of record")
    parser.add_argument("--out", type=Path, default=Path("stopping.jsonl"), help="of record")
    parser.add_argument("--curves", type=Path, default=Path("docs/stopping.jsonl"), help="of replay")
    parser.add_argument("--count", type=int, default=36, help="trials to record")
    parser.add_argument("--trials", type=int, default=24, help="trials of a replayed study")
    parser.add_argument("--orders", type=int, default=4000, help="replayed studies")
    args = parser.parse_intermixed_args()
    if args.part == "record":
        overrides = args.overrides if args.config != "starter" else [*_STARTER, *args.overrides]
        record(args.count, args.out, args.config, overrides, args.metric)
        return
    curves = [curve for curve in read(args.curves).values() if curve]
    for rung in RUNGS:
        found = kendall([curve[rung] for curve in curves], [curve[STEPS] for curve in curves])
        print(f"step {rung} against step {STEPS}: {'' if found is None else summary(found)}")
    rules: dict[str, Rule] = {"none": none, "asha": asha, "pasha": pasha}
    rules |= {f"asha from step {rung}": partial(asha, rungs=RUNGS[place:]) for place, rung in enumerate(RUNGS) if place}
    rules |= {f"half at step {rung}": partial(half, rung=rung) for rung in RUNGS}
    print("\n| rule | steps | value | regret | lost the best |\n| --- | --- | --- | --- | --- |")
    for name, rule in rules.items():
        one = replay(curves, rule, args.trials, args.orders)
        cells = (f"{one[key]:.4f} +- {one[f'{key}_se']:.4f}" for key in ("value", "regret"))
        print(f"| {name} | {one['steps']:.0%} | {' | '.join(cells)} | {one['lost']:.3f} +- {one['lost_se']:.3f} |")


def summary(found: Agreement) -> str:
    """In words."""
    return f"Kendall's tau {found.tau:.2f} [{found.low:.2f}, {found.high:.2f}], {found.num_trials} trials"


if __name__ == "__main__":
    main()
