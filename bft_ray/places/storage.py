"""The results folder of a run, on a disk or in an object store, by path or URI."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.places.addresses import redact
from bft_ray.places.cache import cache_folder, try_folder
from bft_ray.places.disk import full_disk
from bft_ray.places.kept import PART, delete, read_bytes, write_text
from bft_ray.places.modes import settle
from bft_ray.places.remote import filesystem_at as _at
from bft_ray.places.remote import is_remote, local_copy
from bft_ray.places.stores import ANSWER_S, why_not
from bft_ray.waits import bounded, waiting

FIELD = "cluster.storage_path"


def absolute(path: str) -> str:
    """A local folder as an absolute path, so that workers with another working directory find it; a URI as it is."""
    return path if is_remote(path) else str(Path(path.removeprefix("file://")).expanduser().resolve())


def join(path: str, *parts: str) -> str:
    """Path of something below a folder or URI."""
    return "/".join([path.rstrip("/"), *parts])


def places(storage_path: str, cache_dir: str | None = None) -> dict[str, str]:
    """The places that a run writes to on this machine: field or variable that sets it -> place."""
    return {FIELD: storage_path, "data.cache_dir": cache_dir or str(cache_folder()), "TMPDIR": tempfile.gettempdir()}


def check_writable(path: str, field: str = FIELD) -> None:
    """Write and delete a small file; leave nothing, so that a run that is refused later has made no folder. (In a store
    its empty folder stays: to delete one could delete what another process writes there.)

    Raises:
        BadInput: the place cannot be written.
        DiskFull: it has no room.
    """
    if is_remote(path):
        _check_store(path, field)
        return
    try:
        try_folder(Path(absolute(path)))
    except Exception as error:
        if full := full_disk(error, {field: path}):
            raise full from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            field,
            path,
            f"a folder or URI that can be written: {reason}",
            "Choose another place, or correct its rights.",
        ) from None


@waiting("writing to the object store")
def _check_store(uri: str, field: str) -> None:
    """Write, read and delete an object, within `ANSWER_S`."""
    probe = join(uri, f".bft_ray_writable_{uuid.uuid4().hex}")  # others may check at the same time

    def attempt() -> None:
        write_text(probe, probe)
        content = read_bytes(probe)
        delete(probe)
        if content != probe.encode():
            raise OSError("it does not return what was written to it")

    try:
        bounded(ANSWER_S, attempt)
    except Exception as error:  # pyarrow raises a different type for each store
        raise BadInput(field, redact(uri), *why_not(error, uri)) from None


def put_folder(folder: Path, path: str) -> None:
    """Replace the contents of `path` by those of a local folder. In a store first the new files are written, then those are
    deleted that the local folder has not.
    """
    if not is_remote(path):
        with whole_folder(Path(path)) as beside:
            shutil.copytree(folder, beside)
        return
    add_files(folder, path)
    mine = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    for name in sizes_in(path).keys() - mine:
        delete(join(path, name))


def add_files(folder: Path, uri: str) -> None:
    """Write the files of a local folder into one of a store, beside what is there: each rank adds its own."""
    import pyarrow.fs

    filesystem, place = _at(uri)
    pyarrow.fs.copy_files(str(folder), place, destination_filesystem=filesystem)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` at the end: the result is whole, or does not exist.

    Raises:
        DiskFull: the block has failed because of a full disk. After any error, partial files are removed.
    """
    beside = folder.with_name(folder.name + PART)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        yield beside
        settle(beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    except Exception as error:
        if full := full_disk(error, {FIELD: folder}):
            raise full from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def remove_parts(path: str) -> None:
    """Delete the partial files of killed processes below a folder of a disk; no process may write there now."""
    if is_remote(path):
        return  # a store keeps no partial files
    for place, folders, files in os.walk(path, topdown=True):
        for name in filter(_is_part, files):
            Path(place, name).unlink(missing_ok=True)
        for name in filter(_is_part, folders):
            shutil.rmtree(Path(place, name), ignore_errors=True)
        folders[:] = [name for name in folders if not _is_part(name)]


def _is_part(name: str) -> bool:
    return name.endswith(PART)


def fetch_folder(path: str, into: Path | None = None) -> Path:
    """A local folder with the contents of `path`: the folder itself, or a copy from the store.

    Args:
        into: where the copy goes; None: where this machine keeps such copies (`bft_ray.places.remote`).

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


def folders_in(path: str, prefix: str) -> list[str]:
    """Names of the folders at `path` that begin with the prefix; [] where there is no such place."""
    import pyarrow.fs

    filesystem, place = _at(path)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(place, allow_not_found=True))
    kind = pyarrow.fs.FileType.Directory
    return [info.base_name for info in found if info.type == kind and info.base_name.startswith(prefix)]


def sizes_in(path: str) -> dict[str, int]:
    """Name -> bytes of the files below a folder or URI; none where there is no such place."""
    import pyarrow.fs

    filesystem, place = _at(path)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(place, allow_not_found=True, recursive=True))
    return {info.path.removeprefix(place.rstrip("/") + "/"): info.size for info in found if info.is_file}


def remove_folder(path: str) -> None:
    """Delete a folder with its contents; do nothing where there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    filesystem, place = _at(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(place)
