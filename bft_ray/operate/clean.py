"""`bft-ray clean`: what was made of a data set on this machine, with sizes; and its removal, as when a patient withdraws consent.

Found are tokenised copies and log-probabilities of them, profiles, folders of runs (checkpoints, exports, records of items) and
of studies, and the records of studies in their database. They are matched by the paths of the data in what each of them noted,
so that rows that were changed since are found too. What MLflow holds is named, and removed by MLflow's own commands.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bft_ray.config import Config
from bft_ray.config.base import inputs_of
from bft_ray.data.read_as import paths_of
from bft_ray.data.tables import names_a_hub_dataset
from bft_ray.data.values import STARTER
from bft_ray.model.checksums import CHECKSUMS
from bft_ray.model.start_logps import dataset_of
from bft_ray.places import storage
from bft_ray.places.addresses import redact, sqlite_path
from bft_ray.places.cache import cache_folder
from bft_ray.places.kept import read_kept
from bft_ray.study.records.database import Database
from bft_ray.study.records.store import Store, studies
from bft_ray.train.checkpoint import STEP
from bft_ray.train.record import only_one

_DEPTH = 3  # of the folder of a study below the storage: studies/DOMAIN/NAME
_NO_RUNS = ("studies", "profiles", "after_rl")  # folders beside those of runs


@dataclass(frozen=True)
class Place:
    """Something that was made of the data.

    Args:
        kind: tokens, log-probabilities, profile, run, study or records.
        name: folder, or study in the database.
        num_bytes: of its files; 0 for records.
        remove: removes it.
        held: a context in which no other command works on it; entering raises BadInput where one does.
    """

    kind: str
    name: str
    num_bytes: int
    remove: Callable[[], None]
    held: Callable[[], AbstractContextManager[None]] = nullcontext


def found_places(config: Config, database: str) -> list[Place]:
    """Everything made of the data of a config, as far as this machine can see.

    Args:
        database: of the studies; a file that does not exist holds none.

    Raises:
        BadInput: the database does not answer: what it holds is not known.
    """
    wanted = data_of(config)
    return [
        *_tokens(config, wanted),
        *_profiles(config),
        *_runs(config.cluster.storage_path, wanted),
        *_studies(database, config.cluster.storage_path, wanted),
    ]


def data_of(config: Config) -> set[str]:
    """The paths of all rows that a config reads, as `_plain` has them. What is not there may be the id of a data set on a hub, or
    a file of this folder that is gone: it is both.
    """
    paths = _paths(config)
    return {_plain(path) for path in paths} | {
        str(Path(path).expanduser().resolve()) for path in paths if _is_here(path)
    }


def _paths(config: Config) -> list[str]:
    paths = [source.path for source in (*config.data.train, *config.data.validation)]
    for task in config.evaluation.tasks:
        paths += [str(value) for name in inputs_of(task) if (value := getattr(task, name))]
    return paths


def _is_here(path: str) -> bool:
    return not path.startswith(STARTER) and "://" not in path


def _plain(path: str) -> str:
    """A path that two processes compare: absolute, where it is one of this machine."""
    if not _is_here(path):
        return path
    local = Path(path).expanduser()
    return str(local.resolve()) if local.exists() or local.is_absolute() else path


# ---- where things lie ----------------------------------------------------------------------------------------------


def _tokens(config: Config, wanted: set[str]) -> Iterator[Place]:
    """Tokens, and log-probabilities of them. Of what does not say whose it is, all: it may be of this data, and is made again
    when it is wanted.
    """
    folder = Path(config.data.cache_dir).expanduser() if config.data.cache_dir else cache_folder()
    others = set()  # fingerprints of other data
    for tokens in sorted(folder.glob("*/tokens.bin")):
        try:
            of = {_plain(path) for path in paths_of(tokens.parent)}
        except (OSError, ValueError, KeyError, TypeError):
            yield _folder("tokens of unknown data", str(tokens.parent))
            continue
        if of & wanted:
            yield _folder("tokens", str(tokens.parent))
        else:
            others.add(tokens.parent.name)
    for path in sorted(folder.glob("profiles/*.parquet")):
        if (of_data := dataset_of(path)) not in others:
            kind = "log-probabilities" + ("" if of_data else " of unknown data")
            yield Place(kind, str(path), path.stat().st_size, path.unlink)


def _profiles(config: Config) -> Iterator[Place]:
    """Profiles are named by their domain alone: `bft-ray profile` makes them so."""
    place = storage.join(config.cluster.storage_path, "profiles")
    for name in sorted(storage.folders_in(place, config.domain)):
        if name == config.domain or name.startswith(f"{config.domain}-"):
            yield _folder("profile", storage.join(place, name))


def _runs(storage_path: str, wanted: set[str]) -> Iterator[Place]:
    for name in sorted(storage.folders_in(storage_path, "")):
        record = read_kept(storage.join(storage_path, name, "run.json"), needs=("config",))
        if record is not None and _values(record["config"]) & wanted:
            path = storage.join(storage_path, name)
            yield replace(_folder("run", path), held=partial(only_one, path, name))


def nameless_runs(storage_path: str) -> list[str]:
    """Folders of runs that do not say whose data they are of: `run.json` is missing or damaged."""
    names = [name for name in sorted(storage.folders_in(storage_path, "")) if name not in _NO_RUNS]
    places = [storage.join(storage_path, name) for name in names]
    return [
        place
        for place in places
        if read_kept(storage.join(place, "run.json"), needs=("config",)) is None
        and (storage.folders_in(place, STEP) or storage.exists(storage.join(place, "export")))
    ]


def _studies(database: str, storage_path: str, wanted: set[str]) -> Iterator[Place]:
    """Studies and their records. Where a working folder was moved or copied with its database, the records name the folder of
    before: the one at the same place below `storage_path` is theirs, and the other one its own database's.
    """
    path = sqlite_path(database)
    if path is not None and not path.is_file():
        return
    with Database(database, make=False) as opened:
        names = studies(opened)
        kept = {name: Store.find(opened, name).notes() for name in names}
    for name, notes in kept.items():
        if not _values(notes["settings"]) & wanted:
            continue
        folder = notes.get("study", {}).get("folder")
        told = ""
        if folder:
            own = storage.join(storage.absolute(storage_path), *Path(folder).parts[-_DEPTH:])
            if own != folder and storage.exists(own):
                yield _folder("study", own)
                if storage.exists(folder) and not _is_same(own, folder):
                    told = f"; {redact(folder)}, of which this is a copy, stays: clean it where it was made"
            elif storage.exists(folder):
                yield _folder("study", folder)
            else:  # once the records are gone, nothing knows of it
                told = f"; its folder {redact(folder)} is not there: if it was moved, remove it yourself"
        yield Place("records", f"{name} in {redact(database)}{told}", 0, partial(_forget, database, name))


def _is_same(a: str, b: str) -> bool:
    """Whether two names are of one folder, as through a link."""
    return not (storage.is_remote(a) or storage.is_remote(b)) and os.path.samefile(a, b)


def _values(settings: dict[str, Any]) -> set[str]:
    """The texts among flat settings, and those in lists and mappings that are kept as JSON, as paths."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)
        elif isinstance(value, str):
            found.add(_plain(value))

    for field, value in settings.items():
        is_json = isinstance(value, str) and value[:1] in "[{"
        if "path" in field or is_json:
            try:
                walk(json.loads(value) if is_json else value)
            except ValueError:
                walk(value)
    return found


def _forget(database: str, name: str) -> None:
    with Database(database, make=False) as opened:
        Store.find(opened, name).delete()


def _folder(kind: str, path: str) -> Place:
    return Place(kind, path, sum(storage.sizes_in(path).values()), lambda: storage.remove_folder(path))


# ---- what is told --------------------------------------------------------------------------------------------------


def listed(places: Sequence[Place], config: Config) -> str:
    """The places with their sizes, and what is not among them."""
    mlflow = (
        f"Not here: runs, models and artifacts in MLflow ({redact(config.tracking.uri)}, experiment "
        f"{config.experiment}); delete them there, then "
        "`mlflow gc`. What was written to a place of your choice is not known either: `--out` of evaluate, profile, export and "
        "report, and the page of compare, which holds answers. Nor are backups, copies of the working folder, other machines and "
        "models that were pushed elsewhere."
    )
    files = [path for path in dict.fromkeys(_paths(config)) if _is_here(path) and not names_a_hub_dataset(path)]
    gone = [path for path in files if not Path(path).expanduser().exists()]
    notes = [f"note: {path} is not in {Path.cwd()}: what was made of it is looked for by that path" for path in gone]
    notes += [
        f"note: {place} does not say whose data it is of (run.json is missing or damaged): remove it yourself where it may be of these"
        for place in nameless_runs(config.cluster.storage_path)
    ]
    notes += [
        f"note: {path} was made in this folder, of {config.domain}: remove it yourself where it is of these rows"
        for path in _made_here(config.domain)
    ]
    mlflow = "\n".join([*notes, mlflow])
    if not places:
        return f"nothing made of this data was found on this machine\n{mlflow}"
    lines = [f"{place.kind:<9}{size_text(place.num_bytes):>10}  {place.name}" for place in places]
    total = size_text(sum(place.num_bytes for place in places))
    return "\n".join([*lines, f"{'in all':<9}{total:>10}  {len(places)} places", mlflow])


def _made_here(name: str) -> list[str]:
    """Exports of the domain's champions and pages of its studies that lie in the working folder, where commands put them without
    `--out`.
    """
    exports = [path for path in Path().glob(f"bft-{glob.escape(name)}-*") if (path / CHECKSUMS).is_file()]
    return sorted(str(path) for path in (*exports, *Path().glob(f"*-{glob.escape(name)}.html")))


def size_text(num_bytes: int) -> str:
    """`1.2 GB`, `34.5 MB`, `12 kB`; "" for 0."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{-(-num_bytes // 1000)} kB" if num_bytes else ""
