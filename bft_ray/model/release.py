"""A model for use elsewhere: an export merged into one folder, and checked as its users load it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import Config, ModelConfig
from bft_ray.errors import BftError
from bft_ray.model.checksums import require_unchanged, write_checksums
from bft_ray.model.ends import end_tokens
from bft_ray.model.export import exported_kind, merge_in_place
from bft_ray.waits import waiting

#: a probability may differ so far from that of the unmerged model: W + BA is rounded once more, in the base's dtype
_AGREES = {"fp32": 1e-3, "bf16": 5e-2}
_PROBE = 64  # tokens
_ENGINE = "vllm"


@dataclass(frozen=True)
class Checks:
    """What was found when a released model was loaded by plain transformers.

    Args:
        num_parameters: of the model.
        difference: largest difference of a next-token probability from the export, over a probe of 64 tokens.
        ends: the tokens at which an answer ends, as text: `generate` stops at each of them.
        engine: what vLLM did: `loads`, or why it was not tried.
    """

    num_parameters: int
    difference: float
    ends: tuple[str, ...]
    engine: str


@waiting("merging the model")
def release(source: Path, config: ModelConfig, folder: Path) -> None:
    """Copy an export to a folder, its adapter (if it is one) merged into the base: a whole model.

    Args:
        source: an export: an adapter or a model.
        config: where its base model comes from, and in which dtype it is loaded.
        folder: new, or empty.

    Raises:
        BadInput: the export was changed since it was written, or its base cannot be read.
    """
    from transformers import GenerationConfig

    require_unchanged(source, "source")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if exported_kind(folder) == "adapter":
        merge_in_place(folder, config, GenerationConfig.from_pretrained(str(source)))
    write_checksums(folder)


@waiting("checking the model as its users load it")
def check_release(folder: Path, source: Path, config: Config) -> Checks:
    """Load the folder with plain transformers, compare it with the export, and let it end its answers.

    Args:
        folder: of `release`.
        source: the export that it was made of.
        config: of its training.

    Raises:
        BftError: it does not load, its probabilities are not those of the export, or an answer does not end.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), use_safetensors=True, trust_remote_code=config.model.trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=config.model.trust_remote_code)
    except Exception as error:  # of many types
        raise BftError(f"transformers does not load {folder}: {error}") from error
    model.eval()
    probe = np.random.default_rng(0).integers(0, min(len(tokenizer), model.config.vocab_size), _PROBE)
    tokens = torch.as_tensor(probe[None], dtype=torch.long)
    difference = _difference(model, source, config, tokens)
    if difference > _AGREES[config.model.dtype]:
        raise BftError(f"the merged model gives other probabilities than the export: they differ by {difference:.2g}")
    ends = end_tokens(tokenizer, config.data)
    for end in ends:
        _require_end(model, tokens[:, :8], end, tokenizer)
    shown = tuple(tokenizer.convert_ids_to_tokens(ends))
    return Checks(model.num_parameters(), difference, shown, _engine(folder, probe[:8], ends))


def _difference(model: Any, source: Path, config: Config, tokens: Any) -> float:
    """Between two ways of loading the same weights: transformers alone, and as training and evaluation load them."""
    import torch

    from bft_ray.model.causal_lm import load_model

    plain = {"path": str(source), "adapter": None, "quantization": None}  # as it was merged
    before: Any = load_model(config.model.model_copy(update=plain)).eval()
    with torch.no_grad():
        own, other = (torch.softmax(one(tokens).logits.float(), -1) for one in (model, before))
    return float((own - other).abs().max())


def _require_end(model: Any, prompt: Any, end: int, tokenizer: Any) -> None:
    """An answer in which the model says `end` first must be one token long, by the generation settings of the folder alone."""
    found = model.generate(
        prompt, attention_mask=prompt.new_ones(prompt.shape), max_new_tokens=4, do_sample=False,
        prefix_allowed_tokens_fn=lambda batch, ids: [end],
    )  # fmt: skip
    if found.shape[1] - prompt.shape[1] != 1:
        name = tokenizer.convert_ids_to_tokens(end)
        raise BftError(f"generation does not stop at {name}, which ends answers in training")


def _engine(folder: Path, prompt: np.ndarray, ends: list[int]) -> str:
    """Load it with vLLM where that is installed. Written after its documentation; no test covers it."""
    if find_spec(_ENGINE) is None:
        return "not tried: vLLM is not installed"
    from vllm import LLM, SamplingParams

    try:
        engine = LLM(model=str(folder))
        engine.generate(
            [{"prompt_token_ids": prompt.tolist()}], SamplingParams(max_tokens=4, stop_token_ids=ends), use_tqdm=False
        )
    except Exception as error:  # of many types
        raise BftError(f"vLLM does not load {folder}: {error}") from error
    return "loads"
