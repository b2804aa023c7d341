"""`bft-ray report`: the page of a study, a series, or all studies of a database."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command, overrides_argument
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    report = command(
        commands,
        "report",
        run,
        "the answer of a study as one page, made from its records at any time",
    )
    report.add_argument(
        "study", metavar="STUDY", nargs="?", help="NAME, NAME/DOMAIN or its search space; may still run"
    )
    overrides_argument(report, "as given to `bft-ray search`, for a space")
    report.add_argument("--config", metavar="CONFIG", help="as given to `bft-ray search`, for a space")
    report.add_argument("--database", metavar="URL", help="of the study (default: as for `bft-ray search`)")
    report.add_argument("--domains", action="store_true", help="instead all studies of the database, domain by domain")
    report.add_argument("--out", metavar="FILE", help="HTML file (default: NAME-DOMAIN.html, or domains.html)")


def run(options: argparse.Namespace) -> int:
    """Write the page, and print its path."""
    if bool(options.study) == options.domains:
        raise BadInput("STUDY", options.study, "one study, or --domains for all", "Give one of the two.")
    from bft_ray.operate.report import domains_report, study_report  # neither torch nor Ray
    from bft_ray.space.series import find_series
    from bft_ray.study.records.database import database_url

    out, database = Path(options.out) if options.out else None, database_url(options.database)
    series = find_series(options.study) if options.study else None
    if options.domains:
        path = domains_report(database, out)
    elif series is not None:
        from bft_ray.operate.series import series_report

        path = series_report(series, options.config, options.overrides, database, out)
    else:
        path = study_report(options.study, options.config, options.overrides, database, out)
    print(path)
    return 0
