"""Generation by vLLM, when it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bft_ray.errors import BadInput
from bft_ray.evaluate.engine.answers import answer_key, until_end
from bft_ray.evaluate.engine.request import Generate
from bft_ray.places.scratch import scratch


def generate_vllm(model: Any, request: Generate, room: Sequence[int], eos_ids: Sequence[int]) -> list[list[np.ndarray]]:
    """The answers of `run_generate`, by vLLM's offline engine. Written after its documentation; no test covers it.

    vLLM reads a model from a folder, and the weights here may be freshly trained: so they are written to a temporary
    folder first, and moved to the CPU while the engine has the GPU. Tokens go in and come out, so it needs no tokenizer.
    Random streams are vLLM's own, one seed an answer; rounding differs from that of transformers.

    Args:
        room: most new tokens of each prompt.

    Raises:
        BadInput: a model with an adapter on it, which that folder would lack, or with 4-bit weights.
    """
    from vllm import LLM, SamplingParams

    if hasattr(model, "peft_config"):
        raise BadInput(
            "decoding.engine", "vllm", "transformers for a model with an adapter on it", "Or export it merged first."
        )
    if getattr(model, "is_loaded_in_4bit", False):
        raise BadInput(
            "decoding.engine", "vllm", "transformers with model.quantization", "Or set model.quantization=null."
        )
    decoding = request.decoding
    inputs, settings = [], []
    for name, prompt, left in zip(request.ids, request.prompts, room, strict=True):
        for sample in range(decoding.num_samples):
            inputs.append({"prompt_token_ids": np.asarray(prompt).tolist()})
            settings.append(
                SamplingParams(
                    temperature=decoding.temperature,
                    top_p=decoding.top_p,
                    max_tokens=left,
                    seed=answer_key(request.seed, name, sample) >> 32,
                    stop_token_ids=list(eos_ids),
                    detokenize=False,
                )
            )
    device, dtype = model.device, str(model.dtype).removeprefix("torch.")
    with scratch("vllm") as folder:
        model.save_pretrained(folder)
        model.to("cpu")
        try:
            longest = max(len(prompt) + left for prompt, left in zip(request.prompts, room, strict=True))
            engine = LLM(model=str(folder), skip_tokenizer_init=True, dtype=dtype, max_model_len=longest)
            outputs = engine.generate(inputs, settings, use_tqdm=False)
            del engine
        finally:
            model.to(device)
    rows = iter(until_end(np.array(output.outputs[0].token_ids), eos_ids) for output in outputs)
    return [[next(rows) for _ in range(decoding.num_samples)] for _ in request.ids]
