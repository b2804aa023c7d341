"""A causal language model and its tokenizer, from a folder, a GGUF file, an object store, the hub or a package; with
LoRA where asked.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.config import LoraConfig, ModelConfig
from bft_ray.errors import BadInput
from bft_ray.model.fitting import check_layers
from bft_ray.model.gguf import converted, entry_name, is_gguf
from bft_ray.model.host_memory import bound_shape_caches
from bft_ray.model.lora import add_lora, to_dtype
from bft_ray.model.named import BUNDLED, MODELS, find_packaged, starter_folder
from bft_ray.model.noise import keep, silence
from bft_ray.model.quantized import keep_layout, loading, require_bitsandbytes, require_plain
from bft_ray.model.safe import check_adapter, indexed_files, read_adapter_config
from bft_ray.model.unreadable import reading, unreadable, unreadable_model
from bft_ray.places.addresses import redact
from bft_ray.places.remote import is_remote, local_copy
from bft_ray.places.stores import why_not
from bft_ray.waits import waiting

if TYPE_CHECKING:
    import torch


def resolve_model(path: str, field: str = "model.path") -> str:
    """A bundled model (`starter`), one of a package (`smollm2`) or a GGUF file -> the folder with its safetensors; anything
    else as it is.

    Raises:
        BadInput: the package is not installed, or the file cannot be converted.
    """
    if path in BUNDLED:
        return starter_folder(path)
    if path in MODELS:
        return str(converted(find_packaged(path, MODELS[path], field), field))
    return str(converted(Path(path), field)) if is_gguf(path) and not is_remote(path) else path


def adapter_of(config: ModelConfig) -> tuple[str, str | None]:
    """(base model, adapter folder or None): `path` may itself be an adapter folder that names its base.

    A model in an object store becomes a folder of this machine; it is fetched if it is not here yet.

    Raises:
        BadInput: a URI that cannot be read.
    """
    named, adapter = _names_of(config)
    return _here(named, "model.path"), adapter and _here(adapter, "model.adapter")


def _names_of(config: ModelConfig) -> tuple[str, str | None]:
    """As `adapter_of`; of the base its name, which means the same on every machine: URI, hub id or folder."""
    path = _here(config.path, "model.path")
    described = Path(path) / "adapter_config.json"
    if config.adapter is None and described.is_file():
        return _portable(read_adapter_config(Path(path), "model.path")["base_model_name_or_path"]), path
    return config.path, config.adapter


def _portable(base: str) -> str:
    """The short name of a packaged model, where an adapter names the folder that it was converted to elsewhere."""
    folder = Path(base)
    if not folder.is_dir():
        for name, model in MODELS.items():
            if folder.name == entry_name(model.sha256):
                return name
    return base


def _here(path: str, field: str) -> str:
    """A URI, of a folder or a GGUF file, as a folder of this machine; anything else as `resolve_model` has it."""
    if not is_remote(path):
        return resolve_model(path, field)
    try:
        copy = local_copy(path)
    except (OSError, ValueError) as error:  # pyarrow raises a different type for each store
        rule, remedy = why_not(error, path)
        raise BadInput(field, redact(path), rule, remedy) from None
    return str(converted(copy / path.rsplit("/", 1)[-1], field)) if is_gguf(path) else str(copy)


@waiting("loading the tokenizer")
def load_tokenizer(config: ModelConfig) -> Any:
    """The fast tokenizer of the model, with a pad token (the end-of-text token where it has none of its own).

    Raises:
        BadInput: no tokenizer can be read from `model.path`, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    base, adapter = adapter_of(config)
    source = adapter if adapter and (Path(adapter) / "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source,
            revision=config.revision if source == base else None,
            trust_remote_code=config.trust_remote_code,
        )
    except Exception as error:  # tokenizers raises bare ones
        raise unreadable("model.path", config.path, source, "tokenizer", error) from None
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "model.path", config.path, "a model whose tokenizer has an end-of-text token", "Set its eos_token."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(config: ModelConfig, lora: LoraConfig | None = None, seed: int = 0) -> torch.nn.Module:
    """The model in `config.dtype`, key-value cache off, ready to train.

    With `lora` only the adapters require gradients. An adapter folder (as `path` or `adapter`) is attached to its
    base and trainable. Under ZeRO-3 the caller keeps a `HfDeepSpeedConfig` alive, and the weights load partitioned.

    Raises:
        BadInput: weights that cannot be read or that lack some, no safetensors, or a LoRA target that matches nothing.
    """
    return attach(load_base(config), config, lora, seed)


@waiting("loading the model")
def load_base(config: ModelConfig) -> torch.nn.Module:
    """The model without any adapter; see `load_model`.

    On CPU, weights that are stored in `config.dtype` stay mapped from their file: processes of one machine share
    those that nobody writes to. With `config.quantization` each process has its own 4-bit weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    bound_shape_caches()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    base, _ = adapter_of(config)
    indexed_files(Path(base), "model.path")  # refuses those that list pickles
    source: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    require_bitsandbytes(config)
    with reading(partial(unreadable_model, config, base)):
        described = AutoConfig.from_pretrained(base, **source)
        require_plain(described, config)
        noise = silence(described)
        found: Any = AutoModelForCausalLM.from_pretrained(
            base,
            config=described,
            output_loading_info=True,
            dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[config.dtype],
            attn_implementation=config.attention,
            use_safetensors=True,
            **source,
            **loading(config, described),
        )
    model, loaded = found
    if missing := sorted(loaded["missing_keys"]):
        kind, more = type(model).__name__, f" and {len(missing) - 1} more" * (len(missing) > 1)
        rule = f"a model with all weights of a causal language model: {missing[0]}{more} of {kind} would be random"
        raise BadInput("model.path", config.path, rule, "Use a model that was saved with its language-model head.")
    check_layers(sorted(loaded["unexpected_keys"]), model, "model.path", config.path)
    name = _names_of(config)[0]
    if is_remote(name):
        model.name_or_path = name  # peft writes it into adapters, and a copy's path means nothing elsewhere
    keep_layout(model)
    keep(model, noise)
    model.config.use_cache = False  # with a cache, packed neighbours leak into each other
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def attach(model: torch.nn.Module, config: ModelConfig, lora: LoraConfig | None, seed: int) -> torch.nn.Module:
    """A base model with the adapter that `config` names, or a new one; itself where there is to be none."""
    _, adapter = adapter_of(config)
    if adapter:
        return _attach_adapter(model, adapter)
    return add_lora(model, lora, seed) if lora else model


def _attach_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    from bft_ray.model.lora_linear import join_adapters

    check_adapter(Path(adapter), "model.adapter")
    dtype = model.dtype
    with (
        reading(partial(unreadable, "model.adapter", adapter, adapter, "adapter")),
        warnings.catch_warnings(action="ignore", category=FutureWarning),  # peft's, of an old name in transformers
    ):
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True, autocast_adapter_dtype=False)
    to_dtype(model, dtype)
    join_adapters(model)
    return model
