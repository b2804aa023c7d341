"""Simulated studies whose truth is known, and how often what is said of them is wrong.

Each study has five arms, the default and four others, without any true difference, or with one of arm 1 alone. A setting says how
scores come about; see `SETTINGS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from bft_ray.stats.crossed import error_parts
from bft_ray.stats.errors import Groups
from bft_ray.stats.paired import paired_difference
from bft_ray.stats.simultaneous import compare_with
from bft_ray.study.confirm.choice import Limit, Plan, Record
from bft_ray.study.confirm.choose import choose

ARMS, ALPHA, EFFECT = 5, 0.05, 4.0
_POWER = 4  # of so many studies one is enough for power
_CLAIMS = 50  # of fewer claims no share is told: its error would be 0.06 or more
Scores = np.ndarray  # [ARMS, S, n]


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        kind: choice: of gains over the default; limit: of the second objective; test: of one look at the test split.
    """

    kind: str
    setting: str
    num_seeds: int
    num_items: int


@dataclass(frozen=True)
class Setting:
    """How scores come about: deviations of an item's effect, of a run, and of the rest, for each arm.

    Args:
        loud: factor on the runs of each arm.
        draw_items: effects of items [arms, n] of mean 0 and deviation 1, of all arms but the default; None: normal.
        genes: share of the items' variance that is of the two genes of a pair.
        flips: of right and wrong: share of the items that a run turns round.
        collapses: share of the runs of any arm that lose 2.
    """

    item: float = 1.0
    run: float = 0.2
    rest: float = 1.0
    loud: tuple[float, ...] = (1.0,) * ARMS
    draw_items: Callable[[np.random.Generator, tuple[int, int]], np.ndarray] | None = None
    genes: float = 0.0
    flips: float = 0.0
    collapses: float = 0.0


def _left_skewed(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Most items a little better, few much worse: 1 - exponential, skewness -2."""
    return 1 - random.exponential(size=shape)


def _far_left_skewed(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A lognormal of sigma 1, turned round: skewness -6.2."""
    mean = math.exp(0.5)
    return -(random.lognormal(size=shape) - mean) / (mean * math.sqrt(math.e - 1))


SETTINGS = {
    "items": Setting(run=0.02),
    "both": Setting(),
    "seeds": Setting(item=0.0, run=0.5, rest=0.5),
    "rest alone": Setting(item=0.0, run=0.0),
    "sparse": Setting(flips=0.03),
    "loud candidate": Setting(item=0.1, run=0.5, rest=0.3, loud=(1, 3, 1, 1, 1)),
    "loud default": Setting(item=0.1, run=0.5, rest=0.3, loud=(3, 1, 1, 1, 1)),
    "skewed": Setting(run=0.02, rest=0.3, draw_items=_left_skewed),
    "far skewed": Setting(run=0.02, rest=0.3, draw_items=_far_left_skewed),
    "shared genes 20 %": Setting(run=0.05, genes=0.2),
    "shared genes 50 %": Setting(run=0.05, genes=0.5),
    "rare collapses": Setting(collapses=0.05),
}
#: where the true mean loss of all arms lies: at the limit, or one standard error inside
LIMITS = {"at the limit": 0.0, "one error inside": 1.0}


def draw_groups(random: np.random.Generator, num_items: int) -> Groups:
    """Pairs of n / 3 genes, no gene with itself."""
    genes = max(6, num_items // 3)
    first = random.integers(genes, size=num_items)
    second = (first + random.integers(1, genes, size=num_items)) % genes
    return Groups(tuple((str(a), str(b)) for a, b in zip(first, second, strict=True)))


def draw_study(random: np.random.Generator, cell: Cell, groups: Groups | None, gain: float = 0.0) -> dict[str, Scores]:
    """Scores of one study; arm 1 has the true gain, all others none."""
    setting, shape = SETTINGS[cell.setting], (ARMS, cell.num_seeds, cell.num_items)
    common = random.normal(size=(1, 1, cell.num_items))
    if setting.flips:
        right = common > 0
        scores = np.where(random.uniform(size=shape) < setting.flips, ~right, right).astype(float)
    else:
        draw = setting.draw_items or (lambda own, size: own.normal(size=size))
        items = draw(random, (ARMS, cell.num_items))
        if setting.draw_items:
            items[0] = 0.0  # else the difference of two such effects would be symmetric
        if groups is not None:
            genes = random.normal(size=(ARMS, groups.num)) @ groups.members.toarray() / math.sqrt(2)
            items = math.sqrt(setting.genes) * genes + math.sqrt(1 - setting.genes) * items
        runs = setting.run * np.array(setting.loud)[:, None, None] * random.normal(size=(*shape[:2], 1))
        if cell.kind == "test":
            runs *= 0.0  # of two models as they are
        if setting.collapses:
            runs -= 2.0 * (random.uniform(size=runs.shape) < setting.collapses)
        scores = common + setting.item * items[:, None] + runs + setting.rest * random.normal(size=shape)
    scores[1] += gain
    return {str(arm): scores[arm] for arm in range(ARMS)}


def simulate(cell: Cell, num_studies: int, draws: int = 1000, seed: int = 0) -> dict[str, float]:
    """Shares of the studies of a cell, by its kind; see `jobs.bench.statistics`."""
    place = [sorted([*SETTINGS, *LIMITS]).index(cell.setting), cell.num_seeds, cell.num_items]
    random = np.random.default_rng([seed, *place])
    return {"choice": _choice, "limit": _limit, "test": _test}[cell.kind](random, cell, num_studies, draws)


def _groups(random: np.random.Generator, cell: Cell) -> Groups | None:
    return draw_groups(random, cell.num_items) if SETTINGS[cell.setting].genes else None


def _choice(random: np.random.Generator, cell: Cell, num_studies: int, draws: int) -> dict[str, float]:
    groups = _groups(random, cell)

    def compared(study: int, gain: float = 0.0, in_full: bool = False):
        scores = draw_study(random, cell, groups, gain)
        found = compare_with(scores, "0", ALPHA, draws, study, groups, in_full).comparisons
        return scores, found

    wrong = plain_wrong = covered = skewed = 0
    gains, claims = [], []
    for study in range(num_studies):
        scores, found = compared(study, in_full=study % _POWER == 0)
        wrong += any(one.is_better for one in found.values())
        plain_wrong += any(plain(scores[name] - scores["0"]) for name in found)
        covered += all(one.low <= 0 <= one.high for one in found.values())
        skewed += found["1"].is_skewed
        gains.append(found["1"].gain)
        claims.append(found["1"].detectable)
    gain, some = EFFECT * float(np.std(gains)), range(0, num_studies, _POWER)
    shown = before = kept = 0
    told = [study for study in some if math.isfinite(claims[study])]
    for study in some:
        scores, found = compared(study, gain)
        shown += found["1"].is_better
        before += plain(scores["1"] - scores["0"])
    for study in told if len(told) >= _CLAIMS else ():
        kept += compared(study, claims[study])[1]["1"].is_better
    return {
        "false champion": wrong / num_studies,
        "wrong": plain_wrong / num_studies,
        "coverage": covered / num_studies,
        "warned": skewed / num_studies,
        "claims": float(len(told)),
        **({"claimed power": kept / len(told)} if len(told) >= _CLAIMS else {}),
        "power": shown / len(some),
        "before": before / len(some),
    }


def plain(difference: np.ndarray) -> bool:
    """Whether t on the arm's own seeds and items, mixed as Cochran (1964) does, sees a gain at alpha / 4, two-sided."""
    own, rest = error_parts(difference)
    item = max(0.0, float(difference.mean(0).var(ddof=1)) / difference.shape[1] - rest)
    t_seed, t_item = (-float(special.stdtrit(size - 1, ALPHA / 2 / (ARMS - 1))) for size in difference.shape)
    se = math.sqrt(own + item)
    return se > 0 and float(difference.mean()) > (own * t_seed + item * t_item) / se


def _limit(random: np.random.Generator, cell: Cell, num_studies: int, draws: int) -> dict[str, float]:
    """By the whole rule of the choice; runs vary in the second objective with deviation 1, and 5 may be lost."""
    seeds = tuple(range(cell.num_seeds))
    plan = Plan(
        "choices/probability", ("1", "2"), ("0", "3", "4"), "0", seeds, second=Limit("general/bits_per_byte", 0.0, 5.0)
    )
    loss = 5.0 - LIMITS[cell.setting] / math.sqrt(cell.num_seeds)
    both = Cell("choice", "both", cell.num_seeds, cell.num_items)
    wrong = passed = broken = 0
    for _ in range(num_studies):
        scores, second = draw_study(random, both, None), loss + random.normal(size=(ARMS, cell.num_seeds))
        choice = choose(
            [
                Record(name, seed, _by_item(scores[name][seed]), float(second[int(name), seed]))
                for name in scores
                for seed in seeds
            ],
            plan,
            draws,
        )
        wrong += choice.champion not in (None, "0")
        passed += not choice.arm("1").excluded
        broken += bool(choice.arm("0").excluded)
    return {
        "false champion": wrong / num_studies,
        "candidate keeps it": passed / num_studies,
        "default breaks it": broken / num_studies,
    }


def _by_item(values: np.ndarray) -> dict[str, float]:
    return {f"{place:04}": float(value) for place, value in enumerate(values)}


def _test(random: np.random.Generator, cell: Cell, num_studies: int, draws: int) -> dict[str, float]:
    """One model of each of two arms."""
    groups, covered, better = _groups(random, cell), 0, 0
    for _ in range(num_studies):
        scores = draw_study(random, cell, groups)
        found = paired_difference(scores["1"][0], scores["0"][0], groups=groups)
        covered += not (found.is_positive or found.is_negative)
        better += found.is_positive
    return {"coverage": covered / num_studies, "called better": better / num_studies}
