"""`bft-ray submit`: a command as a job of a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    submit = command(
        commands,
        "submit",
        run,
        "run any of these commands as a job of a Ray cluster, and follow it",
    )
    submit.add_argument(
        "--address", metavar="URL", help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS)"
    )
    submit.add_argument(
        "--working-dir", default=".", metavar="FOLDER", help="uploaded, and the folder of the job (default: .)"
    )
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="for the job; Ray's record of it shows the value",
    )
    what = submit.add_mutually_exclusive_group()
    what.add_argument("--no-follow", action="store_true", help="return once the cluster has the job")
    what.add_argument(
        "--follow", metavar="JOB", help="follow this job, which was submitted before, instead of a COMMAND"
    )
    submit.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="e.g. search medical_qa budget.trials=40"
    )


def run(options: argparse.Namespace) -> int:
    """Submit a job and follow it, or follow one again; returns its exit status."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if options.follow:
        if words:
            raise BadInput("COMMAND", words[0], "left out with --follow")
        from bft_ray.operate.submit.job import follow_again

        return follow_again(options.follow, options.address)
    _check_words(options.parser, words)
    from bft_ray.operate.submit.job import submit

    return submit(words, options.address, Path(options.working_dir), options.env, follow=not options.no_follow)


def _check_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """A command for a job is one of these; what is wrong with its options ends here and not on the cluster."""
    if not words or words[0] in {"submit", "ui", "init"}:
        given = words[0] if words else None
        raise BadInput(
            "COMMAND", given, "a command that can run on a cluster", "Example: bft-ray submit search medical_qa."
        )
    options, _ = parser.parse_known_args(words)
    if not hasattr(options, "run"):
        raise BadInput("COMMAND", words[0], "a command of bft-ray", "Options of `submit` stand before it.")
