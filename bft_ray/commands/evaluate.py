"""`bft-ray evaluate`: measure a model, and compare it with an earlier measurement."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.commands.shared import command, config_arguments, print_metrics
from bft_ray.errors import BadInput

if TYPE_CHECKING:
    from bft_ray.config import Config


def add(commands: Any) -> None:
    """Add the command and its options."""
    evaluate = command(commands, "evaluate", run, "measure a base model, an adapter or a merged model")
    config_arguments(evaluate)
    evaluate.add_argument("--model", metavar="PATH", help="folder or hub id to measure instead of model.path")
    evaluate.add_argument(
        "--task", action="append", metavar="NAME", help="measure only this task (`validation` is one); may be repeated"
    )
    evaluate.add_argument("--harness", metavar="NAMES", help="also tasks of lm-evaluation-harness, e.g. mmlu,cmmlu")
    evaluate.add_argument("--out", metavar="FOLDER", help="write metrics.json and a record per item (ids, no text)")
    evaluate.add_argument("--against", metavar="FOLDER", help="compare, item by item, with what --out wrote earlier")
    evaluate.add_argument(
        "--question", metavar="METRIC", help="with --against: the metric it is about (default: the domain's headline)"
    )


def run(options: argparse.Namespace) -> int:
    """Measure, then print the metrics, or the changes against an earlier evaluation."""
    from bft_ray.config import load_config

    if options.question and not options.against:
        remedy = "Give --against the folder of an earlier evaluation, or leave --question out."
        raise BadInput("--question", options.question, "left out without --against", remedy)
    config = load_config(options.config, options.overrides, for_training=False)
    if options.model:
        config = config.model_copy(update={"model": config.exported(options.model)})
    if options.harness:
        config = _with_harness(config, options.harness.split(","))
    from bft_ray.evaluate.result import EvaluationResult
    from bft_ray.evaluate.run import evaluate_model

    before = EvaluationResult.read(Path(options.against)) if options.against else None
    names = options.task and [*options.task, *(["harness"] if options.harness else [])]
    if before is not None and options.question:
        from bft_ray.config.measured import measured_names
        from bft_ray.evaluate.compare import check_question

        measured = [name for name in measured_names(config) if not names or name.partition("/")[0] in names]
        check_question(options.question, measured, before)
    out = Path(options.out) if options.out else None
    result = evaluate_model(config, out, names=names)
    _tell_overlaps(config, names, out)
    if before is None:
        print_metrics({}, result.metrics)
    else:
        from bft_ray.domains import domain
        from bft_ray.evaluate.compare import compare, render

        try:
            changes, why = compare(before, result)
        except BadInput:
            print_metrics({}, result.metrics)  # they may have taken hours
            raise
        if not changes:
            print_metrics({}, result.metrics)
            rule = "an evaluation with a metric of this one: nothing can be compared"
            remedy = "".join(f"{reason}. " for reason in why) + "Give that of the same config, with another model."
            raise BadInput("--against", options.against, rule, remedy)
        print(render(changes, options.question or domain(config.domain).headline), *why, sep="\n")
    from bft_ray.operate.road import after_evaluate

    if text := after_evaluate(options.config, options.overrides, options.model, options.out, options.against):
        print(text)
    return 0


def _with_harness(config: Any, names: list[str]) -> Any:
    """The config with one more task, named `harness`."""
    from bft_ray.config import make_config

    tree = config.model_dump()
    tree["evaluation"]["tasks"].append({"kind": "harness", "tasks": [name.strip() for name in names if name.strip()]})
    return make_config(tree, "--harness", for_training=False)


def _tell_overlaps(config: Config, names: list[str] | None, out: Path | None) -> None:
    """Name the items that were trained on. Training rows that are not there, as where somebody only measures, are told."""
    from bft_ray.evaluate.overlap import notes, overlaps, write

    tasks = {task.name: task for task in config.evaluation.tasks if not names or task.name in names}
    try:
        found = overlaps(config, tasks)
    except BadInput as error:  # the evaluation itself has read the tasks
        print(f"note: whether items are in the training rows is not known: {error}")
        return
    if out is not None:
        write(found, out)
    for note in notes(found):
        print(note)
