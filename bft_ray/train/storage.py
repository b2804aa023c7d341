"""The results folder of a run, on a disk or in an object store, by path or URI."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from bft_ray.data.cache import try_folder
from bft_ray.data.modes import settle
from bft_ray.data.remote import filesystem_at as _at
from bft_ray.data.remote import is_remote, local_copy
from bft_ray.errors import BadInput


def absolute(path: str) -> str:
    """A local folder as an absolute path, so that workers with another working directory find it; a URI as it is."""
    return path if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().resolve())


def join(path: str, *parts: str) -> str:
    """Path of something below a folder or URI."""
    return "/".join([path.rstrip("/"), *parts])


def check_writable(path: str) -> None:
    """Write and delete a small file; leaves nothing, so that a run that is refused later has made no folder.

    Raises:
        BadInput: the place cannot be written.
    """
    probe = join(path, ".bft_ray_writable")
    try:
        if not is_remote(path):
            try_folder(Path(absolute(path)))
            return
        write_text(probe, "")
        filesystem, place = _at(probe)
        filesystem.delete_file(place)
    except Exception as error:  # pyarrow raises a different type for each store
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            "cluster.storage_path",
            path,
            f"a folder or URI that can be written: {reason}",
            "Choose another place, or mend its rights.",
        ) from None


def read_text(path: str) -> str | None:
    """Content of a small file, or None where there is none."""
    filesystem, place = _at(path)
    try:
        with filesystem.open_input_stream(place) as stream:
            return stream.read().decode()
    except FileNotFoundError:
        return None


def write_text(path: str, text: str) -> None:
    """Write a small file, whole or not at all on a disk; folders are made."""
    if not is_remote(path):
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".", delete=False) as file:
            file.write(text)
        settle(file.name)
        Path(file.name).replace(target)
        return
    filesystem, place = _at(path)
    with filesystem.open_output_stream(place) as stream:
        stream.write(text.encode())


def put_folder(folder: Path, path: str) -> None:
    """Replace what lies at `path` by the content of a local folder."""
    if not is_remote(path):
        beside = Path(path + ".new")
        shutil.rmtree(beside, ignore_errors=True)
        shutil.copytree(folder, beside)
        settle(beside)
        shutil.rmtree(path, ignore_errors=True)
        beside.rename(path)
        return
    import pyarrow.fs

    filesystem, place = _at(path)
    pyarrow.fs.copy_files(str(folder), place, destination_filesystem=filesystem)


def fetch_folder(path: str, into: Path | None = None) -> Path:
    """A local folder with what lies at `path`: the folder itself, or a copy of what the store holds.

    Args:
        into: where the copy goes; None: where this machine keeps such copies (`bft_ray.data.remote`).

    Raises:
        FileNotFoundError: the store holds no such folder.
    """
    if not is_remote(path):
        return Path(path)
    if into is None:
        return local_copy(path)
    import pyarrow.fs

    filesystem, place = _at(path)
    pyarrow.fs.copy_files(place, str(into), source_filesystem=filesystem)
    return into


def exists(path: str) -> bool:
    """Whether there is such a folder."""
    import pyarrow.fs

    filesystem, place = _at(path)
    return filesystem.get_file_info(place).type == pyarrow.fs.FileType.Directory


def remove_folder(path: str) -> None:
    """Delete a folder and all that lies in it; nothing where there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    filesystem, place = _at(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(place)
