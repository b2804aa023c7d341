"""The sparse reward: 1 where the answer is the gold one, else 0; and its mean over sampled answers of each item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bft_ray.config.tasks import Decoding
from bft_ray.evaluate.engine.answers import until_end
from bft_ray.evaluate.engine.generate import run_generate
from bft_ray.evaluate.engine.request import Generate
from bft_ray.evaluate.engine.worker import Loaded
from bft_ray.evaluate.tasks.generation import decode, parse_answer
from bft_ray.operate.after_rl.definition import Grpo
from bft_ray.operate.after_rl.items import Items


def reward_of(tokens: Sequence[int] | np.ndarray, gold: str, answer: str, tokenizer: Any, ends: Sequence[int]) -> float:
    """1.0 where what `answer` reads from the tokens before the first end token equals `gold`, else 0.0."""
    said = parse_answer(decode(until_end(np.asarray(tokens), ends), tokenizer), answer)
    return float(said is not None and said == gold)


def measure(loaded: Loaded, items: Items, answer: str, grpo: Grpo, seed: int) -> dict[str, float]:
    """Item -> share of its sampled answers that are right. The draws depend on seed and item alone, so that two models
    are measured with the same ones.
    """
    decoding = Decoding(max_new_tokens=grpo.max_new_tokens, temperature=grpo.temperature, num_samples=grpo.samples)
    asked = Generate(items.ids, items.prompts, decoding, seed)
    context = loaded.context
    answers = run_generate(loaded.model, asked, context.batch_tokens, loaded.device, loaded.pad_id, loaded.eos_ids)
    return {
        name: float(np.mean([reward_of(one, gold, answer, context.tokenizer, loaded.eos_ids) for one in own]))
        for name, gold, own in zip(items.ids, items.golds, answers, strict=True)
    }
