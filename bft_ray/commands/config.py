"""`bft-ray config`: the resolved config, its JSON schema, and the recipes."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command, overrides_argument
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    config = command(commands, "config", run, "show the resolved config or its JSON schema")
    config.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file or recipe")
    overrides_argument(config)
    what = config.add_mutually_exclusive_group()
    what.add_argument("--show", action="store_true", help="print the resolved config as YAML (the default)")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of the config")
    what.add_argument("--recipes", action="store_true", help="list the configs that come with the package")


def run(options: argparse.Namespace) -> int:
    """Print a config, the schema or the recipes."""
    from bft_ray.config import load_config, schema, to_yaml
    from bft_ray.config.load import recipes

    if options.schema:
        print(schema())
    elif options.recipes:
        for name, path in recipes().items():
            first = path.read_text().splitlines()[0].lstrip("# ")
            print(f"{name:<28}{first}")
    elif not options.config:
        raise BadInput("config", None, "a YAML file or a recipe", "Or ask for --schema or --recipes.")
    else:
        print(to_yaml(load_config(options.config, options.overrides)), end="")
    return 0
