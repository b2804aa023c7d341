"""Whether stored weights fit the model that the settings beside them make.

What a model has no place for, transformers and peft leave out, with a warning at most: the model that is trained or measured
is then another one.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bft_ray.errors import BadInput, first_line
from bft_ray.model.halves import halves
from bft_ray.model.safe import CONFIG, WEIGHTS

_LORA = ".lora_"  # in the names of an adapter's own weights; beside them may lie whole layers, such as an embedding that grew
_ADAPTER_REMEDY = "Restore the adapter_config.json that was written with the weights, or export the adapter again."


def check_layers(names: Iterable[str], model: Any, field: str, named: str) -> None:
    """Refuse weights of layers that the model does not have.

    Args:
        names: of the stored weights.
        model: its modules; they may be on the meta device.
        field, named: for the error.

    Raises:
        BadInput: there is such a layer, and the kind of model does not leave it out on purpose.
    """
    import torch

    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    left_out = [re.compile(each) for each in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()]
    for name in names:
        if any(each.search(name) for each in left_out):
            continue
        for found in re.finditer(r"\.(\d+)\.", name):
            place = name[: found.start()]
            length = _length(lists, place)
            if length is not None and int(found[1]) >= length:
                rule = f"a model with all layers of its weights: config.json makes {length} in {place}, and {name} is stored"
                raise BadInput(field, named, rule, "Restore the number of layers in config.json.")


def _length(lists: Mapping[str, int], place: str) -> int | None:
    """Of the list at a place; a prefix may be missing on one side, as with weights of the bare model."""
    for name, length in lists.items():
        if name == place or name.endswith(f".{place}") or place.endswith(f".{name}"):
            return length
    return None


def stored_names(folder: Path) -> list[str]:
    """Names of the tensors of all safetensors files of a folder."""
    from safetensors import safe_open

    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names += opened.keys()
    return names


def check_adapter_weights(model: Any, folder: Path, field: str) -> None:
    """Refuse an adapter whose settings make other weights than are stored beside them.

    Args:
        model: the base model, on the meta device; adapters are added to it.

    Raises:
        BadInput: settings that peft cannot read or apply, a weight of another shape, or one that has no place; an adapter on the
            head that is more than LoRA's product.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors import safe_open

    file = folder / CONFIG
    try:
        with warnings.catch_warnings(action="ignore"):
            settings = LoraConfig.from_pretrained(str(folder))
            settings.init_lora_weights = False  # some begin with a decomposition, and the meta device has no numbers
            adapted = get_peft_model(model, settings, low_cpu_mem_usage=True)  # type: ignore[arg-type]
            made = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except RuntimeError:  # what the meta device cannot do: then only loading shows it
        return
    except Exception as error:
        rule = f"settings that peft can apply to the base model: {first_line(error)}"
        raise BadInput(field, file, rule, _ADAPTER_REMEDY) from None
    halves(adapted).adapter()
    with safe_open(folder / WEIGHTS, "pt") as opened:
        stored = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys() if _LORA in name}  # noqa: SIM118
    shapes = {name: list(tensor.shape) for name, tensor in made.items() if _LORA in name}
    for name, shape in stored.items():
        if shapes.get(name) != shape:
            makes = f"{shapes[name]}" if name in shapes else "none"
            rule = f"the settings of the weights beside it: {name} is stored with shape {shape}, and they make {makes}"
            raise BadInput(field, file, rule, _ADAPTER_REMEDY)
    if lacking := sorted(shapes.keys() - stored.keys()):
        rule = f"the settings of the weights beside it: they make {lacking[0]}, which is not stored"
        raise BadInput(field, file, rule, _ADAPTER_REMEDY)


def settings_hash(folder: Path) -> str:
    """Of what an adapter's settings make of its weights: all of them but the place of the base model, which may move. "" where there
    are none."""
    try:
        found = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return ""
    for name in ("base_model_name_or_path", "revision"):
        found.pop(name, None)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
