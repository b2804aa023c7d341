"""`bft-ray after-rl`: a policy-gradient stage after fine-tuning."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command, overrides_argument, say


def add(commands: Any) -> None:
    """Add the command and its options."""
    after_rl = command(
        commands,
        "after-rl",
        run,
        "does a policy-gradient stage (GRPO) improve models fine-tuned by sft, dft and bft? Needs the extra rl",
    )
    after_rl.set_defaults(after_interrupt="; the same command resumes the study")
    after_rl.add_argument(
        "study", metavar="STUDY", nargs="?", default="starter", help="YAML file or a bundled one (default: starter)"
    )
    overrides_argument(after_rl, "fields of the study (grpo.steps=80) or of the config")
    how = after_rl.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="check everything, and print what would run")
    how.add_argument("--status", action="store_true", help="what the runs that have ended say")
    how.add_argument("--list", action="store_true", help="the studies of this kind that come with the package")


def run(options: argparse.Namespace) -> int:
    """Run or show a study of GRPO after fine-tuning."""
    from bft_ray.operate.after_rl.definition import bundled, load_after_rl

    if options.list:
        for name, path in bundled().items():
            print(f"{name:<20}{load_after_rl(str(path)).question}")
        return 0
    if "=" in options.study:  # an override is in the place of the study
        options.study, options.overrides = "starter", [options.study, *options.overrides]
    study = load_after_rl(options.study, options.overrides)
    from bft_ray.operate.after_rl.run import plan_of, run_after_rl, status_of

    if options.dry_run:
        print(plan_of(study))
    elif options.status:
        print(status_of(study))
    else:
        print(run_after_rl(study, say))
    return 0
