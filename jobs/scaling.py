"""How a config scales over workers and ZeRO stages: strong and weak, with a plot, an MLflow run and a recommendation.

    python -m jobs.scaling CONFIG [FIELD=VALUE ...] [--workers 1,2,4] [--stages zero1,zero3] [--steps 8] [--out scaling]

Each point trains a few steps through Ray Train, as `bft-ray train` does, and counts supervised tokens a second from the
second step after the warm-up on, by their median. With n workers, and the fewest of the list n0:

    strong   the config's global batch, shared out              efficiency = (r_n / n) / (r_n0 / n0), r: tokens/s
    weak     n / n0 times the global batch                      the same

The recommendation is the fastest point whose strong efficiency is at least `--efficiency`: more workers would mostly
wait. A point that fails is a row with its reason. Writes OUT.json with the machine, and OUT.png.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bft_ray.config import Config, load_config, make_config, to_yaml
from bft_ray.errors import BadInput, BftError, first_line
from bft_ray.places import storage
from bft_ray.places.addresses import redact
from bft_ray.places.scratch import scratch
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server
from bft_ray.train.pins import pin_paths
from bft_ray.workers.connect import connect
from bft_ray.workers.room import require_resources
from jobs.bench.machine import machine
from jobs.fresh import fresh_run

WARM_UP = 2  # first steps of a point, which do not count
STAGES = ("zero0", "zero1", "zero2", "zero3")
_COLORS = {"zero0": "#767676", "zero1": "#0072B2", "zero2": "#D55E00", "zero3": "#009E73"}


@dataclass(frozen=True)
class Point:
    """One measurement.

    Args:
        kind: `strong` or `weak`; with the fewest workers they are the same point, and it is `strong`.
        tokens_per_s: supervised tokens a second of all workers, the median of the steps; None: it failed.
        step_s: seconds of a step: shortest, median, longest.
        peak_memory_bytes: of the worker with most (see `train/peak_memory_bytes`).
        reason: why it failed.
    """

    kind: str
    stage: str
    num_workers: int
    global_batch_size: int
    tokens_per_s: float | None = None
    step_s: tuple[float, float, float] | None = None
    peak_memory_bytes: float | None = None
    reason: str = ""


def efficiencies(points: Sequence[Point]) -> dict[Point, float]:
    """Point -> tokens a second of each worker, as a share of those with the fewest workers of its stage."""
    found = {}
    for point in points:
        bases = [one for one in points if one.stage == point.stage and one.tokens_per_s is not None]
        if point.tokens_per_s is None:
            continue
        base = min(bases, key=lambda one: (one.num_workers, one.kind != "strong"))
        assert base.tokens_per_s is not None
        found[point] = (point.tokens_per_s / point.num_workers) / (base.tokens_per_s / base.num_workers)
    return found


def recommended(points: Sequence[Point], least: float) -> Point | None:
    """The fastest strong point whose efficiency is at least `least`; of equally fast ones that with fewer workers."""
    shares = efficiencies(points)
    good = [point for point in points if point.kind == "strong" and shares.get(point, 0.0) >= least]
    return max(good, key=lambda point: (point.tokens_per_s or 0.0, -point.num_workers), default=None)


def measure(config: Config, kind: str, stage: str, num_workers: int, batch: int, steps: int) -> Point:
    """Train `WARM_UP + steps` steps; within `connect` only. What bft-ray raises on purpose is the point's reason."""
    point = Point(kind, stage, num_workers, batch)
    folder = storage.join(storage.absolute(config.cluster.storage_path), f"scaling-{uuid.uuid4().hex[:8]}")
    tree = config.model_dump()
    tree["deepspeed"] |= {"preset": stage}
    tree["cluster"] |= {"num_workers": num_workers, "max_failures": 0}
    tree["data"] |= {"global_batch_size": batch}
    tree["schedule"] |= {"steps": WARM_UP + steps}
    try:
        asked = make_config(tree)
        require_resources(asked.cluster)
        metrics = fresh_run(asked, storage.join(folder, "run"))
    except BftError as error:
        return replace(point, reason=redact(first_line(error)))
    finally:
        storage.remove_folder(folder)
    counted = metrics[WARM_UP:]
    seconds = [step["train/step_s"] for step in counted]
    return replace(
        point,
        tokens_per_s=statistics.median(step["train/supervised_tokens_per_s"] for step in counted),
        step_s=(min(seconds), statistics.median(seconds), max(seconds)),
        peak_memory_bytes=max(step["train/peak_memory_bytes"] for step in counted),
    )


def measure_all(config: Config, workers: Sequence[int], stages: Sequence[str], steps: int) -> list[Point]:
    """All points, each said as soon as it is there."""
    points: list[Point] = []
    fewest, batch = min(workers), config.data.global_batch_size
    with connect(config.cluster):
        for stage in stages:
            for number in sorted(workers):
                batches = {"strong": batch, "weak": batch * number // fewest}
                for kind in ("strong",) if number == fewest else ("strong", "weak"):
                    points.append(measure(config, kind, stage, number, batches[kind], steps))
                    print(_row(points[-1], efficiencies(points)), flush=True)
    return points


def text_of(points: Sequence[Point], least: float) -> str:
    """The table, and the recommendation."""
    shares = efficiencies(points)
    head = f"{'':<8}{'stage':<7}{'workers':>8}{'batch':>7}{'tokens/s':>10}{'efficiency':>12}  step: least, median, most"
    best = recommended(points, least)
    if best is None:
        last = "no recommendation: every strong point failed"
    else:
        last = f"recommended: {best.num_workers} worker{'s' if best.num_workers > 1 else ''} with {best.stage}"
        last += f", {best.tokens_per_s:,.0f} supervised tokens/s at an efficiency of {shares[best]:.2f} (at least {least:g})"
    return "\n".join([head, *(_row(point, shares) for point in points), "", last])


def _row(point: Point, shares: dict[Point, float]) -> str:
    text = f"{point.kind:<8}{point.stage:<7}{point.num_workers:>8}{point.global_batch_size:>7}"
    if point.step_s is None:
        return f"{text}  failed: {point.reason}"
    steps = ", ".join(f"{seconds:.3g}" for seconds in point.step_s)
    return f"{text}{point.tokens_per_s:>10,.0f}{shares[point]:>12.2f}  {steps} s"


def plot(points: Sequence[Point]) -> bytes:
    """Tokens a second with the ideal, and efficiency, against workers: PNG."""
    from matplotlib.figure import Figure

    shares = efficiencies(points)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for stage in dict.fromkeys(point.stage for point in shares):
        own = [point for point in shares if point.stage == stage]
        base = min(own, key=lambda point: point.num_workers)
        for kind, line in (("strong", "-"), ("weak", "--")):
            shown = [point for point in own if point.kind == kind or point is base]
            numbers = [point.num_workers for point in shown]
            style: dict[str, Any] = dict(color=_COLORS[stage], linestyle=line, marker="o", markersize=4)
            left.plot(numbers, [point.tokens_per_s for point in shown], label=f"{stage}, {kind}", **style)
            right.plot(numbers, [shares[point] for point in shown], **style)
        widest = max(point.num_workers for point in own)
        ideal = [(base.tokens_per_s or 0.0) / base.num_workers * number for number in (base.num_workers, widest)]
        left.plot((base.num_workers, widest), ideal, color=_COLORS[stage], linestyle=":", linewidth=1)
    right.axhline(1.0, color="#767676", linestyle=":", linewidth=1)
    left.set(xlabel="workers", ylabel="supervised tokens a second (dotted: ideal)", ylim=(0, None))
    right.set(xlabel="workers", ylabel="efficiency", ylim=(0, None))
    left.legend(fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def record(config: Config, points: Sequence[Point], least: float, out: Path) -> str:
    """An MLflow run of kind `scaling`: each point at the step that is its number of workers, both files. Returns its id."""
    best, shares = recommended(points, least), efficiencies(points)
    fewest = min((point.num_workers for point in shares), default=0)
    with Tracker.start(
        config.tracking,
        experiment=config.experiment,
        run_name="scaling",
        params={"domain": config.domain, "model.path": config.model.path, "efficiency": least},
        tags={"bft.domain": config.domain, "bft.kind": "scaling", "mlflow.note.content": text_of(points, least)},
    ) as tracker:
        for point, share in shares.items():
            for kind in ("strong", "weak") if point.num_workers == fewest else (point.kind,):
                prefix = f"scaling/{kind}/{point.stage}"
                values = {f"{prefix}/tokens_per_s": point.tokens_per_s or 0.0, f"{prefix}/efficiency": share}
                tracker.log_metrics(values, step=point.num_workers)
        if best is not None:
            tracker.log_metrics({"scaling/recommended_workers": float(best.num_workers)}, step=0)
            tracker.set_tags({"bft.recommended": f"{best.num_workers} workers, {best.stage}"})
        tracker.log_text(redact(to_yaml(config)), "config.yaml")
        with scratch("scaling") as folder:
            for suffix in (".json", ".png"):
                (folder / f"scaling{suffix}").write_bytes(out.with_suffix(suffix).read_bytes())
            tracker.log_artifacts(folder, "scaling")
        return tracker.run_id


def _main(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE")
    parser.add_argument("--workers", default="1,2", metavar="N,N", help="numbers of workers (default: 1,2)")
    parser.add_argument("--stages", metavar="ZERO,ZERO", help="ZeRO stages (default: that of the config)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a point that count (default: 8)")
    parser.add_argument("--efficiency", type=float, default=0.8, metavar="E", help="least of a recommendation (0.8)")
    parser.add_argument("--out", type=Path, default=Path("scaling"), metavar="FILE", help="OUT.json and OUT.png")
    parser.add_argument("--no-mlflow", action="store_true", help="record nothing in MLflow")
    options = parser.parse_intermixed_args(arguments)
    config = pin_paths(load_config(options.config, options.overrides))
    workers, stages = _workers(options.workers), _stages(options.stages or config.deepspeed.preset)
    if options.steps < 1:
        raise BadInput("--steps", options.steps, "at least 1")
    if not 0 < options.efficiency <= 1:
        raise BadInput("--efficiency", options.efficiency, "above 0, at most 1")
    if config.data.global_batch_size < max(workers):
        rule = f"at least the most workers ({max(workers)}): every rank needs a sample"
        raise BadInput("data.global_batch_size", config.data.global_batch_size, rule)
    if not options.no_mlflow:
        check_server(config.tracking)
    described = machine(int(config.cluster.cpus_per_worker))
    points = measure_all(config, workers, stages, options.steps)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    whole = {"points": [asdict(point) for point in points], "steps": options.steps, "machine": described}
    options.out.with_suffix(".json").write_text(json.dumps(whole, indent=1))
    options.out.with_suffix(".png").write_bytes(plot(points))
    print("\n" + text_of(points, options.efficiency))
    if not options.no_mlflow:
        print(f"MLflow run {record(config, points, options.efficiency, options.out)}")
    return int(recommended(points, options.efficiency) is None)


def _workers(given: str) -> list[int]:
    words = given.split(",")
    if not all(word.isdigit() and int(word) > 0 for word in words) or len(set(words)) < len(words):
        raise BadInput("--workers", given, "different numbers above 0, with commas between them", "Example: 1,2,4.")
    return sorted(map(int, words))


def _stages(given: str) -> list[str]:
    words = list(dict.fromkeys(given.split(",")))
    for word in words:
        if word not in STAGES:
            raise BadInput("--stages", word, f"one of {', '.join(STAGES)}")
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """As a command: 0 with a recommendation, 1 without or failed, 2 for bad input."""
    from bft_ray.errors import BadConfig

    try:
        return _main(arguments)
    except (BadInput, BadConfig) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
