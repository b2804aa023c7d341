"""What several commands share: options, and what they print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any


def command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    """A new command, to which its options are added.

    Args:
        commands: what `add_subparsers` returns.
        run: options -> exit status.
        text: its line in the help, without a full stop.
    """
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def config_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add CONFIG and its overrides."""
    text = "YAML file, or recipe (bft-ray config --recipes lists them)"
    parser.add_argument("config", metavar="CONFIG", help=text, nargs=nargs)
    overrides_argument(parser)


def overrides_argument(
    parser: argparse.ArgumentParser, text: str = "overrides such as loss.window=64 or data.train.0.limit=100"
) -> None:
    """Add FIELD=VALUE, as often as wanted."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="FIELD=VALUE", help=text)


def price_argument(parser: argparse.ArgumentParser) -> None:
    """Add the price of a GPU."""
    text = "price of an hour of one GPU, in your currency: prints the price of measured hours"
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="PRICE", help=text)


def say(text: str) -> None:
    """A line about the course of a command; its result alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def print_metrics(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """A small table: metric, before (where measured), after."""
    from bft_ray.config.metrics import format_value, is_judged

    names = [name for name in after if is_judged(name)]
    if not names:
        return
    width = max(map(len, names))
    if before:
        print(f"{'metric':<{width}}  {'before':>10}  {'after':>10}")
    for name in names:
        old = f"  {format_value(name, before[name]) if name in before else '':>10}" if before else ""
        print(f"{name:<{width}}{old}  {format_value(name, after[name]):>10}")
