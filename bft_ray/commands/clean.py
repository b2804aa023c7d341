"""`bft-ray clean`: what was made of a data set, and its removal."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import Any

from bft_ray.commands.shared import command, config_arguments


def add(commands: Any) -> None:
    """Add the command and its options."""
    clean = command(
        commands,
        "clean",
        run,
        "list what was made of a config's data, with sizes, and remove it when asked",
    )
    config_arguments(clean)
    clean.add_argument("--database", metavar="URL", help="of studies (default: as for `bft-ray search`)")
    clean.add_argument("--yes", action="store_true", help="remove all of it without asking")


def run(options: argparse.Namespace) -> int:
    """List what was made, and remove it when asked; 1 where something is still there."""
    from bft_ray.config import load_config
    from bft_ray.operate.clean import found_places, listed
    from bft_ray.places.addresses import sqlite_path
    from bft_ray.study.records.database import database_url

    config = load_config(options.config, options.overrides, for_training=False)
    places = found_places(config, database_url(options.database))
    path = sqlite_path(database_url(options.database))
    if path is not None and not path.is_file():  # else "nothing was found" would speak of studies too
        print(f"note: there is no database of studies at {path}: no study was looked for; --database URL names another")
    print(listed(places, config))
    if not places:
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            print("nothing was removed; --yes removes all of it")
            return 0
        if input(f"Remove these {len(places)} places for good? Type yes: ").strip().lower() != "yes":
            print("nothing was removed")
            return 0
    with ExitStack() as held:
        for place in places:  # a run that trains refuses, before all else
            held.enter_context(place.held())
        for place in sorted(places, key=lambda place: place.kind != "records"):  # and so does a study that runs
            place.remove()
    left = found_places(config, database_url(options.database))
    print(f"removed {len(places) - len(left)} places")
    for place in left:
        print(f"error: {place.name} is still there", file=sys.stderr)
    return int(bool(left))
