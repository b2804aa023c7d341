"""What a worker of an evaluation runs: the model, loaded once, and the three verbs on it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bft_ray.config import DataConfig, ModelConfig
from bft_ray.config.tasks import HarnessTask
from bft_ray.evaluate.engine.request import Context, Embed, Generate, Measured, Request, Score
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.halves import check_halves


@dataclass(frozen=True)
class Loaded:
    """A model on its device, and what goes with it."""

    model: Any
    device: Any
    context: Context
    eos_ids: list[int]

    @property
    def pad_id(self) -> int:
        """The token that fills rows; it is masked, so any will do."""
        return self.context.tokenizer.pad_token_id or 0


def load(model: ModelConfig, data: DataConfig, batch_tokens: int, seed: int) -> Loaded:
    """The model on the worker's GPU, or on its CPU.

    Raises:
        BadInput: weights that cannot be read, or an architecture whose logits are made in an unknown way.
    """
    import torch

    from bft_ray.model.ends import end_tokens

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(model, seed=seed).to(device).eval()
    check_halves(loaded, device)
    tokenizer = load_tokenizer(model)
    return Loaded(loaded, device, Context(tokenizer, data, batch_tokens, seed), end_tokens(tokenizer, data))


def answer(loaded: Loaded, job: Request | HarnessTask) -> Any:
    """The answer of a request, or what a harness task measured."""
    model, device, pad_id, batch_tokens = loaded.model, loaded.device, loaded.pad_id, loaded.context.batch_tokens
    if isinstance(job, Score):
        from bft_ray.evaluate.engine.score import run_score

        return run_score(model, job, batch_tokens, device, pad_id)
    if isinstance(job, Generate):
        from bft_ray.evaluate.engine.generate import run_generate

        return run_generate(model, job, batch_tokens, device, pad_id, loaded.eos_ids)
    if isinstance(job, Embed):
        from bft_ray.evaluate.engine.embed import run_embed

        return run_embed(model, job, batch_tokens, device, pad_id)
    return _harness(loaded, job)


def _harness(loaded: Loaded, task: HarnessTask) -> Measured:
    harness = import_module("bft_ray.evaluate.tasks.harness")
    return harness.run(task, loaded.model, loaded.context.tokenizer, loaded.context)
