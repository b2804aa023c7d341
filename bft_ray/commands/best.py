"""`bft-ray best`: what the studies of a domain have chosen."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command


def add(commands: Any) -> None:
    """Add the command and its options."""
    best = command(commands, "best", run, "show what the studies of a domain have chosen, and how to use it")
    best.add_argument("domain", metavar="DOMAIN", help="sub-domain, e.g. medical_qa")
    best.add_argument("--uri", help="tracking server or database (default: MLFLOW_TRACKING_URI, else that of a config)")
    best.add_argument("--version", metavar="N", help="this version instead of the champion")
    best.add_argument("--yaml", action="store_true", help="print its config alone")


def run(options: argparse.Namespace) -> int:
    """Print the champion of a domain."""
    from bft_ray.config import TrackingConfig
    from bft_ray.study.report.best import describe_champion
    from bft_ray.tracking.registry import find_champion

    uri = options.uri or TrackingConfig().uri
    champion = find_champion(TrackingConfig(uri=uri), options.domain, options.version)
    print(champion.config_yaml.rstrip() if options.yaml else describe_champion(champion, uri))
    return 0
