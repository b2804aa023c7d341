"""The commands. Heavy libraries are imported by the command that needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from bft_ray import __version__
from bft_ray import commands as commands_of
from bft_ray.errors import BadConfig, BadInput, BftError
from bft_ray.places.cache import ensure_home
from bft_ray.places.disk import full_disk
from bft_ray.places.modes import kept_for
from bft_ray.places.refused import refused_path
from bft_ray.places.scratch import remove_dead
from bft_ray.places.stores import store_failure
from bft_ray.saving import STATUS, Saved, on_signal
from bft_ray.waits import report_waits

_OVERRIDES = "overrides such as loss.window=64 or data.train.0.limit=100"


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 bad input, 75 saved and to go on, 130 interrupted, 141
    nobody reads.
    """
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()  # here, where it is known what its failure means
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):
            _leave(sys.stdout)
            return 128 + signal.SIGPIPE
        if refused := refused_path(error):
            print(f"error: {refused}", file=sys.stderr)
            return 2
        if failed := store_failure(error):
            print(f"error: {failed}", file=sys.stderr)
            return 1
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
    signal.signal(signal.SIGUSR1, on_signal)
    ensure_home()
    remove_dead()
    is_served = options.run is commands_of.ui_command  # it waits for its user
    try:
        # "owner": all that a command leaves, but where a config says otherwise
        with kept_for("owner"), contextlib.nullcontext() if is_served else report_waits():
            return options.run(options)
    except (BadInput, BadConfig) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Saved as saved:
        print(f"{saved}", file=sys.stderr)
        return STATUS
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
    raise KeyboardInterrupt  # an orderly end: runs get their true status, workers stop


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="bft-ray", description="Balanced Fine-Tuning of language models on biomedical data, on Ray."
    )
    parser.add_argument("--version", action="version", version=f"bft-ray {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    train = _command(
        commands, "train", commands_of.train_command, "fine-tune: Ray Train workers, DeepSpeed, one MLflow run"
    )
    resumes = "; the same command resumes from the last checkpoint if the run has a name"
    train.set_defaults(after_interrupt=resumes)
    _config_arguments(train, nargs="?")
    train.add_argument("--champion", metavar="DOMAIN", help="the config that a study chose, instead of CONFIG")
    train.add_argument("--uri", help="tracking server or database that has the champion (default: that of a config)")
    train.add_argument("--profile", action="store_true", help="profile 5 steps: a torch trace, a table of the time")

    evaluate = _command(
        commands, "evaluate", commands_of.evaluate_command, "measure a base model, an adapter or a merged model"
    )
    _config_arguments(evaluate)
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

    profile = _command(
        commands, "profile", commands_of.profile_command, "what windows, epsilons and caps would do to a dataset"
    )
    _config_arguments(profile)
    profile.add_argument("--model", metavar="PATH", help="folder or hub id to profile with instead of model.path")
    profile.add_argument("--out", metavar="FOLDER", help="where files go (default: STORAGE/profiles/DOMAIN[-MODEL])")
    profile.add_argument("--against", metavar="FOLDER", help="an earlier profile: how far have the weights moved?")
    profile.add_argument("--no-mlflow", action="store_true", help="record nothing in MLflow")

    search = _command(
        commands, "search", commands_of.search_command, "find the settings that suit a dataset, and confirm them"
    )
    search.set_defaults(after_interrupt="; the same command resumes the study")
    search.add_argument("space", metavar="SPACE", help="search space: YAML file or a bundled one (--list)", nargs="?")
    search.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the space (budget.trials=40) or of the config"
    )
    search.add_argument("--config", metavar="CONFIG", help="config to vary instead of the space's own")
    search.add_argument(
        "--database",
        metavar="URL",
        help="of the study: sqlite:///FILE or postgresql://... (default: the environment variable "
        "STUDY_DATABASE, which "
        "shows its password to nobody, else sqlite:///bft_studies.db)",
    )
    search.add_argument("--no-profile", action="store_true", help="do not draw the window profile of the data")
    search.add_argument("--no-measure", action="store_true", help="do not measure time and memory on a few steps first")
    _price_argument(search)
    how = search.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="check everything, print what would run and what it costs")
    how.add_argument(
        "--status", action="store_true", help="the status of the study, from any machine; without SPACE a line for each"
    )
    how.add_argument("--cancel", action="store_true", help="end the study cleanly; the same command resumes it")
    how.add_argument("--list", action="store_true", help="the search spaces that come with the package")

    after_rl = _command(
        commands,
        "after-rl",
        commands_of.after_rl_command,
        "does a policy-gradient stage (GRPO) improve models fine-tuned by sft, dft and bft? Needs the extra rl",
    )
    after_rl.set_defaults(after_interrupt="; the same command resumes the study")
    after_rl.add_argument(
        "study", metavar="STUDY", nargs="?", default="starter", help="YAML file or a bundled one (default: starter)"
    )
    after_rl.add_argument(
        "overrides", nargs="*", metavar="FIELD=VALUE", help="fields of the study (grpo.steps=80) or of the config"
    )
    how = after_rl.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="check everything, and print what would run")
    how.add_argument("--status", action="store_true", help="what the runs that have ended say")
    how.add_argument("--list", action="store_true", help="the studies of this kind that come with the package")

    report = _command(
        commands,
        "report",
        commands_of.report_command,
        "the answer of a study as one page, made from its records at any time",
    )
    report.add_argument(
        "study", metavar="STUDY", nargs="?", help="NAME, NAME/DOMAIN or its search space; may still run"
    )
    report.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="as given to `bft-ray search`, for a space")
    report.add_argument("--config", metavar="CONFIG", help="as given to `bft-ray search`, for a space")
    report.add_argument("--database", metavar="URL", help="of the study (default: as for `bft-ray search`)")
    report.add_argument("--domains", action="store_true", help="instead all studies of the database, domain by domain")
    report.add_argument("--out", metavar="FILE", help="HTML file (default: NAME-DOMAIN.html, or domains.html)")

    plan = _command(
        commands,
        "plan",
        commands_of.plan_command,
        "will this fit? memory by ZeRO stage and offload, from the config alone",
    )
    _config_arguments(plan)
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
    _price_argument(plan)

    best = _command(
        commands, "best", commands_of.best_command, "show what the studies of a domain have chosen, and how to use it"
    )
    best.add_argument("domain", metavar="DOMAIN", help="sub-domain, e.g. medical_qa")
    best.add_argument("--uri", help="tracking server or database (default: MLFLOW_TRACKING_URI, else that of a config)")
    best.add_argument("--version", metavar="N", help="this version instead of the champion")
    best.add_argument("--yaml", action="store_true", help="print its config alone")

    export = _command(
        commands,
        "export",
        commands_of.export_command,
        "the champion of a domain as one checked model, with its evidence",
    )
    export.add_argument("domain", metavar="DOMAIN", help="sub-domain, e.g. medical_qa")
    export.add_argument(
        "--uri", help="tracking server or database (default: MLFLOW_TRACKING_URI, else that of a config)"
    )
    export.add_argument("--version", metavar="N", help="this version instead of the champion")
    export.add_argument("--out", metavar="FOLDER", help="new folder or URI (default: bft-DOMAIN-VERSION)")
    export.add_argument(
        "--push", metavar="REPOSITORY", help="also to a hub, private where it is new (HF_TOKEN, HF_ENDPOINT)"
    )
    export.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the model: only if you read it",
    )

    compare = _command(
        commands,
        "compare",
        commands_of.compare_command,
        "answers of several models to held-out prompts, side by side, for you alone",
    )
    compare.add_argument("models", nargs="*", metavar="MODEL", help="folder, hub id, starter or smollm2")
    compare.add_argument("--champion", metavar="DOMAIN", help="also the base, the default and the champion of a domain")
    compare.add_argument("--uri", help="tracking server or database that has the champion (default: that of a config)")
    compare.add_argument("--prompts", metavar="FILE", help="rows that no model was trained on, e.g. test.jsonl")
    compare.add_argument("--limit", type=int, default=20, metavar="N", help="the first N rows (default: 20)")
    compare.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    compare.add_argument(
        "--out", default="compare.html", metavar="FILE", help="page, of mode 0600 (default: compare.html)"
    )

    clean = _command(
        commands,
        "clean",
        commands_of.clean_command,
        "list what was made of a config's data, with sizes, and remove it when asked",
    )
    _config_arguments(clean)
    clean.add_argument("--database", metavar="URL", help="of studies (default: as for `bft-ray search`)")
    clean.add_argument("--yes", action="store_true", help="remove all of it without asking")

    ui = _command(
        commands,
        "ui",
        commands_of.ui_command,
        "MLflow's page over a database, on loopback, for whoever has the link that it prints",
    )
    ui.add_argument("--uri", help="database (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)")
    ui.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: a free one)")

    config = _command(commands, "config", commands_of.config_command, "show the resolved config or its JSON schema")
    config.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file or recipe")
    config.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help=_OVERRIDES)
    what = config.add_mutually_exclusive_group()
    what.add_argument("--show", action="store_true", help="print the resolved config as YAML (the default)")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of the config")
    what.add_argument("--recipes", action="store_true", help="list the configs that come with the package")

    doctor = _command(
        commands, "doctor", commands_of.doctor_command, "say what is wrong with this machine, cluster, server or config"
    )
    doctor.add_argument("config", nargs="?", metavar="CONFIG", help="also check what this config asks for")
    doctor.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help=_OVERRIDES)

    fetch = _command(
        commands,
        "fetch",
        commands_of.fetch_command,
        "bring all that configs need from the hub into its cache, and check it",
    )
    fetch.add_argument("sources", nargs="+", metavar="CONFIG_OR_SPACE", help="YAML files, recipes or search spaces")
    fetch.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help=_OVERRIDES)

    submit = _command(
        commands,
        "submit",
        commands_of.submit_command,
        "run any of these commands as a job of a Ray cluster, and follow it",
    )
    submit.set_defaults(check=lambda words: _check_words(parser, words))
    submit.add_argument(
        "--address", metavar="URL", help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, else RAY_ADDRESS)"
    )
    submit.add_argument(
        "--working-dir", default=".", metavar="FOLDER", help="uploaded, and the folder of the job (default: .)"
    )
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="for the job; Ray's record of it shows the value",
    )
    what = submit.add_mutually_exclusive_group()
    what.add_argument("--no-follow", action="store_true", help="return once the cluster has the job")
    what.add_argument(
        "--follow", metavar="JOB", help="follow this job, which was submitted before, instead of a COMMAND"
    )
    submit.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="e.g. search medical_qa budget.trials=40"
    )

    init = _command(
        commands,
        "init",
        commands_of.init_command,
        "from your own rows to a study: a config, a search space, four splits",
    )
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
    init.add_argument("--limit", type=int, metavar="N", help="read only the first N rows")
    init.add_argument("--domain", help="sub-domain name (default: from the name of the data)")
    init.add_argument(
        "--model", default="starter", help="base model: starter (the default), smollm2, a folder or a hub id"
    )
    init.add_argument(
        "--space",
        default="bft",
        metavar="NAME",
        help="what the search varies: bft (the forms of BFT, the default), or families (token weights from plain "
        "fine-tuning to BFT, and an anchor)",
    )
    init.add_argument(
        "--out",
        default="bft.yaml",
        metavar="FILE",
        help="YAML file, or a folder for bft.yaml; other files go beside it",
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


def _check_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """A command for a job is one of these; what is wrong with its options ends here and not on the cluster."""
    if not words or words[0] in {"submit", "ui", "init"}:
        given = words[0] if words else None
        raise BadInput(
            "COMMAND", given, "a command that can run on a cluster", "Example: bft-ray submit search medical_qa."
        )
    options, _ = parser.parse_known_args(words)
    if not hasattr(options, "run"):
        raise BadInput("COMMAND", words[0], "a command of bft-ray", "Options of `submit` stand before it.")


def _price_argument(parser: argparse.ArgumentParser) -> None:
    text = "price of an hour of one GPU, in your currency: prints the price of measured hours"
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="PRICE", help=text)


if __name__ == "__main__":
    entry()
