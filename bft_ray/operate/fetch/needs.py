"""What configs need from the hub: models, text encoders, datasets, and data of the harness's tasks. Nothing is asked of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bft_ray.config import Config, load_config
from bft_ray.config.base import Section, inputs_of
from bft_ray.config.load import find_config, read_yaml, recipes
from bft_ray.config.tasks import HarnessTask
from bft_ray.data.tables import names_a_hub_dataset
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import adapter_of
from bft_ray.model.gguf import is_gguf
from bft_ray.model.named import NAMES
from bft_ray.model.unreadable import check_place
from bft_ray.places.remote import is_remote
from bft_ray.space.assign import config_of, with_overrides
from bft_ray.space.grid import representatives
from bft_ray.space.load import find_space, load_study, spaces

_COMBINATIONS = 2000  # looked at one by one; of a larger space each value at least once
_READ = ("model.", "data.", "evaluation.")  # fields of a config that may name something of the hub begin so


@dataclass(frozen=True)
class Need:
    """One thing of the hub.

    Args:
        name: its id there; of tasks, their names in the harness, separated by commas.
        field: of the config, the first that names it.
        revision: commit, tag or branch; None: the main branch.
        part: configuration of a dataset; folder of further task files, for tasks.
        splits: of a dataset; "" stands for the only one.
        runs_code: whether Python files of a model are needed too.
    """

    kind: Literal["model", "encoder", "dataset", "tasks"]
    name: str
    field: str
    revision: str | None = None
    part: str | None = None
    splits: tuple[str, ...] = ()
    runs_code: bool = False

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        inner = [self.part] if self.part and self.kind == "dataset" else []
        inner += [split for split in self.splits if split]
        return f"{self.kind:<9} {self.name}{at}" + (f" ({', '.join(inner)})" if inner else "")


def needs_of(configs: Iterable[Config]) -> list[Need]:
    """Everything that any of the configs names and that is of the hub, each once.

    Raises:
        BadInput: a folder of a model that is not there.
    """
    found: dict[tuple, Need] = {}
    for config in configs:
        for need in _of_config(config):
            key = (need.kind, need.name, need.revision, need.part)
            had = found.get(key, need)
            splits = tuple(dict.fromkeys((*had.splits, *need.splits)))
            found[key] = replace(had, splits=splits, runs_code=had.runs_code or need.runs_code)
    return list(found.values())


def configs_of(sources: Sequence[str], overrides: Sequence[str] = ()) -> list[Config]:
    """The configs of files and names, whether of configs or of search spaces; a name that is both means both.

    Of a space: its config under every value of a field that may name something of the hub, also with the splits of
    confirmation and test.

    Args:
        overrides: fields, set in all of them.

    Raises:
        BadInput, BadConfig: see `load_config` and `load_study`.
    """
    return [config for source in sources for config in _of_source(source, overrides)]


def _of_source(source: str, overrides: Sequence[str]) -> Iterator[Config]:
    name = source.removesuffix(".yaml")
    if Path(source).is_file():
        is_space = "parameters" in read_yaml(Path(source))
        is_config = not is_space
    else:
        is_space, is_config = name in spaces(), name in recipes()
    if not is_space and not is_config:
        try:
            find_config(source)
        except BadInput:
            find_space(source)  # of the two messages the one that names search spaces
    if is_config:
        yield load_config(source, list(overrides), for_training=False)
    if is_space:
        yield from _of_space(source, overrides)


def _of_space(source: str, overrides: Sequence[str]) -> Iterator[Config]:
    space, base = load_study(source, None, overrides)
    seen = set()
    for assignment in representatives(space, _COMBINATIONS):  # each name that a space lists is in one of these
        key = repr({name: value for name, value in assignment.items() if name.startswith(_READ)})
        if key in seen:
            continue
        seen.add(key)
        config = config_of(base, space, assignment)
        yield config
        if space.confirmation:
            yield with_overrides(config, space.confirmation.overrides, "confirmation.overrides")
            yield with_overrides(config, space.confirmation.test, "confirmation.test")


def _of_config(config: Config) -> Iterator[Need]:
    check_place(config.model.path, "model.path")
    base, _ = adapter_of(config.model)
    if is_hub_model(base):
        yield Need("model", base, "model.path", config.model.revision, runs_code=config.model.trust_remote_code)
    for use in ("train", "validation"):
        for index, source in enumerate(getattr(config.data, use)):
            yield from _datasets(source, f"data.{use}.{index}")
    for task in config.evaluation.tasks:
        field = f"evaluation.tasks.{task.name}"
        if isinstance(task, HarnessTask):
            yield Need("tasks", ",".join(task.tasks), field, part=task.include_path)
        else:
            yield from _datasets(task, field)


def _datasets(section: Section, field: str) -> Iterator[Need]:
    """What a source or task names: datasets, and a text encoder under the field of this name."""
    for name in inputs_of(section):
        value = getattr(section, name)
        if not value:
            continue
        if name == "encoder":
            if is_hub_model(value):
                yield Need("encoder", value, f"{field}.encoder")
        elif names_a_hub_dataset(value) and not Path(value).expanduser().exists():
            own = name == "path"  # split, configuration and revision are those of the rows
            revision, part, split = (
                getattr(section, each, None) if own else None for each in ("revision", "config_name", "split")
            )
            yield Need("dataset", value, field, revision, part, (split or "",))


def is_hub_model(path: str) -> bool:
    """Whether a model or encoder is named by its id on the hub: neither by a short name, nor a place, nor a file."""
    is_elsewhere = path in NAMES or is_remote(path) or is_gguf(path) or Path(path).expanduser().exists()
    return not is_elsewhere and names_a_hub_dataset(path)
