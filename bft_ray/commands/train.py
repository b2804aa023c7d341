"""`bft-ray train`: fine-tune with a config, or with the champion of a domain."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bft_ray.commands.shared import command, config_arguments, print_metrics
from bft_ray.errors import BadInput


def add(commands: Any) -> None:
    """Add the command and its options."""
    train = command(commands, "train", run, "fine-tune: Ray Train workers, DeepSpeed, one MLflow run")
    resumes = "; the same command with its name resumes from the last checkpoint"
    train.set_defaults(after_interrupt=resumes)
    config_arguments(train, nargs="?")
    train.add_argument("--champion", metavar="DOMAIN", help="the config that a study chose, instead of CONFIG")
    train.add_argument("--uri", help="tracking server or database that has the champion (default: that of a config)")
    train.add_argument("--profile", action="store_true", help="profile 5 steps: a torch trace, a table of the time")


def run(options: argparse.Namespace) -> int:
    """Train, then print the metrics and what comes next; 1 where MLflow lacks something."""
    config = _train_config(options)
    from bft_ray.operate.lasting import require_outlasting
    from bft_ray.operate.road import after_train
    from bft_ray.tracking.server import page_of, where
    from bft_ray.train.launch import train  # after the config: a typo is reported at once

    require_outlasting(config)
    result = train(config)
    print(f"run       {result.name} (MLflow run {result.run_id})")
    print(f"exported  {result.export} (weights of step {result.step})")
    print_metrics(result.before, result.after)
    print(f"look      {page_of(config.tracking.uri)}")
    source = None if options.champion else options.config
    option = where(config.tracking.uri)[0] if options.champion else ""
    print(after_train(source, options.overrides, result.export, options.champion or "", option))
    if result.missing:
        lacks = ", ".join(f"{what} ({why})" for what, why in sorted(result.missing.items()))
        print(f"error: the model is trained and exported, but MLflow lacks: {lacks}", file=sys.stderr)
    return int(bool(result.missing))


def _train_config(options: argparse.Namespace) -> Any:
    """The config of the file or recipe, or that of a champion."""
    from bft_ray.config import TrackingConfig, load_config

    overrides = [*(["tracking.profile_steps=5"] if options.profile else []), *options.overrides]
    source = options.config
    if options.champion and source and "=" in source:  # an override is in the place of the config
        source, overrides = None, [source, *overrides]
    if bool(source) == bool(options.champion):
        remedy = "Use one of the two: `bft-ray train CONFIG`, or `bft-ray train --champion DOMAIN`."
        raise BadInput("CONFIG", source, "left out with --champion" if source else "given, or --champion", remedy)
    if source:
        if options.uri:
            raise BadInput("--uri", options.uri, "left out without --champion", "Give tracking.uri=URI.")
        return load_config(source, overrides)
    from bft_ray.study.report.best import champion_config
    from bft_ray.tracking.registry import find_champion

    uri = options.uri or TrackingConfig().uri
    return champion_config(find_champion(TrackingConfig(uri=uri), options.champion), uri, overrides)
