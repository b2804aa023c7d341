"""`bft-ray fetch`: what configs need from the hub."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command, overrides_argument
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    fetch = command(
        commands,
        "fetch",
        run,
        "bring all that configs need from the hub into its cache, and check it",
    )
    fetch.add_argument("sources", nargs="+", metavar="CONFIG_OR_SPACE", help="YAML files, recipes or search spaces")
    overrides_argument(fetch)


def run(options: argparse.Namespace) -> int:
    """Fetch it, and check it."""
    from bft_ray.operate.fetch.bring import fetch

    words = [*options.sources, *options.overrides]
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    sources = [word for word in words if word not in overrides]
    if not sources:
        raise BadInput("CONFIG_OR_SPACE", None, "a YAML file, a recipe or a search space")
    fetch(sources, overrides, lambda text: print(text, flush=True))
    return 0
