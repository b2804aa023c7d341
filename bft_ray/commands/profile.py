"""`bft-ray profile`: what windows, epsilons and caps would do to a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bft_ray.commands.shared import command, config_arguments, say
from bft_ray.errors import BadInput

#: sections whose overrides leave a profile one of the config's own runs, so that its space is rewritten
_SAME_SPACE = {"profile", "cluster", "tracking"}


def add(commands: Any) -> None:
    """Add the command and its options."""
    profile = command(commands, "profile", run, "what windows, epsilons and caps would do to a dataset")
    config_arguments(profile)
    profile.add_argument("--model", metavar="PATH", help="folder or hub id to profile with instead of model.path")
    profile.add_argument("--out", metavar="FOLDER", help="where files go (default: STORAGE/profiles/DOMAIN[-MODEL])")
    profile.add_argument("--against", metavar="FOLDER", help="an earlier profile: how far have the weights moved?")
    profile.add_argument("--no-mlflow", action="store_true", help="record nothing in MLflow")


def run(options: argparse.Namespace) -> int:
    """Profile, then print the findings and what comes next."""
    from bft_ray.config import load_config

    config = load_config(options.config, options.overrides)
    if options.model:
        model = config.model.model_copy(update={"path": options.model, "adapter": None})
        config = config.model_copy(update={"model": model})
    from bft_ray.profile.page import next_steps, to_text
    from bft_ray.profile.rewrite import space_beside
    from bft_ray.profile.run import model_label, profile_data

    if not options.out and "://" in config.cluster.storage_path:
        raise BadInput("--out", None, "given where cluster.storage_path is an object store", "Name a local folder.")
    name = f"{config.domain}-{model_label(options.model)}" if options.model else config.domain
    out = Path(options.out) if options.out else Path(config.cluster.storage_path) / "profiles" / name
    against = Path(options.against) if options.against else None
    beside = space_beside(options.config)
    space = None if options.model or not set(map(_section, options.overrides)) <= _SAME_SPACE else beside
    profile = profile_data(
        config, out, against, options.config, track=not options.no_mlflow, progress=_shards, space=space
    )
    print(to_text(profile))
    print(f"\npage      {out / 'profile.html'}")
    print(next_steps(profile, out, beside))
    return 0


def _section(override: str) -> str:
    return override.partition("=")[0].partition(".")[0]


def _shards(done: int, total: int) -> None:
    say(f"forward pass: {done} of {total} shards")
