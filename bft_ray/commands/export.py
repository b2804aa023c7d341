"""`bft-ray export`: the champion of a domain as one checked model."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command, say


def add(commands: Any) -> None:
    """Add the command and its options."""
    export = command(
        commands,
        "export",
        run,
        "the champion of a domain as one checked model, with its evidence",
    )
    export.add_argument("domain", metavar="DOMAIN", help="sub-domain, e.g. medical_qa")
    export.add_argument(
        "--uri", help="tracking server or database (default: MLFLOW_TRACKING_URI, else that of a config)"
    )
    export.add_argument("--version", metavar="N", help="this version instead of the champion")
    export.add_argument("--out", metavar="FOLDER", help="new folder or URI (default: bft-DOMAIN-VERSION)")
    export.add_argument(
        "--push", metavar="REPOSITORY", help="also to a hub, private where it is new (HF_TOKEN, HF_ENDPOINT)"
    )
    export.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the model: only if you read it",
    )


def run(options: argparse.Namespace) -> int:
    """Export the champion, then print what was checked."""
    from bft_ray.operate.export import export_champion

    given = (options.domain, options.uri, options.version, options.out, options.push)
    found = export_champion(*given, say, options.trust_remote_code)
    print(f"model     {found.folder}: {found.champion}, merged, {found.checks.num_parameters:,} parameters")
    print(f"checked   loads with transformers; stops at {', '.join(found.checks.ends)}; vLLM: {found.checks.engine}")
    print(f"card      {found.folder}/README.md")
    if found.pushed:
        print(f"pushed    {found.pushed}")
    return 0
