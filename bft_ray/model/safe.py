"""What is read of a model and an adapter: safetensors and LoRA alone, so that reading runs no code.

transformers takes a file by the name that an index gives it, also a pickle; peft takes a pickle where there is no safetensors
file. torch then refuses what is not a tensor, with a page of advice on how to switch that off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, first_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def indexed_files(folder: Path, field: str) -> set[Path]:
    """The files of weights that the indices in a folder list.

    Raises:
        BadInput: an index that is damaged, or that lists another file than safetensors.
    """
    found: set[Path] = set()
    for index in sorted(folder.glob("*.safetensors.index.json")):
        rule = "an index of safetensors files: JSON with a `weight_map`"
        try:
            names = {str(name) for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BadInput(field, index, rule, "It is damaged: copy or download it again.") from None
        if other := sorted(name for name in names if not name.endswith(".safetensors")):
            raise BadInput(field, index, f"{rule}; it lists {other[0]}", "Take the model from whom you trust.")
        found |= {folder / name for name in names}
    return found


def whole_files(folder: Path, field: str) -> list[Path]:
    """The files of weights in a folder, each as long as its header says; no tensor is read.

    Raises:
        BadInput: there is none, or one is missing, cut off or damaged.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted({*folder.glob("*.safetensors"), *indexed_files(folder, field)})
    if not files:
        raise BadInput(field, str(folder), *no_safetensors(folder))
    for file in files:
        try:
            with safe_open(file, "np"):
                pass
        except (SafetensorError, OSError) as error:
            raise damaged(file, field, error) from None
    return files


def damaged(file: Path, field: str, error: Exception) -> BadInput:
    """What safetensors says of a file, as bad input."""
    rule = f"a whole safetensors file: {first_line(error)}"
    return BadInput(field, str(file), rule, "It is missing, cut off or damaged: copy or download it again.")


def read_adapter_config(folder: Path, field: str) -> dict[str, Any]:
    """`adapter_config.json` of a folder.

    Raises:
        BadInput: there is none, it is no JSON object, or it names no base model.
    """
    rule = "the adapter_config.json that peft writes, with `base_model_name_or_path`"
    try:
        found = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        raise BadInput(field, folder / CONFIG, rule, "It is damaged or not there: copy the adapter again.") from None
    if not isinstance(found, dict) or not isinstance(found.get("base_model_name_or_path"), str):
        raise BadInput(field, folder / CONFIG, rule, "Name there the model that the adapter was trained on.")
    return found


def check_adapter(folder: Path, field: str) -> None:
    """Refuse an adapter that is not LoRA in safetensors, before peft reads it.

    Raises:
        BadInput: weights as a pickle or none, or another kind of adapter.
    """
    if not (folder / WEIGHTS).is_file():
        raise BadInput(field, folder, *adapter_without_safetensors(folder))
    config = read_adapter_config(folder, field)
    if config.get("peft_type") != "LORA":
        rule = f"a LoRA adapter, but its adapter_config.json says peft_type {config.get('peft_type')!r:.40}"
        raise BadInput(field, folder, rule, "Merge it into its base model where it was made, and give that.")
    if config.get("ensure_weight_tying") and config.get("modules_to_save"):
        rule = "an adapter without ensure_weight_tying beside modules_to_save: a weight of two names is not exported"
        raise BadInput(field, folder, rule, "Merge it into its base model where it was made, and give that.")


def adapter_without_safetensors(folder: Path) -> tuple[str, str]:
    """Rule and remedy for the folder of an adapter without `adapter_model.safetensors`."""
    rule = "a folder with adapter_config.json and adapter_model.safetensors"
    old = folder / "adapter_model.bin"
    if not old.is_file():
        return rule, "Copy the adapter again."
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"save_file({{k: v.contiguous() for k, v in torch.load('{old}', weights_only=True).items()}}, "
        f"'{old.with_suffix('.safetensors')}')"
    )
    return f"{rule}: this one holds *.bin, which may run code when it is read", f'Convert it: python -c "{code}"'


def no_safetensors(folder: Path) -> tuple[str, str]:
    """Rule and remedy for a folder without `*.safetensors`."""
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        return "a folder with *.safetensors weights: this one holds GGUF", f"Give the file: {ggufs[0]}."
    if not list(folder.glob("*.bin")):
        return "a folder with *.safetensors weights: there are none in it", "Download or copy the weights again."
    code = (
        f"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('{folder}')"
    )
    remedy = f'Convert them, if you trust their source: python -c "{code}"'
    return "a folder with *.safetensors weights: this one holds *.bin, which runs code when it is read", remedy
