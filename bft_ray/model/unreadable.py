"""Why a model, tokenizer or encoder could not be read, and advice: the messages of the libraries are hard to understand."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from bft_ray.config import ModelConfig
from bft_ray.errors import BadInput, first_line
from bft_ray.model.checksums import changed
from bft_ray.model.named import NAMES
from bft_ray.model.safe import no_safetensors
from bft_ray.places.remote import is_remote

_CONFIG, _LONGEST = "config.json", 160  # characters of a message
_RESTORE = f"Restore {_CONFIG} from where the model comes from."

#: part of the message of transformers on an attention that it does not have
_OF_ATTENTION = re.compile(r"(?i)flash[ _]?attention|attention implementation|scaled_dot_product_attention")

#: words of an error -> packages that were missed, as pip names them
_PACKAGES = {
    "sentencepiece": "sentencepiece",
    "sacremoses": "sacremoses",
    "tiktoken": "tiktoken",
    "protobuf": "protobuf",
    "jieba": "jieba",
    "mistral_common": "mistral-common",
    "mistral-common": "mistral-common",
    "causal_conv1d": "causal-conv1d",
    "mamba_ssm": "mamba-ssm",
    "flash_attn": "flash-attn",
    "flash attention": "flash-attn",
}


@contextlib.contextmanager
def reading(tell: Callable[[Exception], Exception]) -> Iterator[None]:
    """Whatever a library raises here over a user's files is told as an error of these. A config.json can hold anything, and
    the code of a model fails over it with errors of any type; not so where memory is short, which needs another remedy.

    Args:
        tell: the error to raise in place of one.
    """
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        raise tell(error) from None


def unreadable(field: str, named: str, source: str, what: str, error: BaseException) -> BadInput:
    """The error to raise instead.

    Args:
        field: dotted name of the config field.
        named: its value.
        source: folder or hub id that was read for it.
        what: `model`, `adapter`, `tokenizer` or `encoder`.
        error: what reading raised.
    """
    logging.getLogger(__name__).debug("reading the %s failed", what, exc_info=error)
    rule, remedy = _cause(source, what, error)
    if source != named and (Path(named) / "adapter_config.json").is_file():
        rule = f"an adapter whose base model {source} can be read: {rule}"
        remedy = f"{remedy} Or name the base by model.path and the adapter by model.adapter."
    return BadInput(field, named, rule, remedy)


def unreadable_model(config: ModelConfig, source: str, error: BaseException) -> BadInput:
    """As `unreadable`, of the model that a config names: its attention may be what cannot be had."""
    if not _OF_ATTENTION.search(str(error)):
        return unreadable("model.path", config.path, source, "model", error)
    rule = f"an attention that this model and machine have: {first_line(error)}"
    is_flash = config.attention.startswith("flash")
    install = f", or install FlashAttention {config.attention[-1]} on every node (it needs a GPU)" if is_flash else ""
    other = "eager" if config.attention == "sdpa" else "sdpa"
    return BadInput("model.attention", config.attention, rule, f"Set model.attention={other}{install}.")


def unbuildable(config: ModelConfig, source: str, error: BaseException) -> BadInput:
    """As `unreadable_model`, of a model that could not be built from its settings: weights play no part."""
    is_other = _OF_ATTENTION.search(str(error)) or _missing_package(source, "model", str(error), error)
    if is_other or not (Path(source) / _CONFIG).is_file():
        return unreadable_model(config, source, error)
    logging.getLogger(__name__).debug("building the model failed", exc_info=error)
    unknown = f"it knows no {error}" if isinstance(error, KeyError) else first_line(error)
    rule = f"a model that transformers can build from its {_CONFIG}: {unknown}"
    return BadInput("model.path", config.path, rule, _RESTORE)


def check_place(path: str, field: str) -> None:
    """BadInput where a folder or GGUF file that names a model is not there, or holds none; a hub id is not looked up."""
    if is_remote(path) or path in NAMES or (Path(path) / "adapter_config.json").is_file():
        return
    if path.lower().endswith(".gguf"):
        if not Path(path).is_file():
            raise BadInput(field, path, "a GGUF file that exists", "Check the path.")
    elif Path(path).is_file():
        raise BadInput(field, path, "a folder, a GGUF file or a hub id; this is another file", "Give its folder.")
    elif found := _bad_folder(path, "model"):
        raise BadInput(field, path, *found)


def _cause(source: str, what: str, error: BaseException) -> tuple[str, str]:
    text = " ".join(str(link) for link in _chain(error))
    kinds = {type(link).__name__ for link in _chain(error)}
    return (
        _changed(source, what)
        or _bad_config(source, what)
        or _bad_folder(source, what)
        or _missing_package(source, what, text, error)
        or _own_code(what, text)
        or _other_shapes(what, text)
        or (None if os.path.isdir(source) else _or_folder(source, _hub(source, what, text, kinds)))
        or (
            f"a folder or hub id with a readable {what} (safetensors): {_message(error)}",
            f"transformers does not read this {what}: check its files, or make them again with save_pretrained.",
        )
    )


def _changed(source: str, what: str) -> tuple[str, str] | None:
    """The rule and remedy for an export of ours of which a file is damaged."""
    if not os.path.isdir(source) or not (found := changed(Path(source))):
        return None
    file, rule, remedy = found
    return f"a folder with a readable {what}: {file} must be {rule}", remedy


def _bad_config(source: str, what: str) -> tuple[str, str] | None:
    """The rule and remedy for a folder whose config.json cannot be read: also reading its tokenizer fails then."""
    if what == "adapter" or not (Path(source) / _CONFIG).is_file():
        return None
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(source, trust_remote_code=False)  # None would ask, and wait
    except Exception as error:
        text = " ".join(str(link) for link in _chain(error))
        if _own_code(what, text) or _missing_package(source, "model", text, error):
            return None
        said = " ".join(str(error).split())  # of a field that does not hold, the reason is in the second line
        said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"
        return f"a {what} with a {_CONFIG} that transformers can read: {said}", _RESTORE
    return None


def _missing_package(source: str, what: str, text: str, error: BaseException) -> tuple[str, str] | None:
    package = _read_by(Path(source)) if what == "tokenizer" else None
    lowered = text.lower()
    asks = isinstance(error, ImportError) or "pip install" in lowered or "installed" in lowered
    if package is None and asks:
        package = next((name for words, name in _PACKAGES.items() if words in lowered), None)
    found = re.search(r"No module named '([\w.]+)'", text)
    if package is None and found:
        package = found[1].partition(".")[0]
    if package is None:
        return None
    rule = f"a {what} whose packages are installed: it needs {package}"
    return rule, f"Install it on every node: pip install {package}."


def _own_code(what: str, text: str) -> tuple[str, str] | None:
    if "trust_remote_code" not in text:
        return None
    rule = f"a {what} that needs no Python code of its own: this one brings some"
    if what == "encoder":
        return rule, "Take an encoder that transformers knows by itself."
    return rule, "Read that code first: it runs on every node, with your rights. Then set model.trust_remote_code=true."


def _other_shapes(what: str, text: str) -> tuple[str, str] | None:
    if "ignore_mismatched_sizes" not in text:
        return None
    rule = f"a {what} whose weights have the shapes that its config.json tells"
    return rule, "Take config.json and the weights from the same model."


def _read_by(folder: Path) -> str | None:
    """The package that reads the vocabulary in a folder, where it is not installed.

    transformers tries the packages one after the other, and names only the last one.
    """
    files = sorted({*folder.glob("*.model"), *folder.glob("*.tiktoken")})
    if not files or not folder.is_dir():
        return None
    with files[0].open("rb") as stream:  # tiktoken: lines of base64, a blank, a number; sentencepiece: protobuf
        is_tiktoken = re.match(rb"[A-Za-z0-9+/=]+ \d+\r?\n", stream.read(256)) is not None
    package = "tiktoken" if is_tiktoken else "sentencepiece"
    return package if find_spec(package) is None else None


def _bad_folder(source: str, what: str) -> tuple[str, str] | None:
    """The rule and remedy for a folder, from its files."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")) or source.count("/") > 1:
            return f"the folder of a {what} that exists", "Check the path; on a cluster, on every node."
        return None
    names = {file.name for file in folder.iterdir()}
    if not names:
        return f"a folder with a {what}: this one is empty", "Download or copy the model into it again."
    if "config.json" not in names and what not in ("tokenizer", "adapter"):
        inner = [file.parent.name for file in folder.glob("*/config.json")]
        remedy = f"Did you mean {folder / inner[0]}?" if inner else "Give the folder that save_pretrained wrote."
        return f"a folder with a {what}: there is no config.json in it", remedy
    if what == "tokenizer" and not any(name.startswith(("tokenizer", "vocab", "spiece")) for name in names):
        there = sorted(file.parent for file in folder.glob("*/tokenizer*.json"))  # `export` of a run, say
        remedy = f"Did you mean {there[0]}?" if there else "Copy the tokenizer files of the base model into it."
        return "a folder with a tokenizer: there is none in it", remedy
    if what != "tokenizer" and not any(name.endswith(".safetensors") for name in names):
        return no_safetensors(folder)
    return None


def _hub(source: str, what: str, text: str, kinds: set[str]) -> tuple[str, str] | None:
    lowered = text.lower()
    unknown = "RepositoryNotFoundError" in kinds or "not a valid model identifier" in lowered
    if "GatedRepoError" in kinds or ("gated repo" in lowered and not unknown):
        remedy = (
            f"Ask for access on https://huggingface.co/{source}, then set HF_TOKEN on every node (or: hf auth login)."
        )
        return f"a {what} that this account may read: the repository is gated", remedy
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "on", "yes", "true"}
    if offline or "OfflineModeIsEnabled" in kinds:
        remedy = (
            "Run `bft-ray fetch CONFIG` where there is a network, such as on a login node, or unset HF_HUB_OFFLINE."
        )
        return f"a {what} that is on this machine: HF_HUB_OFFLINE is set, and it is not in the cache", remedy
    if unknown:
        remedy = "Check the spelling; where it is private, set HF_TOKEN on every node (or: hf auth login)."
        return f"the hub id of a {what}: the hub knows none of this name, or does not show it without a token", remedy
    if "RevisionNotFoundError" in kinds or "not a valid git identifier" in lowered:
        return f"a {what} with this model.revision", "Use a branch, tag or commit that its page on the hub lists."
    if "HFValidationError" in kinds or "repo id must" in lowered:
        return f"a folder or the hub id of a {what}", "A hub id reads organisation/name."
    if kinds & {"LocalEntryNotFoundError", "ConnectionError", "ConnectError"} or "connect" in lowered:
        remedy = (
            "Check the network and its proxy (HTTPS_PROXY, HF_ENDPOINT), or download the model and give its folder."
        )
        return f"a {what} that can be fetched: the hub does not answer", remedy
    if "safetensors" in lowered:
        return f"a {what} with *.safetensors weights: {source} has none on the hub", "Use a revision that has them."
    return None


def _or_folder(source: str, found: tuple[str, str] | None) -> tuple[str, str] | None:
    """The hub's error for a name that may have been meant as a folder: one word, or a path whose parent folder exists."""
    parent, slash, name = source.rpartition("/")
    if found is None or (slash and not os.path.isdir(parent)):
        return found
    return found[0], f"{found[1]} If a folder was meant: there is no `{name}` in `{parent or os.getcwd()}`."


def _message(error: BaseException) -> str:
    """In one line; of a value that a config must not have, the line that says which."""
    return " ".join(str(error).split())[:160] if isinstance(error, StrictDataclassError) else first_line(error)


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it came from."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links
