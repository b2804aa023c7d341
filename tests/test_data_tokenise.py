"""Tokens and masks: the plain form, chat templates of several makes, lengths and bytes."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from bft_ray.config import DataConfig, SourceConfig
from bft_ray.data.rows import Row
from bft_ray.data.tokenise import encode, encode_batch, shorten, tokenizer_content
from bft_ray.errors import BadInput
from tests.tiny_tokenizer import CHATML, COUNTING, MARKED, REASONER, STRICT, THINKER, tiny_tokenizer

SOURCES = [SourceConfig(path="unused.jsonl")]
AUTO = DataConfig(train=SOURCES)
PLAIN = DataConfig(train=SOURCES, template="plain")
CHAT = DataConfig(train=SOURCES, template="chat")
QUESTION, ANSWER = "What binds the receptor?", "A protein, in cells. µ"
PAIR = Row(id="a", where="f:1", prompt=QUESTION, completion=ANSWER)


def turn(role: str, content: str) -> dict:
    return {"role": role, "content": content}


TURNS = [
    turn("user", "q one"),
    turn("assistant", "first"),
    turn("user", "q two"),
    turn("assistant", "second"),
]
CONVERSATION = Row(id="c", where="f:2", messages=TURNS)


def taught(encoded, tokenizer) -> list[str]:
    """The supervised runs, as text."""
    runs: list[list[int]] = [[]]
    for token, flag in zip(encoded.input_ids, encoded.supervised, strict=True):
        if flag:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run) for run in runs if run]


def test_plain_pair():
    tokenizer = tiny_tokenizer()
    encoded = encode(PAIR, tokenizer, AUTO)
    assert tokenizer.decode(encoded.input_ids) == f"<s>{QUESTION}\n{ANSWER}</s>"
    assert taught(encoded, tokenizer) == [f"{ANSWER}</s>"]
    assert encoded.num_bytes == len(ANSWER.encode()) == 23  # the micro sign takes two
    prompt = tokenizer(f"<s>{QUESTION}\n", add_special_tokens=False)["input_ids"]
    assert encoded.input_ids[: len(prompt)] == prompt and not any(encoded.supervised[: len(prompt)])


def test_prompt_tokens_are_a_prefix_even_where_the_tokenizer_would_merge_across():
    tokenizer = tiny_tokenizer()
    core = tokenizer.backend_tokenizer
    core.add_tokens(["\nA"])  # a token that would swallow the border between prompt and answer
    encoded = encode(PAIR, tokenizer, AUTO)
    assert tokenizer(f"{QUESTION}\n{ANSWER}")["input_ids"] != encoded.input_ids[1:-1]
    assert taught(encoded, tokenizer) == [f"{ANSWER}</s>"]


def test_text_row():
    with_bos, without = tiny_tokenizer(), tiny_tokenizer(bos=False)
    row = Row(id="t", where="f:3", text=ANSWER)
    encoded = encode(row, with_bos, AUTO)
    assert encoded.supervised == [False] + [True] * (len(encoded.input_ids) - 1)
    assert (taught(encoded, with_bos), encoded.num_bytes) == ([f"{ANSWER}</s>"], 23)
    encoded = encode(row, without, AUTO)
    first = without.decode(encoded.input_ids[:1])
    assert not encoded.supervised[0] and all(encoded.supervised[1:])
    assert encoded.num_bytes == 23 - len(first)  # what the first token says is not predicted


def test_plain_conversation_supervises_every_answer():
    tokenizer = tiny_tokenizer()
    encoded = encode(CONVERSATION, tokenizer, AUTO)
    assert tokenizer.decode(encoded.input_ids) == "<s>q one\nfirst</s>q two\nsecond</s>"
    assert taught(encoded, tokenizer) == ["first</s>", "second</s>"]
    assert encoded.num_bytes == len("firstsecond")


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_chat_supervises_answers_and_their_end(template):
    tokenizer = tiny_tokenizer(template)
    encoded = encode(CONVERSATION, tokenizer, AUTO)
    assert taught(encoded, tokenizer) == ["first<|im_end|>", "second<|im_end|>"]
    assert encoded.num_bytes == len("firstsecond")
    rendered: Any = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert tokenizer.decode(encoded.input_ids) == "<s>" + rendered.removesuffix("\n")
    given: Any = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=False)
    assert encoded.input_ids[1 : 1 + len(given)] == given


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_answers_within_a_prompt_carry_no_loss(template):
    tokenizer = tiny_tokenizer(template)
    row = Row(id="d", where="f:4", prompt=TURNS[:3], completion="second")
    assert taught(encode(row, tokenizer, AUTO), tokenizer) == ["second<|im_end|>"]
    assert taught(encode(row, tiny_tokenizer(), AUTO), tokenizer) == ["second</s>"]


def test_end_token_outside_of_the_block_is_supervised():
    tokenizer = tiny_tokenizer(MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}</s>"))
    assert taught(encode(CONVERSATION, tokenizer, AUTO), tokenizer) == ["first</s>", "second</s>"]


def test_template_that_opens_a_thought():
    tokenizer = tiny_tokenizer(REASONER)
    encoded = encode(PAIR, tokenizer, AUTO)
    assert tokenizer.decode(encoded.input_ids) == f"<s>[User]{QUESTION}[Assistant]{ANSWER}</s>"  # one bos
    assert taught(encoded, tokenizer) == [f"{ANSWER}</s>"]
    lookalike = encode(Row(id="e", where="f:5", prompt="q", completion="<table>"), tokenizer, AUTO)
    assert taught(lookalike, tokenizer) == ["<table></s>"]
    with pytest.raises(BadInput, match=r"`f:6` is .* leaves out a part of turn 2, such as its thoughts"):
        encode(Row(id="f", where="f:6", prompt="q", completion="<think>hm</think>yes"), tokenizer, AUTO)


def test_template_that_frames_the_last_answer_only():
    tokenizer = tiny_tokenizer(THINKER)
    encoded = encode(CONVERSATION, tokenizer, AUTO)
    assert taught(encoded, tokenizer) == ["first<|im_end|>", "<think>\n\n</think>\n\nsecond<|im_end|>"]


def test_template_that_cannot_be_told_apart():
    with pytest.raises(BadInput, match=r"`f:2` is .* changes turn 2 or what .* Put \{% generation %\} blocks"):
        encode(CONVERSATION, tiny_tokenizer(COUNTING), AUTO)


def test_conversation_that_the_template_refuses():
    row = Row(id="s", where="f:7", messages=[turn("system", "s"), turn("assistant", "a")])
    with pytest.raises(BadInput, match=r"`f:7` is 'refused by the chat template'.*no system turns here"):
        encode(row, tiny_tokenizer(STRICT), AUTO)


def test_template_setting():
    assert tiny_tokenizer(CHATML).decode(encode(PAIR, tiny_tokenizer(CHATML), PLAIN).input_ids).count("<|im") == 0
    with pytest.raises(BadInput, match=r"`data.template` is 'chat', but must be plain or auto, because this tokenizer"):
        encode(PAIR, tiny_tokenizer(), CHAT)


def test_batch_equals_one_by_one():
    tokenizer = tiny_tokenizer(CHATML)
    rows = [PAIR, CONVERSATION, Row(id="t", where="f:3", text=ANSWER)]
    assert encode_batch(rows, tokenizer, AUTO) == [encode(row, tokenizer, AUTO) for row in rows]


def test_tokenizer_that_puts_a_space_before_every_text():
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", "▁", "\n", "q", "a", "▁a", "b"])}
    core = Tokenizer(models.BPE(vocab, [("▁", "a")]))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["▁a"]
    encoded = encode(Row(id="l", where="f:8", prompt="q", completion="ab a"), tokenizer, AUTO)
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert tokens == ["<s>", "▁", "q", "\n", "a", "b", "▁a", "</s>"]
    assert encoded.supervised == [False] * 4 + [True] * 4


def test_shorten():
    tokenizer = tiny_tokenizer()
    encoded = encode(PAIR, tokenizer, AUTO)
    assert shorten(encoded, len(encoded.input_ids), tokenizer) is encoded
    num_prompt = encoded.supervised.index(True)
    short = shorten(encoded, num_prompt + 2, tokenizer)
    assert (len(short.input_ids), sum(short.supervised)) == (num_prompt + 2, 2)
    assert short.num_bytes == len(taught(short, tokenizer)[0].encode())
    cut = shorten(encoded, len(encoded.input_ids) - 2, tokenizer)  # within the two bytes of the micro sign
    assert cut.num_bytes == len(ANSWER.encode()) - 2
    assert shorten(encoded, num_prompt, tokenizer).num_bytes == 0


def test_tokenizer_content_tells_tokenizers_apart_but_not_their_calls():
    one, other = tiny_tokenizer(), tiny_tokenizer()
    before = tokenizer_content(one)
    assert tokenizer_content(other) == before
    one(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_content(one) == before
    other.chat_template = CHATML
    assert tokenizer_content(other) != before
    assert tokenizer_content(tiny_tokenizer(bos=False)) != before
