"""`bft-ray compare`: answers of several models side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command, say
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    compare = command(
        commands,
        "compare",
        run,
        "answers of several models to held-out prompts, side by side, for you alone",
    )
    compare.add_argument("models", nargs="*", default=[], metavar="MODEL", help="folder, hub id, starter or smollm2")
    compare.add_argument("--champion", metavar="DOMAIN", help="also the base, the default and the champion of a domain")
    compare.add_argument("--uri", help="tracking server or database that has the champion (default: that of a config)")
    compare.add_argument("--prompts", metavar="FILE", help="rows that no model was trained on, e.g. test.jsonl")
    compare.add_argument("--limit", type=int, default=20, metavar="N", help="the first N rows (default: 20)")
    compare.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    compare.add_argument(
        "--out", default="compare.html", metavar="FILE", help="page, of mode 0600 (default: compare.html)"
    )


def run(options: argparse.Namespace) -> int:
    """Write the page, and print its path."""
    if not options.prompts:
        raise BadInput(
            "--prompts", None, "a file of rows that no model was trained on", "For example --prompts test.jsonl."
        )
    for name, value in (("--limit", options.limit), ("--max-new-tokens", options.max_new_tokens)):
        if value < 1:
            raise BadInput(name, value, "at least 1")
    from bft_ray.operate.compare import compare_models

    path = compare_models(
        options.models,
        Path(options.prompts),
        domain=options.champion,
        uri=options.uri,
        out=Path(options.out),
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        line=say,
    )
    print(path)
    return 0
