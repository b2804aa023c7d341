"""A GGUF file as a folder of safetensors: converted once a machine, found again by the content of the file.

The weights are unpacked to plain matrices. They are stored in the narrowest dtype that keeps what the file says:

    a matrix in F32, or both F16 and BF16    float32
    a matrix in F16                          float16
    else (4 to 8 bits a weight, BF16)        bfloat16, whose rounding is far below that of such a file

The folder is written beside its final place and renamed, and one process at a time converts. `sha256.json` in it holds
checksums, which are compared once a process: a flipped bit would load without a word.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput
from bft_ray.places.cache import cache_folder, sha256_of
from bft_ray.places.modes import settle
from bft_ray.places.remote import locked
from bft_ray.places.scratch import scratch

SUFFIX = ".gguf"
_VERSION = 1  # raise it when the same file would give another folder
_CHECKSUMS = "sha256.json"
log = logging.getLogger(__name__)


def is_gguf(path: str) -> bool:
    """Whether the path names a GGUF file rather than a folder."""
    return path.lower().endswith(SUFFIX)


def entry_name(sha256: str) -> str:
    """Name of the folder that a file of this hash is converted to."""
    return f"{sha256[:32]}-{_VERSION}"


def is_converted(folder: Path) -> bool:
    """Whether a folder is one that a GGUF file was converted to, in whichever cache: that of another user or machine too."""
    return folder.parent.name == "gguf" and re.fullmatch(rf"[0-9a-f]{{32}}-{_VERSION}", folder.name) is not None


def converted(file: Path, field: str = "model.path", cache: Path | None = None) -> Path:
    """The folder with the model and the tokenizer of a GGUF file, that transformers loads.

    Args:
        cache: where such folders lie; None: ~/.cache/bft_ray/gguf.

    Raises:
        BadInput: no such file, the package gguf is missing, a file or architecture that transformers cannot read, or a
            cache that cannot be written.
    """
    if not file.is_file():
        raise BadInput(field, str(file), "a GGUF file that exists", "Check the path; on a cluster, on every node.")
    cache = cache or cache_folder("gguf")
    final = cache / entry_name(sha256_of(file))
    if _is_whole(final):
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(cache):  # the others on this machine wait for the one that converts
            if not _is_whole(final):
                _make(file, final, field)
    except OSError as error:
        remedy = f"{error.strerror or error}. It takes up to four bytes a weight."
        raise BadInput(field, str(file), f"a GGUF file that can be converted into {cache}", remedy) from None
    if not _is_whole(final):
        raise BadInput(field, str(final), "a folder that gives back what was written to it")
    return final


def _make(file: Path, final: Path, field: str) -> None:
    with scratch("gguf", final.parent) as temporary:
        _convert(file, temporary, field)
        checksums = {made.name: sha256_of(made) for made in sorted(temporary.iterdir())}
        (temporary / _CHECKSUMS).write_text(json.dumps(checksums))
        settle(temporary)
        if final.exists():
            log.warning("The converted model in %s is damaged: converting %s again.", final, file.name)
            shutil.rmtree(final, ignore_errors=True)
        with contextlib.suppress(OSError):  # where nothing can be locked, another process was quicker
            os.rename(temporary, final)


def _is_whole(folder: Path) -> bool:
    try:
        checksums = json.loads((folder / _CHECKSUMS).read_text())
        return all(sha256_of(folder / name) == checksum for name, checksum in checksums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(file: Path, folder: Path, field: str) -> None:
    """Weights, configuration, generation settings and tokenizer of `file` into `folder`."""
    if find_spec("gguf") is None:
        rule = "a folder or hub id where the package gguf, which reads such files, is not installed"
        raise BadInput(field, str(file), rule, "Install it on every node: pip install gguf.")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    log.warning("Converting %s to safetensors, once on this machine.", file.name)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    dense: dict[str, Any] = {"quantization_config": transformers.GgufConfig(dequantize=True)} if _keeps_packed() else {}
    try:
        where: dict[str, Any] = {
            "pretrained_model_name_or_path": str(file.parent),
            "gguf_file": file.name,
            "trust_remote_code": False,
        }
        tokenizer = AutoTokenizer.from_pretrained(**where)
        packed: Any = AutoModelForCausalLM.from_pretrained(**where, **dense, dtype=_dtype_of(file))
    except Exception as error:  # the readers raise what they happen to meet in a damaged file
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = (
            "It is damaged, or of an architecture that transformers does not read from GGUF: give a safetensors folder."
        )
        raise BadInput(field, str(file), f"a GGUF file that transformers can read: {reason}", remedy) from None
    whole = _without_packing(packed)
    whole.should_save_on_this_rank = lambda is_main_process: True  # within a process group, rank 0 alone would save
    whole.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _keeps_packed() -> bool:
    """Whether this transformers keeps the weights in GGUF's blocks by default."""
    import transformers

    return hasattr(transformers, "GgufConfig")


def _without_packing(packed: Any) -> Any:
    """The same model, that does not remember GGUF: transformers refuses to save one that does."""
    import torch
    from transformers import AutoModelForCausalLM

    config = type(packed.config).from_dict(
        {name: value for name, value in packed.config.to_dict().items() if name != "quantization_config"}
    )
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=packed.dtype)
    plain.load_state_dict(packed.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = packed.generation_config
    return plain


def _dtype_of(file: Path) -> Any:
    """See the top of this file."""
    import torch
    from gguf import GGUFReader

    kinds = {tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1}
    if "F32" in kinds or {"F16", "BF16"} <= kinds:
        return torch.float32
    return torch.float16 if "F16" in kinds else torch.bfloat16
