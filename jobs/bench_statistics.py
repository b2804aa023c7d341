"""How often the confirmation errs, in simulated studies whose truth is known.

    python -m jobs.bench_statistics --out bench_statistics.jsonl --studies 4000

A cell is a setting, a number of seeds and of items. Each simulated study has five arms: the default and four others, without any
true difference. Told are, with Monte Carlo errors of sqrt(p (1 - p) / studies):

    false champion   studies in which an arm is called better than the default; at most 5 % by promise
    coverage         studies in which all intervals hold the true gain, 0; at least 95 % by promise
    claimed power    of the gains called detectable by one study, those that a fresh study with that true gain shows; 80 %
    power, before    studies that show a true gain (of 4 standard errors) of one arm, and that would by t with each arm's own
                     variance and Bonferroni's correction, two-sided

A cell is written when it is done, and a cell that the file has is not done again: the run may be cut at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from bft_ray.stats.crossed import error_parts
from bft_ray.stats.errors import Groups
from bft_ray.stats.simultaneous import compare_with

ARMS, ALPHA = 5, 0.05
Scores = np.ndarray  # [ARMS, S, n]


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

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
    """

    item: float = 1.0
    run: float = 0.2
    rest: float = 1.0
    loud: tuple[float, ...] = (1.0,) * ARMS
    draw_items: Callable[[np.random.Generator, tuple[int, int]], np.ndarray] | None = None
    genes: float = 0.0
    flips: float = 0.0


def _left_skewed(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Most items a little better, few much worse: 1 - exponential."""
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
    "shared genes": Setting(run=0.05, genes=0.35),
}


def cells(small: bool = False) -> list[Cell]:
    """Those of the table; `small`: those of the tests."""
    if small:
        return [Cell(name, 5, 60) for name in SETTINGS]
    return [Cell(name, s, n) for name in SETTINGS for n in (30, 120, 1000) for s in (3, 5, 10)]


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
        scores = common + setting.item * items[:, None] + runs + setting.rest * random.normal(size=shape)
    scores[1] += gain
    return {str(arm): scores[arm] for arm in range(ARMS)}


def simulate(cell: Cell, num_studies: int, draws: int = 1000, seed: int = 0) -> dict[str, float]:
    """Shares of the studies of a cell; see the head of the file."""
    random = np.random.default_rng([seed, cell.num_seeds, cell.num_items, sorted(SETTINGS).index(cell.setting)])
    groups = draw_groups(random, cell.num_items) if SETTINGS[cell.setting].genes else None
    wrong = covered = kept = claims = 0
    gain = 0.0
    shown = before = 0
    for study in range(num_studies):
        found = compare_with(draw_study(random, cell, groups), "0", ALPHA, draws, study, groups).comparisons
        wrong += any(one.is_better for one in found.values())
        covered += all(one.low <= 0 <= one.high for one in found.values())
        claim, gain = found["1"].detectable, gain or 4 * found["1"].se
        if study % 4 == 0 and math.isfinite(claim):  # a fourth of the studies is enough for power
            claims += 1
            again = compare_with(draw_study(random, cell, groups, claim), "0", ALPHA, draws, study, groups)
            kept += again.comparisons["1"].is_better
            scores = draw_study(random, cell, groups, gain)
            shown += compare_with(scores, "0", ALPHA, draws, study, groups).comparisons["1"].is_better
            before += _plain(scores["1"] - scores["0"])
    told = {"false champion": wrong / num_studies, "coverage": covered / num_studies}
    if claims:
        told |= {"claimed power": kept / claims, "power": shown / claims, "before": before / claims}
    return told


def _plain(difference: np.ndarray) -> bool:
    """Whether t on the arm's own seeds and items, mixed as Cochran (1964) does, sees a gain at alpha / 4, two-sided."""
    own, rest = error_parts(difference)
    item = max(0.0, float(difference.mean(0).var(ddof=1)) / difference.shape[1] - rest)
    t_seed, t_item = (float(stats.t.isf(ALPHA / 2 / (ARMS - 1), size - 1)) for size in difference.shape)
    se = math.sqrt(own + item)
    return se > 0 and float(difference.mean()) > (own * t_seed + item * t_item) / se


def table(lines: list[dict[str, float | str]]) -> str:
    """Markdown."""
    columns = [
        "setting",
        "num_seeds",
        "num_items",
        "studies",
        "false champion",
        "coverage",
        "claimed power",
        "power",
        "before",
    ]
    rows = [columns, ["---"] * len(columns)]
    for line in lines:
        values = [line.get(name, "") for name in columns]
        rows.append([f"{value:.3f}" if isinstance(value, float) else str(value) for value in values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Simulate the cells that the file lacks, in two processes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="bench_statistics.jsonl", help="a line a cell; those in it are not done again")
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies a cell")
    parser.add_argument("--setting", action="append", choices=sorted(SETTINGS), help="this alone; may be repeated")
    parser.add_argument("--items", type=int, action="append", help="this number of items alone; may be repeated")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    args = parser.parse_args()
    path = Path(args.out)
    wanted = [
        c for c in cells() if c.setting in (args.setting or SETTINGS) and c.num_items in (args.items or [c.num_items])
    ]
    done = {(line["setting"], line["num_seeds"], line["num_items"]) for line in _read(path, args.studies)}
    left = [cell for cell in wanted if (cell.setting, cell.num_seeds, cell.num_items) not in done]
    with ProcessPoolExecutor(args.workers) as pool, path.open("a") as out:
        for cell, told in zip(left, pool.map(simulate, left, [args.studies] * len(left)), strict=True):
            out.write(json.dumps(asdict(cell) | {"studies": args.studies} | told) + "\n")
            out.flush()
    print(table(list(_read(path, args.studies))))


def _read(path: Path, num_studies: int) -> Iterator[dict[str, float | str]]:
    """Whole lines of this number of studies; the last one may be torn."""
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["studies"] == num_studies:
            yield line


if __name__ == "__main__":
    main()
