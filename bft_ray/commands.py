"""What each command does with its options; heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.errors import BadInput

if TYPE_CHECKING:
    from bft_ray.config import Config

#: sections whose overrides leave a profile one of the config's own runs, so that its space is rewritten
_SAME_SPACE = {"profile", "cluster", "tracking"}


def train_command(options: argparse.Namespace) -> int:
    config = _train_config(options)
    from bft_ray.operate.lasting import require_outlasting
    from bft_ray.operate.road import after_train
    from bft_ray.tracking.server import page_of
    from bft_ray.train.launch import train  # after the config: a typo is reported at once

    require_outlasting(config)
    result = train(config)
    print(f"run       {result.name} (MLflow run {result.run_id})")
    print(f"exported  {result.export} (weights of step {result.step})")
    print_metrics(result.before, result.after)
    print(f"look      {page_of(config.tracking.uri)}")
    source = None if options.champion else options.config
    print(after_train(source, options.overrides, result.export))
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


def best_command(options: argparse.Namespace) -> int:
    from bft_ray.config import TrackingConfig
    from bft_ray.study.report.best import describe_champion
    from bft_ray.tracking.registry import find_champion

    uri = options.uri or TrackingConfig().uri
    champion = find_champion(TrackingConfig(uri=uri), options.domain, options.version)
    print(champion.config_yaml.rstrip() if options.yaml else describe_champion(champion, uri))
    return 0


def export_command(options: argparse.Namespace) -> int:
    from bft_ray.operate.export import export_champion

    def line(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    given = (options.domain, options.uri, options.version, options.out, options.push)
    found = export_champion(*given, line, options.trust_remote_code)
    print(f"model     {found.folder}: {found.champion}, merged, {found.checks.num_parameters:,} parameters")
    print(f"checked   loads with transformers; stops at {', '.join(found.checks.ends)}; vLLM: {found.checks.engine}")
    print(f"card      {found.folder}/README.md")
    if found.pushed:
        print(f"pushed    {found.pushed}")
    return 0


def compare_command(options: argparse.Namespace) -> int:
    if not options.prompts:
        raise BadInput(
            "--prompts", None, "a file of rows that no model was trained on", "For example --prompts test.jsonl."
        )
    from bft_ray.operate.compare import compare_models

    def line(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    path = compare_models(
        options.models,
        Path(options.prompts),
        domain=options.champion,
        uri=options.uri,
        out=Path(options.out),
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        line=line,
    )
    print(path)
    return 0


def clean_command(options: argparse.Namespace) -> int:
    from bft_ray.config import load_config
    from bft_ray.operate.clean import found_places, listed
    from bft_ray.study.records.database import database_url

    config = load_config(options.config, options.overrides, for_training=False)
    places = found_places(config, database_url(options.database))
    print(listed(places, config))
    if not places:
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            print("nothing was removed; --yes removes all of it")
            return 0
        if input(f"Remove these {len(places)} places for good? Type yes: ").strip().lower() != "yes":
            print("nothing was removed")
            return 0
    for place in sorted(
        places, key=lambda place: place.kind != "records"
    ):  # a study that runs refuses, before all else
        place.remove()
    left = found_places(config, database_url(options.database))
    print(f"removed {len(places) - len(left)} places")
    for place in left:
        print(f"error: {place.name} is still there", file=sys.stderr)
    return int(bool(left))


def ui_command(options: argparse.Namespace) -> int:
    from bft_ray.config import TrackingConfig
    from bft_ray.tracking.ui import show

    show(options.uri or TrackingConfig().uri, options.port)
    return 0


def evaluate_command(options: argparse.Namespace) -> int:
    from bft_ray.config import load_config

    if options.question and not options.against:
        remedy = "Give --against the folder of an earlier evaluation, or leave --question out."
        raise BadInput("--question", options.question, "left out without --against", remedy)
    config = load_config(options.config, options.overrides, for_training=False)
    if options.model:
        model = config.model.model_copy(update={"path": options.model, "adapter": None})
        config = config.model_copy(update={"model": model})
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

        if not (changes := compare(before, result)):
            print_metrics({}, result.metrics)
            rule = "an evaluation with a metric of this one: nothing can be compared"
            raise BadInput("--against", options.against, rule, "Give that of the same config, with another model.")
        print(render(changes, options.question or domain(config.domain).headline))
    from bft_ray.operate.road import after_evaluate

    text = after_evaluate(options.config, options.overrides, options.model, options.out, options.against)
    print(*filter(None, [text]), sep="\n", end="\n" if text else "")
    return 0


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


def profile_command(options: argparse.Namespace) -> int:
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


def search_command(options: argparse.Namespace) -> int:
    from bft_ray.space.series import all_series, find_series, load_series

    if options.list:
        from bft_ray.space.load import load_space, spaces

        for name in spaces():
            print(f"{name:<20}{load_space(name).description}")
        for name, path in all_series().items():
            print(f"{name:<20}{load_series(path).question}")
        return 0
    if options.space and (series := find_series(options.space)) is not None:
        return _series_command(series, options)
    from bft_ray.operate.studies import cancel_study, dry_run, run_study, status_of
    from bft_ray.study.records.database import database_url

    database = database_url(options.database)
    if options.status:
        print(status_of(options.space, options.config, options.overrides, database))
        return 0
    if not options.space:
        raise BadInput("SPACE", None, "a YAML file or the name of a search space", "`bft-ray search --list` has them.")
    if options.cancel:
        print(cancel_study(options.space, options.config, options.overrides, database))
        return 0
    if options.price_per_gpu_hour is not None and not options.dry_run:
        raise BadInput("--price-per-gpu-hour", options.price_per_gpu_hour, "left out without --dry-run")
    if options.dry_run:
        print(
            dry_run(
                options.space,
                options.config,
                options.overrides,
                measure=not options.no_measure,
                price=options.price_per_gpu_hour,
                line=lambda text: print(text, file=sys.stderr, flush=True),
            )
        )
        return 0
    chosen: dict[str, Any] = {"profile": not options.no_profile, "measure": not options.no_measure}
    result = run_study(options.space, options.config, options.overrides, database, **chosen)
    print(result.text)
    if result.failed:
        print(f"error: {result.failed}", file=sys.stderr)
    return int(bool(result.failed))


def _series_command(path: Path, options: argparse.Namespace) -> int:
    """`bft-ray search` of a series: each option does for all of its studies what it does for one."""
    from bft_ray.operate.series import dry_run_series, run_series, status_of_series
    from bft_ray.operate.studies import cancel_study
    from bft_ray.space.series import load_series
    from bft_ray.study.records.database import database_url

    def line(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    database, series = database_url(options.database), load_series(path)
    if options.price_per_gpu_hour is not None:
        raise BadInput("--price-per-gpu-hour", options.price_per_gpu_hour, "left out with a series")
    if options.status:
        print(status_of_series(path, options.config, options.overrides, database))
    elif options.cancel:
        for name in series.conditions:
            own = series.study_overrides(name, options.overrides)
            with contextlib.suppress(BadInput):  # not begun
                print(cancel_study(series.space, options.config, own, database))
    elif options.dry_run:
        print(dry_run_series(path, options.config, options.overrides, line, measure=not options.no_measure))
    else:
        chosen: dict[str, Any] = {"profile": not options.no_profile, "measure": not options.no_measure}
        print(run_series(path, options.config, options.overrides, database, line, **chosen))
    return 0


def after_rl_command(options: argparse.Namespace) -> int:
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
        print(run_after_rl(study, lambda text: print(text, file=sys.stderr, flush=True)))
    return 0


def report_command(options: argparse.Namespace) -> int:
    if bool(options.study) == options.domains:
        raise BadInput("STUDY", options.study, "one study, or --domains for all", "Give one of the two.")
    from bft_ray.operate.report import domains_report, study_report  # neither torch nor Ray
    from bft_ray.space.series import find_series
    from bft_ray.study.records.database import database_url

    out, database = Path(options.out) if options.out else None, database_url(options.database)
    series = find_series(options.study) if options.study else None
    if options.domains:
        path = domains_report(database, out)
    elif series is not None:
        from bft_ray.operate.series import series_report

        path = series_report(series, options.config, options.overrides, database, out)
    else:
        path = study_report(options.study, options.config, options.overrides, database, out)
    print(path)
    return 0


def plan_command(options: argparse.Namespace) -> int:
    from bft_ray.config import load_config

    checked: list[tuple[str, float | None]] = [
        ("--step-s", options.step_s),
        ("--max-gpus", options.max_gpus),
        ("--price-per-gpu-hour", options.price_per_gpu_hour),
    ]
    for name, value in checked:
        if value is not None and not value > 0:
            raise BadInput(name, value, "above 0")
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
    from bft_ray.operate.plan.hours import UNKNOWN, hours
    from bft_ray.operate.plan.text import cards, plan_text

    is_gpu = bool(options.gpu_gib) or config.cluster.gpus_per_worker != 0
    print(plan_text(config, is_gpu, cards(options.gpu_gib), options.max_gpus))
    price = options.price_per_gpu_hour
    print(UNKNOWN if options.step_s is None else hours(config, space, base, options.step_s, price))
    return 0


def _shards(done: int, total: int) -> None:
    print(f"forward pass: {done} of {total} shards", file=sys.stderr, flush=True)


def _with_harness(config: Any, names: list[str]) -> Any:
    """The config with one more task, named `harness`."""
    from bft_ray.config import make_config

    tree = config.model_dump()
    tree["evaluation"]["tasks"].append({"kind": "harness", "tasks": [name.strip() for name in names if name.strip()]})
    return make_config(tree, "--harness", for_training=False)


def config_command(options: argparse.Namespace) -> int:
    from bft_ray.config import load_config, schema, to_yaml
    from bft_ray.config.load import recipes

    if options.schema:
        print(schema())
    elif options.recipes:
        for name, path in recipes().items():
            first = path.read_text().splitlines()[0].lstrip("# ")
            print(f"{name:<28}{first}")
    elif not options.config:
        raise BadInput("config", None, "a YAML file or a recipe", "Or ask for --schema or --recipes.")
    else:
        print(to_yaml(load_config(options.config, options.overrides)), end="")
    return 0


def doctor_command(options: argparse.Namespace) -> int:
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
    findings = diagnose(config, space=space_of(options.config) if trains else None)
    print(render(findings))
    print(after_doctor(options.config, options.overrides, is_fine=not exit_code(findings), trains=trains))
    return exit_code(findings)


def fetch_command(options: argparse.Namespace) -> int:
    from bft_ray.operate.fetch.bring import fetch

    words = [*options.sources, *options.overrides]
    overrides = [word for word in words if "=" in word and not Path(word).is_file()]
    sources = [word for word in words if word not in overrides]
    if not sources:
        raise BadInput("CONFIG_OR_SPACE", None, "a YAML file, a recipe or a search space")
    fetch(sources, overrides, lambda text: print(text, flush=True))
    return 0


def submit_command(options: argparse.Namespace) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if options.follow:
        if words:
            raise BadInput("COMMAND", words[0], "left out with --follow")
        from bft_ray.operate.submit.job import follow_again

        return follow_again(options.follow, options.address)
    options.check(words)
    from bft_ray.operate.submit.job import submit

    return submit(words, options.address, Path(options.working_dir), options.env, follow=not options.no_follow)


def init_command(options: argparse.Namespace) -> int:
    from bft_ray.operate.init.request import Request
    from bft_ray.operate.init.study import write_study

    request = Request(
        data=options.data,
        out=Path(options.out),
        prompt=options.prompt,
        completion=options.completion,
        group=options.group,
        split=options.split,
        config_name=options.config_name,
        limit=options.limit,
        domain=options.domain,
        model=options.model,
        space=options.space,
        force=options.force,
    )
    print(write_study(request))
    return 0


def print_metrics(before: dict[str, float], after: dict[str, float]) -> None:
    """A small table: metric, before (where measured), after."""
    from bft_ray.config.metrics import format_value, is_judged

    names = [name for name in after if is_judged(name)]
    if not names:
        return
    width = max(map(len, names))
    if before:
        print(f"{'metric':<{width}}  {'before':>10}  {'after':>10}")
    for name in names:
        old = f"  {format_value(name, before[name]) if name in before else '':>10}" if before else ""
        print(f"{name:<{width}}{old}  {format_value(name, after[name]):>10}")
