"""`bft-ray doctor`: what is wrong with a machine, cluster, server or config."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command, overrides_argument


def add(commands: Any) -> None:
    """Add the command and its options."""
    doctor = command(commands, "doctor", run, "say what is wrong with this machine, cluster, server or config")
    doctor.add_argument("config", nargs="?", metavar="CONFIG", help="also check what this config asks for")
    overrides_argument(doctor)


def run(options: argparse.Namespace) -> int:
    """Print the findings; the exit status tells the worst of them."""
    from bft_ray.config import load_config
    from bft_ray.operate.doctor import diagnose, exit_code, render

    if not options.config:
        findings = diagnose()
        print(render(findings))
        return exit_code(findings)
    from bft_ray.operate.road import after_doctor, space_of

    config = load_config(options.config, options.overrides, for_training=False)
    trains = bool(config.data.train)
    if trains:  # then all of its rules are asked for
        config = load_config(options.config, options.overrides)
    findings = diagnose(config, space=space_of(options.config) if trains else None, overrides=options.overrides)
    print(render(findings))
    print(after_doctor(options.config, options.overrides, is_fine=not exit_code(findings), trains=trains))
    return exit_code(findings)
