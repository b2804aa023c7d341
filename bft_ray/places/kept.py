"""Small JSON files that bft-ray writes and reads back: whole or not at all, and with a checksum of their own.

    {"sha256": "<of every byte after this value>", "step": 12, ...}

A damaged one is named in a warning and counts as absent, so its reader continues as if it had never existed. A file of an
earlier version has no checksum: it is accepted if it is JSON and has the keys that its reader needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bft_ray.places.modes import settle
from bft_ray.places.remote import filesystem_at, is_remote

log = logging.getLogger(__name__)

PART = ".part"  # end of the name of what is half written, by a process that lives or by one that was killed
_HEAD, _DIGITS = b'{"sha256": "', 64


def write_kept(path: str | Path, value: Mapping[str, Any], indent: int | None = None) -> None:
    """Write an object, by path or URI; it has at least one key."""
    write_text(path, sealed(json.dumps(value, indent=indent)))


def sealed(text: str) -> str:
    """The text of a JSON object, with the checksum of what follows in front."""
    rest = '",' + text[1:]
    return f"{_HEAD.decode()}{hashlib.sha256(rest.encode()).hexdigest()}{rest}"


def read_kept(path: str | Path, needs: Collection[str] = ()) -> dict[str, Any] | None:
    """What `write_kept` wrote; None where there is no such file, or, with a warning that names it, a damaged one.

    Args:
        needs: keys without which it is of no use. Others than one knows are to be ignored.

    Raises:
        OSError: it exists and cannot be read, such as without the right to do so.
    """
    content = read_bytes(path)
    if content is None:
        return None
    try:
        return _parse(content, needs)
    except ValueError as error:
        log.warning("%s is damaged (%s): it counts as absent", path, error)
        return None


def is_damaged(path: str | Path, needs: Collection[str] = ()) -> bool:
    """Whether there is such a file, and `read_kept` gives None; without a warning."""
    content = read_bytes(path)
    try:
        return content is not None and _parse(content, needs) is None
    except ValueError:
        return True


def write_text(path: str | Path, text: str) -> None:
    """Write a small file, on a disk whole or not at all, also if the power fails; folders are made."""
    if is_remote(str(path)):
        filesystem, place = filesystem_at(str(path))
        with filesystem.open_output_stream(place) as stream:
            stream.write(text.encode())
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=PART)
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # else the name may come to the disk before the content
        settle(name)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def read_bytes(path: str | Path) -> bytes | None:
    """Content of a small file; None where there is none."""
    try:
        if not is_remote(str(path)):
            return Path(path).read_bytes()
        filesystem, place = filesystem_at(str(path))
        with filesystem.open_input_stream(place) as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def delete(path: str | Path) -> None:
    """Delete a file, by path or URI; nothing where there is none."""
    if not is_remote(str(path)):
        Path(path).unlink(missing_ok=True)
        return
    filesystem, place = filesystem_at(str(path))
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(place)


def _parse(content: bytes, needs: Collection[str]) -> dict[str, Any]:
    """The object; ValueError with the reason, as a clause, where it is damaged."""
    if not content.strip():
        raise ValueError("it is empty")
    if content.startswith(_HEAD):
        digest, rest = content[len(_HEAD) :][:_DIGITS], content[len(_HEAD) + _DIGITS :]
        if hashlib.sha256(rest).hexdigest().encode() != digest:
            raise ValueError("its checksum differs")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("it is no whole JSON") from None
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    value.pop("sha256", None)
    if lacking := [name for name in needs if name not in value]:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    return value
