"""Which tokens end an answer."""

from __future__ import annotations

from typing import Any

from bft_ray.config import DataConfig
from bft_ray.data.rows import Row
from bft_ray.data.tokenise import encode


def end_tokens(tokenizer: Any, data: DataConfig) -> list[int]:
    """The end-of-text token, and the token that ends a turn in training, which a chat template may choose."""
    last = encode(Row("", "", prompt="?", completion="!"), tokenizer, data).input_ids[-1]
    closing = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    return sorted({tokenizer.eos_token_id} | ({last} & closing))


def generation_settings(model: Any, tokenizer: Any) -> Any:
    """The model's generation config, with every token that ends an answer: its own, the tokenizer's end-of-text token,
    and the token that ends an assistant's turn in the chat template.

    Without the last one a model that was taught turns writes on after its answer: base models of the Qwen family name
    `<|endoftext|>` alone, and their template ends turns with `<|im_end|>`.
    """
    from transformers import GenerationConfig

    known = getattr(model, "generation_config", None)
    settings = GenerationConfig.from_dict(known.to_dict()) if known is not None else GenerationConfig()
    own = settings.eos_token_id
    ends = {*(own if isinstance(own, list) else [] if own is None else [own])}
    ends |= {*end_tokens(tokenizer, DataConfig.model_construct(train=[], template="auto"))}
    settings.eos_token_id = sorted(ends) if len(ends) > 1 else ends.pop()
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    try:
        settings.validate(strict=True)
    except ValueError:  # some base models name a temperature and do not sample; transformers refuses to save that
        settings.do_sample = True
    return settings
