"""`bft-ray ui`: MLflow's page over a database."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command


def add(commands: Any) -> None:
    """Add the command and its options."""
    ui = command(
        commands,
        "ui",
        run,
        "MLflow's page over a database, on loopback, for whoever has the link that it prints",
    )
    ui.add_argument("--uri", help="database (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)")
    ui.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: a free one)")


def run(options: argparse.Namespace) -> int:
    """Show the page until the user ends it."""
    from bft_ray.config import TrackingConfig
    from bft_ray.tracking.ui import show

    show(options.uri or TrackingConfig().uri, options.port)
    return 0
