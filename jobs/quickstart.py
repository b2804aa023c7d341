"""The main job in small: the starter model, fine-tuned with `sft` and with `bft` on the starter data, and compared.

Runs on CPU in minutes, on two Ray Train workers with DeepSpeed, and ends with a table and with where to look.
"""

from __future__ import annotations

import sys
import time

from bft_ray.cli import mlflow_command
from bft_ray.config import load_config
from bft_ray.domains import domain
from bft_ray.errors import BftError

METHODS = ("sft", "bft")


def main(overrides: list[str]) -> int:
    """Train with both methods; the base model is evaluated once."""
    began = time.monotonic()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    configs = {
        method: load_config(
            "starter",
            [
                f"loss.method={method}",
                f"name=quickstart-{method}-{stamp}",
                f"evaluation.before={str(method == METHODS[0]).lower()}",
                *overrides,
            ],
        )
        for method in METHODS
    }
    from bft_ray.spread import connect
    from bft_ray.train.launch import train

    results = {}
    with connect(configs["sft"].cluster):  # one Ray for both runs
        for method, config in configs.items():
            print(f"\n== {method}", flush=True)
            results[method] = train(config)
    columns = {"before": results["sft"].before} | {method: result.after for method, result in results.items()}
    print(f"\n{domain(configs['sft'].domain).title}: starter model and data, {time.monotonic() - began:.0f} s\n")
    print(table(columns))
    print("\nFine-tuned models (each with a model card):")
    for result in results.values():
        print(f"  {result.export}")
    print(f"\nSee the runs in MLflow:\n  {mlflow_command(configs['sft'])}")
    return 0


def table(columns: dict[str, dict[str, float]]) -> str:
    """Metrics by row, runs by column, with which way is better."""
    from bft_ray.metrics import format_value, higher_is_better, is_judged

    names = [name for name in columns["sft"] if is_judged(name)]
    width = max(map(len, names))
    lines = [f"{'metric':<{width}}" + "".join(f"{name:>10}" for name in columns)]
    for name in names:
        cells = [format_value(name, values[name]) if name in values else "" for values in columns.values()]
        better = "higher" if higher_is_better(name) else "lower"
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells) + f"  {better} is better")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
