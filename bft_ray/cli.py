"""The commands. Heavy libraries are imported by the command that needs them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, TextIO

from bft_ray import __version__
from bft_ray.commands import ui
from bft_ray.errors import BadConfig, BadInput, BftError
from bft_ray.places.cache import ensure_home
from bft_ray.places.disk import full_disk
from bft_ray.places.modes import kept_for
from bft_ray.places.refused import refused_path
from bft_ray.places.scratch import remove_dead
from bft_ray.places.stores import store_failure
from bft_ray.saving import STATUS, Saved, on_signal
from bft_ray.waits import report_waits

#: files of `bft_ray.commands`, as `--help` lists them
COMMANDS = [
    "train", "evaluate", "profile", "search", "after_rl", "report", "plan", "best", "export", "compare", "clean", "ui", "config",
    "doctor", "fetch", "submit", "init",
]  # fmt: skip


def entry() -> NoReturn:
    """The console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # its caller has closed it (`>&-`)
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
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
    is_served = options.run is ui.run  # it waits for its user
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
    for name in COMMANDS:
        import_module(f"bft_ray.commands.{name}").add(commands)
    commands.choices["submit"].set_defaults(parser=parser)  # for the command that it submits
    return parser


if __name__ == "__main__":
    entry()
