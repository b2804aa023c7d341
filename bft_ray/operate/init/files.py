"""Several files written as one: all of them, checked, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput
from bft_ray.places.scratch import scratch


def check_free(paths: Iterable[Path], inputs: Iterable[Path], force: bool) -> None:
    """Refuse outputs that exist (without `force`), that are folders, or that are among the files which are read.

    Raises:
        BadInput: names the first one.
    """
    read = {path.resolve() for path in inputs}
    for path in paths:
        if path.resolve() in read:
            remedy = "Give --out a file in another folder, or of another name."
            raise BadInput("--out", str(path), "another file than the data, which it would overwrite", remedy)
        if path.is_dir():
            raise BadInput("--out", str(path), "a file, not a folder", "Give --out FOLDER/bft.yaml.")
        if path.exists() and not force:
            remedy = "Give --force to overwrite it, or --out a file in another folder."
            raise BadInput("--out", str(path), "a file that does not exist yet", remedy)


def write_all(
    folder: Path, texts: Mapping[str, str], check: Callable[[Path], object], stale: Iterable[str] = ()
) -> None:
    """Write files of a folder: to a folder beside them first, where they are checked, then each in one move.

    Args:
        texts: name -> content, in the order of the moves.
        check: called with the folder that holds all of them; if it raises, nothing is left behind.
        stale: names of files to delete after the new ones are in place.

    Raises:
        BadInput: a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with scratch("init", folder) as made:
            for name, text in texts.items():
                (made / name).write_text(text, encoding="utf-8")
            check(made)
            for name in texts:
                os.replace(made / name, folder / name)
            for name in stale:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        rule = f"a file in a folder that can be written: {error.strerror or error}"
        raise BadInput("--out", str(folder), rule, "Give --out a file in another folder.") from None


def rows_text(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """(place, record) -> JSON lines.

    Raises:
        BadInput: text that cannot be written as UTF-8 (half of a character of two parts); names the place.
    """
    lines = []
    for where, record in rows:
        line = json.dumps(record, ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:
            rule = "text without cut characters (a lone surrogate, such as half of an emoji)"
            raise BadInput(where, "not valid Unicode", rule, "Correct or remove this row.") from None
        lines.append(line + "\n")
    return "".join(lines)
