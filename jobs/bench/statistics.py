"""How often the confirmation errs, in simulated studies whose truth is known (`jobs.bench.simulated`).

    python -m jobs.bench.statistics --out docs/statistics.jsonl --studies 4000 --markdown docs/statistics.md

A cell is a setting, a number of seeds and of items. Told are, with Monte Carlo errors of sqrt(p (1 - p) / studies), for the choice

    false champion   studies in which an arm is called better than the default without being so; at most 5 % by promise
    coverage         studies in which all intervals hold the true gain, 0; at least 95 % by promise
    warned           studies in which items are too skewed for any claim about arm 1
    claimed power    of the gains called detectable by one study, those that a fresh study with that true gain shows; 80 %;
                     of fewer than 50 such gains nothing is told
    power            studies that show a true gain of one arm, of 4 standard errors
    before, wrong    the same by t with each arm's own variance and Bonferroni's correction, two-sided, and its false champions

(powers from a fourth of the studies); for the second objective, whose true loss lies at its limit or one standard error inside,
identical arms through the whole rule: false champions, and how often a candidate is shown to keep the limit and the default is
shown to break it; for the test split, the coverage of its interval.

A cell is written when it is done, and a cell that the file has is not done again: the run may be cut at any time.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from jobs.bench.simulated import LIMITS, SETTINGS, Cell, simulate

Line = dict[str, float | str]
_ONE_RUN = ("items", "sparse", "skewed", "far skewed", "shared genes 20 %", "shared genes 50 %")
COLUMNS = {
    "choice": ("false champion", "coverage", "warned", "claimed power", "power", "before", "wrong"),
    "limit": ("false champion", "candidate keeps it", "default breaks it"),
    "test": ("coverage", "called better"),
}
#: Markdown between these lines of a page is written by `--markdown`
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def cells(small: bool = False) -> list[Cell]:
    """Those of the tables; `small`: those of the tests."""
    if small:
        choices = [Cell("choice", name, 5, 60) for name in SETTINGS]
        return [*choices, Cell("limit", "at the limit", 5, 30), Cell("test", "sparse", 1, 120)]
    items, seeds = (30, 120, 1000), (3, 5, 10)
    return [
        *(Cell("choice", name, s, n) for name in SETTINGS for n in items for s in seeds),
        *(Cell("limit", name, s, 30) for name in LIMITS for s in seeds),
        *(Cell("test", name, 1, n) for name in _ONE_RUN for n in items),
    ]


def table(kind: str, lines: list[Line]) -> str:
    """Markdown, of the cells of a kind."""
    columns = ["setting", "num_seeds", "num_items", *COLUMNS[kind]]
    rows = [[name.replace("num_", "") for name in columns], ["---"] * len(columns)]
    for line in lines:
        values = [line.get(name, "") for name in columns]
        rows.append([f"{value:.3f}" if isinstance(value, float) else str(value) for value in values])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def tables(lines: list[Line]) -> str:
    """Markdown, of all."""
    own = {kind: [line for line in lines if line["kind"] == kind] for kind in COLUMNS}
    titles = {"choice": "The choice", "limit": "The limit of a second objective", "test": "The test split"}
    return "\n\n".join(f"### {titles[kind]}\n\n{table(kind, own[kind])}" for kind in COLUMNS if own[kind])


def main() -> None:
    """Simulate the cells that the file lacks, in two processes, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="bench_statistics.jsonl", help="a line a cell; those in it are not done again")
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies a cell")
    parser.add_argument("--kind", action="append", choices=sorted(COLUMNS), help="this alone; may be repeated")
    parser.add_argument("--setting", action="append", choices=[*SETTINGS, *LIMITS], help="this alone; may be repeated")
    parser.add_argument("--items", type=int, action="append", help="this number of items alone; may be repeated")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes")
    parser.add_argument(
        "--markdown", type=Path, help="a page: what stands between its two marks is replaced by the tables"
    )
    args = parser.parse_args()
    path = Path(args.out)
    wanted = [
        cell
        for cell in cells()
        if cell.kind in (args.kind or COLUMNS)
        and cell.setting in (args.setting or [cell.setting])
        and cell.num_items in (args.items or [cell.num_items])
    ]
    done = {_cell(line) for line in _read(path, args.studies)}
    left = [cell for cell in wanted if cell not in done]
    with ProcessPoolExecutor(args.workers) as pool, path.open("a") as out:
        for cell, told in zip(left, pool.map(simulate, left, [args.studies] * len(left)), strict=True):
            out.write(json.dumps(asdict(cell) | {"studies": args.studies} | told) + "\n")
            out.flush()
    found = {_cell(line): line for line in _read(path, args.studies)}
    text = tables([found[cell] for cell in cells() if cell in found])
    print(text)
    if args.markdown:
        before, rest = args.markdown.read_text().split(BEGIN)
        args.markdown.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def _cell(line: Line) -> Cell:
    return Cell(str(line["kind"]), str(line["setting"]), int(line["num_seeds"]), int(line["num_items"]))


def _read(path: Path, num_studies: int) -> Iterator[Line]:
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
