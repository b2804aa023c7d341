"""`bft-ray search`: a study, or a series of studies: run, show or cancel it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command, overrides_argument, price_argument, say
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    search = command(commands, "search", run, "find the settings that suit a dataset, and confirm them")
    search.set_defaults(after_interrupt="; the same command resumes the study")
    search.add_argument("space", metavar="SPACE", help="search space: YAML file or a bundled one (--list)", nargs="?")
    overrides_argument(search, "fields of the space (budget.trials=40) or of the config")
    search.add_argument("--config", metavar="CONFIG", help="config to vary instead of the space's own")
    search.add_argument(
        "--database",
        metavar="URL",
        help="of the study: sqlite:///FILE or postgresql://... (default: the environment variable STUDY_DATABASE, which "
        "shows its password to nobody, else sqlite:///bft_studies.db)",
    )
    search.add_argument("--no-profile", action="store_true", help="do not draw the window profile of the data")
    search.add_argument("--no-measure", action="store_true", help="do not measure time and memory on a few steps first")
    price_argument(search)
    how = search.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="check everything, print what would run and what it costs")
    how.add_argument(
        "--status", action="store_true", help="the status of the study, from any machine; without SPACE a line for each"
    )
    how.add_argument("--cancel", action="store_true", help="end the study cleanly; the same command resumes it")
    how.add_argument("--list", action="store_true", help="the search spaces that come with the package")


def run(options: argparse.Namespace) -> int:
    """Run, show or cancel a study or a series; 1 where it found no answer."""
    from bft_ray.space.series import all_series, find_series, load_series

    if options.list:
        from bft_ray.space.load import load_space, spaces

        for name in spaces():
            print(f"{name:<20}{load_space(name).description}")
        for name, path in all_series().items():
            print(f"{name:<20}{load_series(path).question}")
        return 0
    if options.space and (series := find_series(options.space)) is not None:
        return _series_command(series, options)
    from bft_ray.operate.studies import cancel_study, dry_run, run_study, status_of
    from bft_ray.study.records.database import database_url

    database = database_url(options.database)
    if options.status:
        print(status_of(options.space, options.config, options.overrides, database))
        return 0
    if not options.space:
        raise BadInput("SPACE", None, "a YAML file or the name of a search space", "`bft-ray search --list` has them.")
    if options.cancel:
        print(cancel_study(options.space, options.config, options.overrides, database))
        return 0
    if options.price_per_gpu_hour is not None and not options.dry_run:
        raise BadInput("--price-per-gpu-hour", options.price_per_gpu_hour, "left out without --dry-run")
    if options.dry_run:
        print(
            dry_run(
                options.space,
                options.config,
                options.overrides,
                measure=not options.no_measure,
                price=options.price_per_gpu_hour,
                line=say,
            )
        )
        return 0
    chosen: dict[str, Any] = {"profile": not options.no_profile, "measure": not options.no_measure}
    result = run_study(options.space, options.config, options.overrides, database, **chosen)
    print(result.text)
    if result.failed:
        print(f"error: {result.failed}", file=sys.stderr)
    return int(bool(result.failed))


def _series_command(path: Path, options: argparse.Namespace) -> int:
    """`bft-ray search` of a series: each option does for all of its studies what it does for one."""
    from bft_ray.operate.series import dry_run_series, run_series, status_of_series
    from bft_ray.operate.studies import cancel_study
    from bft_ray.space.series import load_series
    from bft_ray.study.records.database import database_url

    database, series = database_url(options.database), load_series(path)
    if options.price_per_gpu_hour is not None:
        raise BadInput("--price-per-gpu-hour", options.price_per_gpu_hour, "left out with a series")
    if options.status:
        print(status_of_series(path, options.config, options.overrides, database))
    elif options.cancel:
        for name in series.conditions:
            own = series.study_overrides(name, options.overrides)
            with contextlib.suppress(BadInput):  # not begun
                print(cancel_study(series.space, options.config, own, database))
    elif options.dry_run:
        print(dry_run_series(path, options.config, options.overrides, say, measure=not options.no_measure))
    else:
        chosen: dict[str, Any] = {"profile": not options.no_profile, "measure": not options.no_measure}
        print(run_series(path, options.config, options.overrides, database, say, **chosen))
    return 0
