"""The model card of a run: what it is, how it was made, what was measured, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bft_ray.config import Config
from bft_ray.config.metrics import format_value, is_judged
from bft_ray.model.gguf import is_gguf
from bft_ray.model.named import BUNDLED, MODELS
from bft_ray.places.addresses import redacted_yaml

_LOAD = {
    "adapter": """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")
model.generation_config = GenerationConfig.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
    "adapter of 4 bits": """import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig, GenerationConfig

# the base as it was in training; without `quantization_config` it is the plain one, and answers differ a little
packed = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.{dtype}
)
model = AutoPeftModelForCausalLM.from_pretrained("{folder}", dtype=torch.{dtype}, quantization_config=packed)
model.generation_config = GenerationConfig.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
    "model": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")""",
}
#: what a card says of a training with `model.quantization`
_ON_4_BITS = (
    "It was trained on base weights in 4 bits (NF4, QLoRA, arXiv 2305.14314), and the base was measured with these."
)
_MERGED = " The adapter is merged into the weights as they were saved, and measured so."


def model_card(
    config: Config,
    *,
    kind: str,
    folder: str,
    fingerprints: Mapping[str, str],
    before: Mapping[str, float],
    after: Mapping[str, float],
    run_id: str,
    step: int,
) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        config: the resolved config of the run.
        kind: `adapter` or `model`.
        folder: name to show in the loading example.
        fingerprints: SHA-256 of the tokenised data by use (`train`, `validation`).
        before: metrics of the base model, where they were measured.
        after: metrics of the exported model.
        run_id: MLflow run.
        step: optimizer step of the exported weights.
    """
    adapter = kind == "adapter"
    front = [
        "---",
        *_base_on_hub(config.model.path),
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: text-generation",
        f"tags: [bft, {config.loss.method}, {config.domain}{', lora' if adapter else ''}]",
        "---",
    ]
    loss = config.loss
    shown = f"`{loss.method}`" + ("" if "window" in loss.unused_fields() else f", window {loss.window}")
    own = ", ".join(f"{name} {value}" for name, value in loss.own_fields().items() if name != "window")
    own = own and f", with {own},"
    return "\n".join(
        [
            *front,
            "",
            f"# {config.name or config.domain}: {config.domain}, {shown}",
            "",
            f"A LoRA adapter for `{config.model.path}`." if adapter else f"`{config.model.path}`, fine-tuned.",
            *([_ON_4_BITS + ("" if adapter else _MERGED)] if config.model.quantization else []),
            f"Trained with `{loss.method}` of Balanced Fine-Tuning (arXiv 2511.21075){own} by bft-ray. "
            f"Weights of step {step}; MLflow run `{run_id}`.",
            "",
            "## Measured",
            "",
            *measured_table(before, after),
            "",
            "## Data",
            "",
            "| use | source | SHA-256 of the tokenised rows |",
            "|---|---|---|",
            *[
                f"| {use} | {', '.join(source.path for source in getattr(config.data, use))} | `{digest[:16]}` |"
                for use, digest in fingerprints.items()
            ],
            "",
            "## Load",
            "",
            "```python",
            _LOAD["adapter of 4 bits" if adapter and config.model.quantization else kind].format(
                folder=folder, dtype={"bf16": "bfloat16", "fp32": "float32"}[config.model.dtype]
            ),
            "```",
            "",
            "## Limits",
            "",
            "Evaluated on the sets named above alone. Not a medical device; not for clinical decisions.",
            "",
            "## Configuration",
            "",
            "```yaml",
            redacted_yaml(config).rstrip(),
            "```",
            "",
        ]
    )


def _base_on_hub(path: str) -> list[str]:
    """The line of the hub's metadata on the base model; [] where it is none of a hub: the name of a folder may be that of another
    model there.
    """
    is_here = path in BUNDLED or path in MODELS or "://" in path or is_gguf(path) or path.startswith((".", "/", "~"))
    return [] if is_here or Path(path).is_dir() else [f"base_model: {path}"]


def release_card(
    config: Config, *, name: str, evidence: Mapping[str, str], checks: Mapping[str, str], settings: Mapping[str, str]
) -> str:
    """The card of a champion that leaves the house: what was shown, and how it was checked. No path of this machine is in it.

    Args:
        config: of its training.
        name: of the registered version, such as `bft-medical_qa/3`.
        evidence: what the study found, (what -> value).
        checks: what was checked on the files beside the card.
        settings: of the training: field -> value.
    """

    def rows(head: str, values: Mapping[str, str]) -> list[str]:
        return [f"| {head} | |", "|---|---|", *(f"| {what} | {value} |" for what, value in values.items() if value)]

    base = (
        config.model.path
        if not config.model.path.startswith((".", "/"))
        else config.model.path.rstrip("/").rpartition("/")[2]
    )
    return "\n".join(
        [
            "---",
            *_base_on_hub(config.model.path),
            "library_name: transformers",
            "pipeline_tag: text-generation",
            f"tags: [{', '.join(dict.fromkeys(('bft', config.loss.method, config.domain)))}]",
            "---",
            "",
            f"# {config.domain}: `{base}`, fine-tuned with `{config.loss.method}`",
            "",
            f"The champion `{name}` of a study by bft-ray, with Balanced Fine-Tuning (arXiv 2511.21075): these "
            f"settings were confirmed against "
            "published baselines with fresh seeds on data that the search had not seen.",
            "",
            "## Evidence",
            "",
            *rows("confirmation", evidence),
            "",
            "A gain is over `bft` with window 256 as published, positive for better. It is about the data, the "
            "base model and the budget of the study.",
            "",
            "## Training",
            "",
            *rows("field", settings),
            "",
            "## Checks of these files",
            "",
            *rows("check", checks),
            "",
            "## Load",
            "",
            "```python",
            _LOAD["model"].format(folder="FOLDER"),
            "```",
            "",
            "## Limits",
            "",
            "Evaluated on the sets of its study alone. Not a medical device; not for clinical decisions. What a "
            "model has seen in training it may "
            "repeat: share it as you would share its training data.",
            "",
        ]
    )


def measured_table(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Lines of a Markdown table: every metric that has a better and a worse, before and after."""
    names = [name for name in after if is_judged(name)]
    if not names:
        return ["Nothing was measured: the run had no validation data and no task."]
    rows = ["| metric | before | after |", "|---|---|---|"]
    for name in names:
        old = format_value(name, before[name]) if name in before else ""
        rows.append(f"| {name} | {old} | {format_value(name, after[name])} |")
    return rows
