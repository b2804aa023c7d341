"""A small byte-level BPE tokenizer and chat templates of several makes, for tests."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
WORDS = "the gene protein binds a membrane receptor and activates transcription factor signalling in cells. "

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (  # tells itself what the assistant generates
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONER = (  # as DeepSeek-R1's: opens a thought in the generation prompt, drops given thoughts
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[User]{{ m['content'] }}"
    "{% else %}[Assistant]{{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[Assistant]<think>\n{% endif %}"
)
THINKER = (  # as Qwen3's: the last answer gets an empty thought, earlier ones none
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = "{% for m in messages %}{{ messages|length }} {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
STRICT = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)


def tiny_tokenizer(chat_template: str | None = None, bos: bool = True) -> PreTrainedTokenizerFast:
    """Vocabulary of 400: 5 special tokens, 256 bytes, merges of a few words."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    core.train_from_iterator([WORDS * 3], trainer)
    if bos:  # it puts one before a text, as most that have one do
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer
