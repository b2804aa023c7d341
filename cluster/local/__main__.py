"""A whole cluster on this machine, on loopback: Ray with a job server and workers, PostgreSQL, an MLflow server.

    python -m cluster.local up [--workers 2] [--cpus-per-worker 1] [--folder .cluster]
    eval "$(python -m cluster.local env)"
    python -m cluster.local status
    python -m cluster.local down

`down` stops what `up` started and nothing else, and waits until it is gone. Databases, artifacts and logs stay in the
folder, and the next `up` uses them again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from bft_ray.errors import BadInput, BftError
from bft_ray.places.addresses import redact
from bft_ray.tracking.login import USER as LOGIN
from cluster.local.postgres import start_postgres
from cluster.local.raylets import start_ray
from cluster.local.service import Failed, free_port, is_free, stop_all
from cluster.local.state import State, export_lines, held
from cluster.local.tracking import start_mlflow, wait_for_mlflow

NUMBERS = (
    ("--workers", 2, "raylets beside the head, which does no work; 0: the head does it"),
    ("--cpus-per-worker", 1, "CPUs of each"),
    ("--gpus-per-worker", 0, "GPUs of each"),
    ("--timeout", 120, "seconds in which all must be up"),
)
PORTS = ("gcs", "dashboard", "mlflow", "postgres")
TAIL_BYTES = 3000
#: the job finds both servers in its environment, so that Ray's record of it has no password
EXAMPLE = """  ray job submit --working-dir . -- python -m jobs.search starter cluster.storage_path={results}"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    options.folder = options.folder.resolve()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return options.run(options)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    texts = {
        up: "start it",
        down: "stop it",
        status: "its addresses, and what of it runs (exit status 0: all)",
        env: "the `export` lines of a client, with the passwords of database and MLflow",
    }
    for run, text in texts.items():
        command = commands.add_parser(run.__name__, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--folder", type=Path, default=Path(".cluster"), help="folder of all its files (.cluster)")
        if run is up:
            for name, default, text in NUMBERS:
                command.add_argument(name, type=_number, default=default, help=f"{text} ({default})")
            for port in PORTS:
                command.add_argument(f"--{port}-port", type=_number, help="default: a free one")
    return parser


def up(options: argparse.Namespace) -> int:
    """Start it; what had started is stopped again where something fails."""
    with held(options.folder):
        state = State.load(options.folder)
        if not state.is_gone():
            return _is_up_already(state)
        fixed = {name: getattr(options, f"{name}_port") for name in PORTS}
        for name, port in fixed.items():
            if port is not None and not is_free(port):
                raise BadInput(f"--{name}-port", port, "a port that nobody listens on", "Leave it out, or stop that.")
        state = State(options.folder, {name: port or free_port() for name, port in fixed.items()})
        begin = time.monotonic()
        try:
            _start(state, options, begin + options.timeout)
        except BaseException as error:
            left = stop_all(state)
            if not isinstance(error, BftError):
                raise
            print(f"error: {error}", file=sys.stderr)
            if isinstance(error, Failed):
                print(_tail(state.log(error.service)), file=sys.stderr)
            print("What had started is stopped." if not left else _still_there(left), file=sys.stderr)
            return 2 if isinstance(error, BadInput) else 1
    print(f"up after {time.monotonic() - begin:.0f} s, in {state.folder}\n")
    _show(state)
    where = "" if state.folder == Path(".cluster").resolve() else f" --folder {state.folder}"
    print(f'\nIn a shell that works with it:\n  eval "$(python -m cluster.local env{where})"')
    print(EXAMPLE.format(results=Path("bft_results").resolve()))
    return 0


def _start(state: State, options: argparse.Namespace, end: float) -> None:
    start_postgres(state, end)
    start_mlflow(state)  # comes up while Ray does
    cpus, gpus = options.cpus_per_worker, options.gpus_per_worker
    start_ray(state, end, workers=options.workers, cpus=cpus, gpus=gpus, env=state.services())
    wait_for_mlflow(state, end)
    state.is_whole = True
    state.save()


def _is_up_already(state: State) -> int:
    dead = set(state.processes) - set(state.living())
    if dead or not state.is_whole:
        what = f"{', '.join(sorted(dead))} ended, the rest runs" if dead else "its start was broken off"
        print(f"error: {what}: `down` first", file=sys.stderr)
        return 1
    print(f"it runs already, in {state.folder}\n")
    _show(state)
    return 0


def down(options: argparse.Namespace) -> int:
    """Stop it, and wait until it is gone."""
    if not options.folder.is_dir():
        print("nothing runs")
        return 0
    with held(options.folder):
        state = State.load(options.folder)
        was_gone, names = state.is_gone(), ", ".join(state.living())
        left = stop_all(state)
    if left:
        print(f"error: {_still_there(left)}", file=sys.stderr)
        return 1
    print("nothing runs" if was_gone else f"stopped, and gone: {names or 'what was left of it'}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Show addresses, without passwords, and what runs."""
    state = State.load(options.folder)
    if state.is_gone():
        print("nothing runs")
        return 1
    _show(state)
    return 0 if state.is_whole and set(state.living()) == set(state.processes) else 1


def env(options: argparse.Namespace) -> int:
    """Print what a shell evaluates."""
    state = State.load(options.folder)
    if state.is_gone():
        print("error: nothing runs: `up` first", file=sys.stderr)
        return 1
    print("\n".join(["unset RAY_AUTH_TOKEN", *export_lines(state.exports())]))
    return 0


def _show(state: State) -> None:
    living = state.living()
    for name, process in state.processes.items():
        print(f"  {name:<13} {'runs' if name in living else 'ENDED':<6} pid {process.pid:<8} {state.log(name)}")
    print(f"\n  MLflow        {state.mlflow} (user {LOGIN}, asks for the password in {state.mlflow_password})")
    print(f"  Ray dashboard {state.dashboard} (asks for the token in {state.token})\n")
    for line in export_lines(state.exports()):
        print(f"  {redact(line)}")


def _tail(log: Path) -> str:
    text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if log.exists() else ""
    return f"--- the end of {log}:\n{redact(text).rstrip()}\n---"


def _still_there(left: set[Any]) -> str:
    return f"still there, though killed: pid {', '.join(str(process.pid) for process in sorted(left))}"


def _number(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
