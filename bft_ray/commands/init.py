"""`bft-ray init`: a study from a user's own rows."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command


def add(commands: Any) -> None:
    """Add the command and its options."""
    init = command(
        commands,
        "init",
        run,
        "from your own rows to a study: a config, a search space, four splits",
    )
    init.add_argument(
        "data", metavar="DATA", help="JSONL, JSON, CSV or Parquet file, saved datasets folder, or hub id (with --split)"
    )
    init.add_argument(
        "--prompt", metavar="COLUMN", help=r"column of the question, or a template: '{Question}\n\nContext: {context}'"
    )
    init.add_argument("--completion", metavar="COLUMN", help="column of the answer, or a template")
    init.add_argument(
        "--group", metavar="COLUMN", help="patient, document, gene ...: its rows stay on one side of a split"
    )
    init.add_argument(
        "--form", default="auto", metavar="NAME", help="form of the rows where several fit, such as medmcqa_from_1"
    )
    init.add_argument("--split", metavar="NAME", help="split of a hub dataset or saved folder, e.g. train")
    init.add_argument("--config-name", metavar="NAME", help="configuration of a hub dataset")
    init.add_argument("--limit", type=int, metavar="N", help="read only the first N rows")
    init.add_argument("--domain", help="sub-domain name (default: from the name of the data)")
    init.add_argument(
        "--model", default="starter", help="base model: starter (the default), smollm2, a folder or a hub id"
    )
    init.add_argument(
        "--space",
        default="bft",
        metavar="NAME",
        help="what the search varies: bft (the forms of BFT, the default), or families (token weights from plain "
        "fine-tuning to BFT, and an anchor)",
    )
    init.add_argument(
        "--out",
        type=Path,
        default="bft.yaml",
        metavar="FILE",
        help="YAML file, or a folder for bft.yaml; other files go beside it",
    )
    init.add_argument("--force", action="store_true", help="overwrite what an earlier init wrote there")


def run(options: argparse.Namespace) -> int:
    """Write the files of a study, and print what they are."""
    from bft_ray.operate.init.request import Request
    from bft_ray.operate.init.study import write_study

    print(write_study(Request(**{field.name: getattr(options, field.name) for field in fields(Request)})))
    return 0
