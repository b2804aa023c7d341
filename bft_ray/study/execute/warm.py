"""What stays loaded from trial to trial in one process: tokenizer, tokenised data, prepared tasks, base model."""

from __future__ import annotations

import copy
import gc
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from bft_ray.config import Config, ModelConfig
from bft_ray.config.base import Section, inputs_of
from bft_ray.config.tasks import HarnessTask
from bft_ray.data.dataset import prepare
from bft_ray.data.tables import resolve_path
from bft_ray.data.tokenise import TOKENISING
from bft_ray.evaluate.engine.request import Context, Prepared
from bft_ray.evaluate.run import prepare_all
from bft_ray.model.causal_lm import adapter_of, attach, load_base, load_tokenizer, resolve_model
from bft_ray.model.ends import end_tokens
from bft_ray.model.layouts import share_layouts
from bft_ray.model.lora import remove_adapters
from bft_ray.model.start_logps import StartLogps
from bft_ray.train.engine import Engine
from bft_ray.train.loop import Data
from bft_ray.train.settings import is_zero3
from bft_ray.train.start import start_logps

T = TypeVar("T")

_MODELS = 1  # kept: trials of a study share one, and two large ones may not fit
_OTHERS = 8  # kept of everything else


@dataclass(frozen=True)
class Tasks:
    """Prepared sets, by name: what is measured on a model."""

    prepared: dict[str, Prepared | HarnessTask]
    context: Context
    eos_ids: list[int]


class Warm:
    """Loads what a trial needs, or takes it from memory where an earlier trial needed the same.

    "The same" means: equal settings, and files of the same name, size and time of change. For a large model, hashing the
    contents would take longer than a trial.

    Frozen base weights are shared. All trials of a process use them: each attaches its adapter, and removes it again. On
    CPU all processes of a machine share them too, mapped from the model's file (if the file holds them in `model.dtype`;
    otherwise each process has a converted copy). On GPUs each process has its own. A trial that trains all weights gets a
    copy.

    Args:
        device: where models are kept and trained; None: the GPU, or else the CPU.
    """

    def __init__(self, device: torch.device | None = None):
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._models: _Kept[Any] = _Kept(_MODELS)
        self._tokenizers: _Kept[Any] = _Kept(_OTHERS)
        self._data: _Kept[Data] = _Kept(_OTHERS)
        self._tasks: _Kept[Tasks] = _Kept(_OTHERS)
        self._starts: _Kept[StartLogps] = _Kept(_OTHERS)

    def forget(self) -> None:
        """Drop everything that is loaded: to be called after an error that may have damaged it."""
        for kept in (self._models, self._tokenizers, self._data, self._tasks, self._starts):
            kept.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def tokenizer(self, config: ModelConfig) -> Any:
        """The tokenizer; see `load_tokenizer`."""
        return self._tokenizers.get(_tokenizer_key(config), lambda: load_tokenizer(config))

    def data(self, config: Config) -> Data:
        """The tokenised training data. (Validation is one of the tasks.)"""
        key = _data_key(config)

        def make() -> Data:
            tokenizer = self.tokenizer(config.model)
            return Data(prepare(config.data.train, tokenizer, config.data), None, tokenizer.pad_token_id)

        return self._data.get(key, make)

    def with_start(self, config: Config, engine: Engine, data: Data) -> Data:
        """`data` with its log-probabilities under the starting weights, where the loss reads them; see `start_logps`.

        Args:
            engine: before the first step, and before a state is loaded.
        """
        if not config.loss.reads_prior:
            return data
        weights = [name for name in adapter_of(config.model) if name]
        key = _key(_data_key(config), config.model.model_dump(), _stamps(weights))
        start = self._starts.get(key, lambda: start_logps(engine, config, data.train, data.pad_id)[0])
        return replace(data, start=start)

    def tasks(self, config: Config) -> Tasks:
        """Validation and the tasks of the config, read, checked and tokenised; see `prepare_all`."""
        asked = config.model_dump(
            include={"seed": True, "data": {"validation"}, "evaluation": {"tasks", "batch_tokens"}}
        )
        key = _key(
            _tokenizer_key(config.model),
            _tokenising(config),
            asked,
            _stamps(_files_in([*config.data.validation, *config.evaluation.tasks])),
        )

        def make() -> Tasks:
            tokenizer = self.tokenizer(config.model)
            context = Context(tokenizer, config.data, config.evaluation.batch_tokens, config.seed)
            return Tasks(prepare_all(config, context), context, end_tokens(tokenizer, config.data))

        return self._tasks.get(key, make)

    @contextmanager
    def trained(self, config: Config) -> Iterator[torch.nn.Module]:
        """The model to train, as from `load_model`, while the context lasts. Under ZeRO-3 it is a copy on the host, of which
        the engine keeps this rank's part.

        Raises:
            BadInput: see `load_model`.
        """
        with self._model(config, is_copy=is_zero3(config)) as model:
            yield model

    @contextmanager
    def measured(self, config: Config) -> Iterator[torch.nn.Module]:
        """Under ZeRO-3: a whole model on the device, for the trained weights to be filled in, while the context lasts."""
        with self._model(config, is_copy=self.device.type != "cpu") as model:
            yield model.to(self.device)

    @contextmanager
    def _model(self, config: Config, is_copy: bool) -> Iterator[torch.nn.Module]:
        """The base model with its adapter; the base is that of all trials, or a copy."""
        base, adapter = adapter_of(config.model)
        settings = config.model.model_dump(exclude={"path", "adapter"})
        # ZeRO-3 is for models that a GPU may have no room for
        device = torch.device("cpu") if is_zero3(config) else self.device
        key = _key(base, settings, str(device), _stamps([base]))
        kept = self._models.get(key, lambda: load_base(config.model).to(device))
        if is_copy or (adapter is None and config.lora is None):
            copied = copy.deepcopy(kept)
            share_layouts(kept, copied)
            yield attach(copied, config.model, config.lora, config.seed)
            return
        self._models.drop(key)  # put back below, only if the adapter could be removed
        is_trainable = {name: parameter.requires_grad for name, parameter in kept.named_parameters()}
        model = attach(kept, config.model, config.lora, config.seed)
        try:
            yield model
        finally:
            kept = remove_adapters(model)
            for name, parameter in kept.named_parameters():
                parameter.requires_grad_(is_trainable[name])
            self._models.get(key, lambda: kept)


class _Kept(Generic[T]):
    """The `size` objects that were used last, by their keys."""

    def __init__(self, size: int):
        self._size = size
        self._things: OrderedDict[str, T] = OrderedDict()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The object of this key; if it is not here, make it, after the oldest ones are dropped."""
        if key not in self._things:
            while len(self._things) >= self._size:
                self._things.popitem(last=False)
            self._things[key] = make()
        self._things.move_to_end(key)
        return self._things[key]

    def drop(self, key: str) -> None:
        """Drop the object of this key."""
        del self._things[key]

    def clear(self) -> None:
        """Drop all objects."""
        self._things.clear()


# --- keys -------------------------------------------------------------------------------------------------


def _tokenizer_key(config: ModelConfig) -> str:
    return _key(
        adapter_of(config), config.revision, config.trust_remote_code, _stamps(filter(None, adapter_of(config)))
    )


def _data_key(config: Config) -> str:
    sources = [source.model_dump(exclude={"ratio"}) for source in config.data.train]
    return _key(_tokenizer_key(config.model), _tokenising(config), sources, _stamps(_files_in(config.data.train)))


def _tokenising(config: Config) -> dict[str, Any]:
    return config.data.model_dump(include={*TOKENISING, "cache_dir", "keep_tokens"})


def _files_in(sections: Iterable[Section]) -> Iterator[str]:
    """The files, folders and names on the hub that sources and tasks name."""
    for section in sections:
        yield from (value for name in inputs_of(section) if (value := getattr(section, name)))


def _stamps(names: Iterable[str]) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of the files of these names, and of those within such folders."""
    found = []
    for name in names:
        path = Path(resolve_path(resolve_model(name))).expanduser()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                stat = file.stat()
                found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return found


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True)
