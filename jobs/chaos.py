"""Break bft-ray on purpose, on this machine, and look what is lost: the long form of the tests of faults.

    python -m jobs.chaos [--seed 0] [--kills 100] [--minutes 90] [--folder chaos_results] [--part NAME]

What is done is drawn from the seed; what was done is in FOLDER/state.json, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, BftError

PARTS = ("corruption", "inputs", "commands", "kills")  # the long ones last


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for; 0 where nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="draws everything (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="SIGKILLs in all (default: %(default)s)")
    parser.add_argument("--corruptions", type=int, default=1000, help="damaged files in all (default: %(default)s)")
    parser.add_argument("--inputs", type=int, default=2000, help="malformed inputs in all (default: %(default)s)")
    parser.add_argument("--commands", type=int, default=50, help="commands over a damaged file (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=90.0, help="no study or command begins that would end later")
    parser.add_argument("--folder", type=Path, default=Path("chaos_results"), help="of the state and all files")
    parser.add_argument("--part", choices=PARTS, action="append", help="one of the parts (default: all)")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    state = load(folder, options.seed)
    faults = 0
    for part in options.part or PARTS:
        if part == "kills":
            faults += _kills(folder, state, options, end)
        elif part == "commands":
            faults += _commands(folder, state, options, end)
        else:
            faults += _in_process(part, folder, state, options)
    return int(faults > 0)


def _in_process(part: str, folder: Path, state: dict[str, Any], options: argparse.Namespace) -> int:
    """Damaged files or malformed inputs: seconds, so a part is done as a whole, or again. Returns the number of faults."""
    count = options.corruptions if part == "corruption" else options.inputs
    if state.get(part, {}).get("count") != count or state[part]["faults"]:
        from jobs.chaos_files import run_corruption
        from jobs.chaos_inputs import run_inputs

        run = run_corruption if part == "corruption" else run_inputs
        outcomes, faults = run(folder / part, options.seed, count)
        rows = [[kind, outcome, number] for (kind, outcome), number in sorted(outcomes.items())]
        state[part] = {"count": count, "outcomes": rows, "faults": [asdict(fault) for fault in faults]}
        save(folder, state)
    _tell(folder, part, state[part]["outcomes"])
    for fault in state[part]["faults"]:
        print(f"fault {fault['number']}: {fault['kind']}, {fault['file']}, {fault['how']}: {fault['what']}")
    return len(state[part]["faults"])


def _tell(folder: Path, part: str, rows: Sequence[Sequence[Any]]) -> None:
    """A table of kind, outcome and times; printed and kept."""
    lines = [f"| {part} | outcome | times |", "|---|---|---|"]
    lines += [f"| {kind} | {outcome} | {number} |" for kind, outcome, number in rows]
    (folder / f"{part}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _commands(folder: Path, state: dict[str, Any], options: argparse.Namespace, end: float) -> int:
    from jobs.chaos_commands import run_commands, told

    own = state.setdefault("commands", {})
    run_commands(folder / "commands", own, options.seed, options.commands, end, lambda: save(folder, state))
    times = Counter((draw["command"], draw["outcome"]) for draw in own["draws"])
    _tell(folder, "commands", [[*key, number] for key, number in sorted(times.items())])
    for draw in own["faulty"]:
        print(f"an earlier command found in draw {told(draw)}")
    _say_what_is_left(len(own["draws"]), options.commands, "commands")
    return sum(draw["outcome"] == "fault" for draw in own["draws"])


def _say_what_is_left(done: int, asked: int, what: str) -> None:
    if done < asked:
        words = ["python", "-m", "jobs.chaos", *sys.argv[1:]]
        print(f"{done} of {asked} {what} are done; the same command goes on: {shlex.join(words)}")


def _kills(folder: Path, state: dict[str, Any], options: argparse.Namespace, end: float) -> int:
    from jobs.chaos_kills import run_kills, table

    own = state.setdefault("kills", {})
    try:
        run_kills(folder / "kills", own, options.seed, options.kills, end, lambda: save(folder, state))
    finally:
        walks = own.get("walks", [])
        (folder / "kills.md").write_text(table(walks) + "\n")
        print(table(walks))
        for walk in own.get(
            "faulty", []
        ):  # the same draw meets other moments: a fault is not gone because it did not come again
            print(f"an earlier command found in study {walk['number']}: {'; '.join(walk['differences'])}")
        _say_what_is_left(sum(len(walk["kills"]) for walk in walks), options.kills, "kills")
    return sum(len(walk["differences"]) for walk in own["walks"])


def load(folder: Path, seed: int) -> dict[str, Any]:
    """What earlier commands have done in this folder.

    Raises:
        BadInput: it was done with another seed, or the file is damaged.
    """
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
        before = state["seed"]
    except FileNotFoundError:
        return {"seed": seed}
    except (ValueError, KeyError, TypeError):
        raise BadInput(str(path), "no whole state", "what this command wrote", "Remove the folder.") from None
    if before != seed:
        raise BadInput("--seed", seed, f"{before} as before in {folder}", "Give another --folder.")
    return state


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write it, whole or not at all."""
    new = folder / "state.json.new"
    new.write_text(json.dumps(state, indent=1))
    os.replace(new, folder / "state.json")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except BftError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
