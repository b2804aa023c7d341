"""Folders of this machine for files that can be made again, also without a home, or with one that cannot be written."""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bft_ray.errors import BadInput

_PROBE = bytes(1 << 20)


def cache_folder(*parts: str) -> Path:
    """A private folder that can be written: `~/.cache/bft_ray/PARTS`, else `TMPDIR/bft_ray_UID/PARTS`, else a new one.

    In a container that runs under any user id there may be no HOME and no entry for the user, or a home that only
    another one may write.
    """
    for place in _places():
        with contextlib.suppress(OSError):
            folder = place.joinpath(*parts)
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for own in (place, folder):  # also one of an earlier version
                own.chmod(0o700)
            is_mine = place.stat().st_uid == os.getuid() or place.parent.name == ".cache"  # where all may write: mine
            if is_mine and os.access(folder, os.W_OK | os.X_OK):
                return folder
    return Path(tempfile.mkdtemp(prefix="bft_ray_"))


def _places() -> list[Path]:
    temporary = Path(tempfile.gettempdir()) / f"bft_ray_{os.getuid()}"
    try:
        return [Path.home() / ".cache" / "bft_ray", temporary]
    except RuntimeError:  # neither HOME nor an entry for this user id
        return [temporary]


def try_folder(folder: Path) -> None:
    """Make and delete a file in a folder, or, of one that is not there yet, in what is to hold it; leaves nothing.

    Raises:
        OSError: nothing can be written there.
    """
    while not folder.exists():
        folder = folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_PROBE)  # a full disk still takes an empty file
        file.flush()


def sha256_of(file: Path) -> str:
    """Hex; read once a process as long as size and time of change stay."""
    stat = file.stat()
    return _sha256(str(file), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: str, num_bytes: int, mtime_ns: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_out(out: Path) -> None:
    """BadInput where the folder of --out could not be written at the end of what takes a while; leaves nothing."""
    require_local("--out", str(out))
    try:
        try_folder(out)
    except OSError as error:
        rule = f"a folder that can be written, or that can be made: {error.strerror}"
        raise BadInput("--out", str(out), rule, "Name another one.") from None


def check_out_file(out: Path, reads: Sequence[str | Path | None]) -> None:
    """BadInput where --out could not be written as a file at the end of what takes a while, or is one of the files that are read."""
    if out.is_dir():
        raise BadInput("--out", str(out), "a file", "Name the HTML file.")
    check_out(out.parent)
    if out.exists() and any(path and Path(path).exists() and out.samefile(path) for path in reads):
        raise BadInput(
            "--out", str(out), "another file than those that are read: it would be overwritten", "Name a new one."
        )


def require_local(field: str, path: str) -> None:
    """BadInput where a URI is given for a folder of this machine: it would be made here, under the name `s3:`."""
    if re.match(r"[A-Za-z][\w+.-]+:/", path):
        raise BadInput(field, path, "a folder of this machine, not a URI", "Name a local folder.")


def ensure_home() -> None:
    """Give this process, and all that it starts, a home and a user name where it has none: many libraries ask for them.

    Without these the hub's client writes to a folder named `~`, and asking for the user's name raises.
    """
    if not _has_home():
        folder = cache_folder()  # may make the home, where it is only missing
        if not _has_home():
            os.environ["HOME"] = str(folder)
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = f"uid{os.getuid()}"


def _has_home() -> bool:
    return os.path.isdir(os.path.expanduser("~"))
