"""Write down what studies found, for docs/what-we-measured.md: from their database into docs/measured/NAME.json.

    python -m jobs.measured --database sqlite:///bft_studies.db window ablation/gene_interaction
    python -m jobs.measured after-rl/starter

A NAME is a series; or a study as its database names it, STUDY/DOMAIN, whose file is STUDY_DOMAIN.json; or after-rl/STUDY, of which the
results of the config's storage are read. `python -m jobs.docs` puts the files into the page, so that every figure there is the one of
the records. Sentences are those of the product's own reports.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bft_ray.operate.after_rl.answer import sentences as sentences_after_rl
from bft_ray.operate.after_rl.definition import load_after_rl
from bft_ray.operate.after_rl.page import arms_table as arms_after_rl
from bft_ray.operate.after_rl.page import statements_table
from bft_ray.operate.after_rl.run import prepare
from bft_ray.operate.series import read_series
from bft_ray.page.model import Table
from bft_ray.space.series import find_series, load_series
from bft_ray.study.kept import Known, known
from bft_ray.study.records.database import Database
from bft_ray.study.records.leaderboard import saved
from bft_ray.study.records.store import Store
from bft_ray.study.report.arms import arms_table
from bft_ray.study.report.claims import claims_table as claims_of
from bft_ray.study.report.peaks import peak_table
from bft_ray.study.report.sections.cost import hours
from bft_ray.study.report.sections.head import answer
from bft_ray.study.report.series import claims_table, sentences, trends_table, values_table

FOLDER = Path(__file__).parents[1] / "docs" / "measured"


def main() -> int:
    """Write a file for each name."""
    parser = argparse.ArgumentParser(description="write down what studies found, for docs/what-we-measured.md")
    parser.add_argument("names", nargs="+", metavar="NAME", help="a series, STUDY/DOMAIN, or after-rl/STUDY")
    parser.add_argument("--database", default="sqlite:///bft_studies.db", help="of the studies")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        found = found_of(name, args.database)
        path = file_of(args.out, name)
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)
    return 0


def found_of(name: str, database: str) -> dict[str, Any]:
    """What the series or study of this name found: question, sentences, tables, cost."""
    kind, _, rest = name.partition("/")
    if kind == "after-rl":
        return of_after_rl(rest)
    return of_study(name, database) if rest else of_series(name, database)


def file_of(folder: Path, name: str) -> Path:
    """The file of a series or study; its stem has only word characters, for `jobs.docs` names parts of pages so."""
    return folder / f"{re.sub(r'[^a-zA-Z0-9_]', '_', name)}.json"


def of_series(name: str, database: str) -> dict[str, Any]:
    """What a bundled series found, as far as it is finished."""
    path = find_series(name)
    if path is None:
        raise SystemExit(f"{name} is no series")
    found = read_series(load_series(path), None, [], database)
    tables = [("Claims", claims_table(found))]
    values = values_table(found)
    tables += [("Means of the other metrics", values)] if values.rows else []
    tables += [("Trends", trends_table(found.slopes))] if found.slopes else []
    tables += [(f"The best {one.peak.setting}", peak_table(one)) for one in found.peaks if one.best]
    tables += [(condition, arms_table(own.choice)) for condition, own in found.known.items() if own.choice is not None]
    return _told(found.series.question, sentences(found), tables, list(found.known.values()))


def of_study(name: str, database: str) -> dict[str, Any]:
    """What a study found."""
    with Database(database, make=False) as opened:
        own = known(Store.find(opened, name))
    if own.choice is None:
        raise SystemExit(f"{name} has no answer yet")
    return _told("", [answer(own)], [("Claims", claims_of(own.choice)), ("Arms", arms_table(own.choice))], [own])


def of_after_rl(name: str) -> dict[str, Any]:
    """What a study of GRPO after fine-tuning found, as far as it is finished."""
    study = load_after_rl(name)
    found = prepare(study).told()
    runs = [run for own in found.runs.values() for run in own]
    tables = [("Arms", arms_after_rl(found)), ("Statements", statements_table(found.statements))]
    cost = f"{len(runs)} runs, {sum(run.seconds for run in runs) / 3600:.2f} hours of GRPO and measurements."
    return _written(study.question, [text.replace("**", "") for text in sentences_after_rl(found)], tables, cost)


def _told(
    question: str, texts: Sequence[str], tables: Sequence[tuple[str, Table]], studies: Sequence[Known]
) -> dict[str, Any]:
    parts = [(own, part) for own in studies for part in own.parts.values()]
    trials = sum(not record.duplicate_of for _, part in parts for record in part)
    steps = sum(saved(part).trained for _, part in parts)
    worked = sum(hours(record, own.study) for own, part in parts for record in part)
    return _written(question, texts, tables, f"{trials} trials, {steps:,} steps, {round(worked, 2):g} worker-hours.")


def _written(question: str, texts: Sequence[str], tables: Sequence[tuple[str, Table]], cost: str) -> dict[str, Any]:
    return {
        "question": question,
        "sentences": list(texts),
        "tables": [{"title": title, "head": list(table.head), "rows": table.texts()[1:]} for title, table in tables],
        "cost": cost,
    }


def markdown(path: Path) -> str:
    """What stands in the page of a file that `main` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"- {text}" for text in found["sentences"]]
    for table in found["tables"]:
        lines += ["", f"{table['title']}:", "", _row(table["head"]), _row(["---"] * len(table["head"]))]
        lines += [_row(row) for row in table["rows"]]
    return "\n".join([*lines, "", found["cost"]])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
