"""`bft-ray plan`: what a run needs of a machine, and how long it takes."""

from __future__ import annotations

import argparse
from typing import Any

from bft_ray.commands.shared import command, config_arguments, price_argument
from bft_ray.errors import BadInput

_MOST = 1_000_000  # seconds of a step, GPUs, or a price: what is more is a slip


def add(commands: Any) -> None:
    """Add the command and its options."""
    plan = command(
        commands,
        "plan",
        run,
        "will this fit? memory by ZeRO stage and offload, from the config alone",
    )
    config_arguments(plan)
    plan.add_argument(
        "--gpu-gib",
        metavar="GIB",
        help="memory of the GPUs to look at, e.g. 24,80 (default: those here, else the usual ones)",
    )
    plan.add_argument("--max-gpus", type=int, default=64, metavar="N", help="GPUs of the largest set-up (default: 64)")
    plan.add_argument(
        "--step-s", type=float, metavar="S", help="measured seconds of a step (train/step_s): gives the hours"
    )
    plan.add_argument("--space", metavar="SPACE", help="with --step-s: the hours of this study instead of one run")
    price_argument(plan)


def run(options: argparse.Namespace) -> int:
    """Print memory by set-up, and hours where a speed is given."""
    from bft_ray.config import load_config

    checked: list[tuple[str, float | None]] = [
        ("--step-s", options.step_s),
        ("--max-gpus", options.max_gpus),
        ("--price-per-gpu-hour", options.price_per_gpu_hour),
    ]
    for name, value in checked:
        if value is not None and not 0 < value <= _MOST:
            raise BadInput(name, value, f"above 0, and at most {_MOST:,}")
    if (options.space or options.price_per_gpu_hour) and options.step_s is None:
        given = "--space" if options.space else "--price-per-gpu-hour"
        raise BadInput("--step-s", None, f"given with {given}: hours come from a measured speed alone")
    space = None
    if options.space:
        from bft_ray.space.assign import config_of
        from bft_ray.space.grid import representatives
        from bft_ray.space.load import load_study

        space, base = load_study(options.space, options.config, options.overrides)
        config = config_of(base, space, representatives(space, 1)[0])
    else:
        config = base = load_config(options.config, options.overrides)
    from bft_ray.model.check import describe
    from bft_ray.operate.plan.hours import UNKNOWN, hours
    from bft_ray.operate.plan.text import cards, plan_text
    from bft_ray.operate.tried import require_tried

    require_tried(config, describe(config))
    is_gpu = bool(options.gpu_gib) or config.cluster.gpus_per_worker != 0
    print(plan_text(config, is_gpu, cards(options.gpu_gib), options.max_gpus))
    price = options.price_per_gpu_hour
    print(UNKNOWN if options.step_s is None else hours(config, space, base, options.step_s, price))
    return 0
