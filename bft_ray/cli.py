"""The commands. Heavy libraries are imported by the command that needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

from bft_ray import __version__
from bft_ray.errors import BadConfig, BadInput, BftError
from bft_ray.places.cache import ensure_home
from bft_ray.places.disk import full_disk
from bft_ray.places.modes import kept_for
from bft_ray.places.scratch import remove_dead
from bft_ray.waits import told_waits

#: sections whose overrides leave a profile one of the config's own runs, so that its space is rewritten
_SAME_SPACE = {"profile", "cluster", "tracking"}
_OVERRIDES = "overrides such as loss.window=64 or data.train.0.limit=100"


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 bad input, 130 interrupted, 141 nobody reads."""
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()  # here, where it is known what its failure means
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            _leave(sys.stdout)
            return 128 + signal.SIGPIPE
        if not (full := full_disk(error)):
            raise
        try:
            sys.stdout.flush()
        except OSError:  # it is what goes to the full disk
            _leave(sys.stdout)
        print(f"error: {full}", file=sys.stderr)
        return 1


def _leave(stream: TextIO) -> None:
    """Let what Python still flushes at its end go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _main(arguments: Sequence[str] | None) -> int:
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:  # overrides behind an option, where argparse does not look for them
        options.overrides = [*options.overrides, *rest]
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    signal.signal(signal.SIGTERM, _terminate)
    ensure_home()
    remove_dead()
    is_served = options.run is _ui  # it waits for its user
    try:
        # "owner": all that a command leaves, but where a config says otherwise
        with kept_for("owner"), contextlib.nullcontext() if is_served else told_waits():
            return options.run(options)
    except (BadInput, BadConfig) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{getattr(options, 'after_interrupt', '')}", file=sys.stderr)
        return 130


def _is_unread(stream: TextIO) -> bool:
    """Whether nobody reads a pipe any more, as after `| head`."""
    with contextlib.suppress(OSError, ValueError):  # no file behind it
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _terminate(*_: Any) -> NoReturn:
    raise KeyboardInterrupt  # a polite end: runs get their true status, workers stop


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="bft-ray", description="Balanced Fine-Tuning of language models on biomedical data, on Ray."
    )
    parser.add_argument("--version", action="version", version=f"bft-ray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    train = _command(commands, "train", _train, "fine-tune: Ray Train workers, DeepSpeed, one MLflow run")
    goes_on = "; the same command goes on from the last checkpoint if the run has a name"
    train.set_defaults(after_interrupt=goes_on)
    _config_arguments(train, nargs="?")
    train.add_argument("--champion", metavar="DOMAIN", help="the config that a study chose, instead of CONFIG")
    train.add_argument("--uri", help="tracking server or database that has the champion (default: that of a config)")
    train.add_argument("--profile", action="store_true", help="profile 5 steps: a torch trace, a table of the time")

    evaluate = _command(commands, "evaluate", _evaluate, "measure a base model, an adapter or a merged model")
    _config_arguments(evaluate)
    evaluate.add_argument("--model", metavar="PATH", help="folder or hub id to measure instead of model.path")
    evaluate.add_argument(
        "--task", action="append", metavar="NAME", help="measure this task alone (`validation` is one); may be repeated"
    )
    evaluate.add_argument("--harness", metavar="NAMES", help="also tasks of lm-evaluation-harness, e.g. mmlu,cmmlu")
    evaluate.add_argument("--out", metavar="FOLDER", help="write metrics.json and a record per item (ids, no text)")
    evaluate.add_argument("--against", metavar="FOLDER", help="compare, item by item, with what --out wrote earlier")
    evaluate.add_argument(
        "--question", metavar="METRIC", help="with --against: the metric it is about (default: the domain's headline)"
    )

    profile = _command(commands, "profile", _profile, "what windows, epsilons and caps would do to a dataset")
    _config_arguments(profile)
    profile.add_argument("--model", metavar="PATH", help="folder or hub id to profile with instead of model.path")
    profile.add_argument("--out", metavar="FOLDER", help="where files go (default: STORAGE/profiles/DOMAIN[-MODEL])")
    profile.add_argument("--against", metavar="FOLDER", help="an earlier profile: how far have the weights moved?")
    profile.add_argument("--no-mlflow", action="store_true", help="record nothing in MLflow")

    search = _command(commands, "search", _search, "find the settings that suit a dataset, and confirm them")
    search.set_defaults(after_interrupt="; the same command goes on with the study")
    search.add_argument("space", metavar="SPACE", help="search space: YAML file or a bundled one (--list)", nargs="?")
    search.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the space (budget.trials=40) or of the config"
    )
    search.add_argument("--config", metavar="CONFIG", help="config to vary instead of the space's own")
    search.add_argument(
        "--database",
        metavar="URL",
        help="of the study: sqlite:///FILE or postgresql://... (default: the environment variable STUDY_DATABASE, which "
        "shows its password to nobody, else sqlite:///bft_studies.db)",
    )
    search.add_argument("--no-profile", action="store_true", help="do not draw the window profile of the data")
    search.add_argument("--no-measure", action="store_true", help="do not measure time and memory on a few steps first")
    how = search.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="check everything, say what would run and what it costs")
    how.add_argument(
        "--status", action="store_true", help="how the study stands, from any machine; without SPACE a line for each"
    )
    how.add_argument("--cancel", action="store_true", help="end the study cleanly; the same command goes on with it")
    how.add_argument("--list", action="store_true", help="the search spaces that come with the package")

    best = _command(commands, "best", _best, "show what the studies of a domain have chosen, and how to use it")
    best.add_argument("domain", metavar="DOMAIN", help="sub-domain, e.g. medical_qa")
    best.add_argument("--uri", help="tracking server or database (default: MLFLOW_TRACKING_URI, else that of a config)")
    best.add_argument("--version", metavar="N", help="this version instead of the champion")
    best.add_argument("--yaml", action="store_true", help="print its config alone")

    ui = _command(
        commands, "ui", _ui, "MLflow's page over a database, on loopback, for whoever has the link that it prints"
    )
    ui.add_argument("--uri", help="database (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)")
    ui.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: a free one)")

    config = _command(commands, "config", _config, "show the resolved config or its JSON schema")
    config.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file or recipe")
    config.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help=_OVERRIDES)
    what = config.add_mutually_exclusive_group()
    what.add_argument("--show", action="store_true", help="print the resolved config as YAML (the default)")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of the config")
    what.add_argument("--recipes", action="store_true", help="list the configs that come with the package")

    doctor = _command(commands, "doctor", _doctor, "say what is wrong with this machine, cluster, server or config")
    doctor.add_argument("config", nargs="?", metavar="CONFIG", help="also check what this config asks for")
    doctor.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help=_OVERRIDES)

    init = _command(commands, "init", _init, "from your own rows to a study: a config, a search space, four splits")
    init.add_argument(
        "data", metavar="DATA", help="JSONL, JSON, CSV or Parquet file, saved datasets folder, or hub id (with --split)"
    )
    init.add_argument(
        "--prompt", metavar="COLUMN", help=r"column of the question, or a template: '{Question}\n\nContext: {context}'"
    )
    init.add_argument("--completion", metavar="COLUMN", help="column of the answer, or a template")
    init.add_argument(
        "--group", metavar="COLUMN", help="patient, document, gene ...: its rows stay on one side of a split"
    )
    init.add_argument("--split", metavar="NAME", help="split of a hub dataset or saved folder, e.g. train")
    init.add_argument("--config-name", metavar="NAME", help="configuration of a hub dataset")
    init.add_argument("--limit", type=int, metavar="N", help="read the first N rows alone")
    init.add_argument("--domain", help="sub-domain name (default: from the name of the data)")
    init.add_argument(
        "--model", default="starter", help="base model: starter (the default), smollm2, a folder or a hub id"
    )
    init.add_argument(
        "--out", default="bft.yaml", metavar="FILE", help="YAML file, or a folder for bft.yaml; the rest lies beside it"
    )
    init.add_argument("--force", action="store_true", help="overwrite what an earlier init wrote there")
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _config_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    text = "YAML file, or recipe (bft-ray config --recipes lists them)"
    parser.add_argument("config", metavar="CONFIG", help=text, nargs=nargs)
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help=_OVERRIDES)


def _train(options: argparse.Namespace) -> int:
    config = _train_config(options)
    from bft_ray.operate.lasting import require_outlasting
    from bft_ray.operate.road import after_train
    from bft_ray.tracking.server import page_of
    from bft_ray.train.launch import train  # after the config: a typo is told at once

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
        print(f"error: all is trained and exported, but MLflow lacks what it was to hold: {lacks}", file=sys.stderr)
    return int(bool(result.missing))


def _train_config(options: argparse.Namespace) -> Any:
    """Of the file or recipe, or that of a champion."""
    from bft_ray.config import TrackingConfig, load_config

    overrides = [*(["tracking.profile_steps=5"] if options.profile else []), *options.overrides]
    source = options.config
    if options.champion and source and "=" in source:  # an override stands where else the config does
        source, overrides = None, [source, *overrides]
    if bool(source) == bool(options.champion):
        remedy = "One of the two: `bft-ray train CONFIG`, or `bft-ray train --champion DOMAIN`."
        raise BadInput("CONFIG", source, "left out with --champion" if source else "given, or --champion", remedy)
    if source:
        if options.uri:
            raise BadInput("--uri", options.uri, "left out without --champion", "Give tracking.uri=URI.")
        return load_config(source, overrides)
    from bft_ray.study.report.best import champion_config
    from bft_ray.tracking.registry import find_champion

    uri = options.uri or TrackingConfig().uri
    return champion_config(find_champion(TrackingConfig(uri=uri), options.champion), uri, overrides)


def _best(options: argparse.Namespace) -> int:
    from bft_ray.config import TrackingConfig
    from bft_ray.study.report.best import describe_champion
    from bft_ray.tracking.registry import find_champion

    uri = options.uri or TrackingConfig().uri
    champion = find_champion(TrackingConfig(uri=uri), options.domain, options.version)
    print(champion.config_yaml.rstrip() if options.yaml else describe_champion(champion, uri))
    return 0


def _ui(options: argparse.Namespace) -> int:
    from bft_ray.config import TrackingConfig
    from bft_ray.tracking.ui import show

    show(options.uri or TrackingConfig().uri, options.port)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
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
    result = evaluate_model(config, Path(options.out) if options.out else None, names=names)
    if before is None:
        print_metrics({}, result.metrics)
    else:
        from bft_ray.domains import domain
        from bft_ray.evaluate.compare import compare, render

        print(render(compare(before, result), options.question or domain(config.domain).headline))
    from bft_ray.operate.road import after_evaluate

    text = after_evaluate(options.config, options.overrides, options.model, options.out, options.against)
    print(*filter(None, [text]), sep="\n", end="\n" if text else "")
    return 0


def _profile(options: argparse.Namespace) -> int:
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


def _search(options: argparse.Namespace) -> int:
    if options.list:
        from bft_ray.space.load import load_space, spaces

        for name in spaces():
            print(f"{name:<20}{load_space(name).description}")
        return 0
    from bft_ray.operate.studies import cancel_study, database_url, dry_run, run_study, status_of

    database = database_url(options.database)
    if options.status:
        print(status_of(options.space, options.config, options.overrides, database))
        return 0
    if not options.space:
        raise BadInput("SPACE", None, "a YAML file or the name of a search space", "`bft-ray search --list` has them.")
    if options.cancel:
        print(cancel_study(options.space, options.config, options.overrides, database))
        return 0
    if options.dry_run:
        print(
            dry_run(
                options.space,
                options.config,
                options.overrides,
                measure=not options.no_measure,
                line=lambda text: print(text, file=sys.stderr, flush=True),
            )
        )
        return 0
    chosen = {"profile": not options.no_profile, "measure": not options.no_measure}
    result = run_study(options.space, options.config, options.overrides, database, **chosen)
    print(result.text)
    if result.failed:
        print(f"error: {result.failed}", file=sys.stderr)
    return int(bool(result.failed))


def _shards(done: int, total: int) -> None:
    print(f"forward pass: {done} of {total} shards", file=sys.stderr, flush=True)


def _with_harness(config: Any, names: list[str]) -> Any:
    """The config with one more task, named `harness`."""
    from bft_ray.config import make_config

    tree = config.model_dump()
    tree["evaluation"]["tasks"].append({"kind": "harness", "tasks": [name.strip() for name in names if name.strip()]})
    return make_config(tree, "--harness", for_training=False)


def _config(options: argparse.Namespace) -> int:
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


def _doctor(options: argparse.Namespace) -> int:
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


def _init(options: argparse.Namespace) -> int:
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


if __name__ == "__main__":
    entry()
