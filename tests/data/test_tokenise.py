"""Tokens and masks: the plain form, chat templates of several makes, lengths and bytes."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from bft_ray.config import DataConfig, SourceConfig, make_config
from bft_ray.data.rows import Row
from bft_ray.data.tokenise import (
    encode,
    encode_batch,
    first_tokens,
    notes_of,
    shorten,
    tokenizer_content,
    with_date,
)
from bft_ray.errors import BadConfig, BadInput
from tests.support.tiny_tokenizer import CHATML, COUNTING, MARKED, REASONER, STRICT, THINKER, tiny_tokenizer

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
    prompt = tokenizer(f"{QUESTION}\n")["input_ids"]
    assert encoded.input_ids[: len(prompt)] == prompt and not any(encoded.supervised[: len(prompt)])


def test_prompt_tokens_are_a_prefix_even_where_the_tokenizer_would_merge_across():
    tokenizer = tiny_tokenizer()
    core = tokenizer.backend_tokenizer
    core.add_tokens(["\nA"])  # a token that would swallow the border between prompt and answer
    encoded = encode(PAIR, tokenizer, AUTO)
    assert tokenizer(f"{QUESTION}\n{ANSWER}")["input_ids"] != encoded.input_ids[:-1]
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
    assert tokenizer.decode(encoded.input_ids) == rendered.removesuffix("\n")  # no bos that the template has not
    given: Any = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, return_dict=False)
    assert encoded.input_ids[: len(given)] == given


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
    with pytest.raises(BadInput, match=r"`f:2` is .* changes turn 2 or earlier text .* Put \{% generation %\} blocks"):
        encode(CONVERSATION, tiny_tokenizer(COUNTING), AUTO)


def test_conversation_that_the_template_refuses():
    row = Row(id="s", where="f:7", messages=[turn("system", "s"), turn("assistant", "a")])
    with pytest.raises(BadInput, match=r"`f:7` is 'refused by the chat template'.*no system turns here"):
        encode(row, tiny_tokenizer(STRICT), AUTO)


@pytest.mark.parametrize("raised", ["raise_exception('not ' + m.content)", "'%d' % m.content"])
def test_what_a_template_says_of_a_row_is_not_told(raised):
    template = (
        "{% for m in messages %}{% if 'SECRET' in m.content %}{{ "
        + raised
        + " }}{% endif %}{{ m.content }}{% endfor %}"
    )
    row = Row(id="s", where="f:7", messages=[turn("user", "my SECRET"), turn("assistant", "a")])
    with pytest.raises(BadInput, match=r"`f:7` is 'refused by the chat template'") as caught:
        encode(row, tiny_tokenizer(template), AUTO)
    assert "SECRET" not in str(caught.value)


def test_a_template_with_a_syntax_error_is_a_fault_of_the_model():
    with pytest.raises(
        BadInput, match=r"`model.path` is 'a model whose chat template is broken'.* Line 1 of the template"
    ):
        encode(PAIR, tiny_tokenizer("{% for m in messages %}{{ m.content }}"), AUTO)


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
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["<s>", "▁a"]
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


# --- what a template is given, and what it must show ------------------------------------------------------

TOOLS = (  # shows tools, calls and thoughts, as Qwen3's does
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m['content'] }}"
    "{% for call in m.tool_calls %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PRINTS = TOOLS.replace("call.function.arguments | tojson", "call.function.arguments").replace(
    "reasoning_content", "thinking"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
CALL = {"type": "function", "function": {"name": "gene", "arguments": {"symbol": "TP53"}}}
CALLING = Row(
    id="k",
    where="f:9",
    messages=[
        turn("user", "Look up TP53"),
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        turn("tool", "17p13.1"),
        turn("assistant", "It lies at 17p13.1."),
    ],
    tools=[{"type": "function", "function": {"name": "gene", "description": "look up", "parameters": {}}}],
)
THINKING = Row(
    id="r", where="f:10", messages=[turn("user", "q"), turn("assistant", "a") | {"reasoning_content": "first, then"}]
)
REASONED = Row(id="o", where="f:11", prompt="q", completion=[turn("assistant", "a") | {"reasoning": "first, then"}])


@pytest.mark.parametrize("template", [TOOLS, PRINTS])
def test_tools_reach_the_template_and_a_call_is_taught(template):
    tokenizer = tiny_tokenizer(template)
    encoded = encode(CALLING, tokenizer, AUTO)
    assert '"description": "look up"' in tokenizer.decode(encoded.input_ids)
    call = '<call>gene {"symbol": "TP53"}</call>'
    assert taught(encoded, tokenizer) == [f"{call}<|im_end|>", "It lies at 17p13.1.<|im_end|>"]
    assert encoded.num_bytes == len(f"{call}It lies at 17p13.1.")


def test_what_the_template_does_not_show_is_refused():
    with pytest.raises(BadInput) as caught:
        encode(CALLING, tiny_tokenizer(CHATML), AUTO)
    assert str(caught.value) == (
        "`f:9` is 'a conversation', but the chat template shows nothing of tools, so it would not be learned. "
        "Use a model whose template does, or remove the column `tools` from the row."
    )
    alone = replace(CALLING, tools=None)
    with pytest.raises(BadInput, match=r"shows nothing of the call in turn 2, so .* or remove the turn from the row"):
        encode(alone, tiny_tokenizer(CHATML), AUTO)
    with pytest.raises(
        BadInput, match=r"nothing of the thoughts in turn 2, .* remove `reasoning_content` from the row"
    ):
        encode(THINKING, tiny_tokenizer(CHATML), AUTO)
    rule = "but must be left out without a chat template, which they need. Use a model that has one"
    for row, what in ((alone, "a call in turn 2"), (THINKING, "thoughts in turn 2")):
        with pytest.raises(BadInput, match=rf"`{row.where}` is '{what}', {rule}"):
            encode(row, tiny_tokenizer(), AUTO)


@pytest.mark.parametrize("template", [TOOLS, PRINTS])
def test_thoughts_go_where_the_template_has_them(template):
    tokenizer = tiny_tokenizer(template)
    answer = ["<think>\nfirst, then\n</think>\n\na<|im_end|>"]
    assert taught(encode(THINKING, tokenizer, AUTO), tokenizer) == answer
    assert taught(encode(REASONED, tokenizer, AUTO), tokenizer) == answer


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (MARKED, "<|im_end|>"), (None, "</s>")])
def test_reasoning_before_an_answer_where_no_template_has_a_place_for_it(template, end):
    tokenizer = tiny_tokenizer(template)
    assert taught(encode(REASONED, tokenizer, AUTO), tokenizer) == [f"<think>\nfirst, then\n</think>\n\na{end}"]


@pytest.mark.parametrize("template", [CHATML, MARKED, None])
def test_a_turn_of_weight_0_is_not_taught(template):
    tokenizer = tiny_tokenizer(template)
    turns = [TURNS[0], TURNS[1] | {"weight": 0}, TURNS[2], TURNS[3] | {"weight": 1}]
    end = "<|im_end|>" if template else "</s>"
    encoded = encode(Row(id="w", where="f:12", messages=turns), tokenizer, AUTO)
    assert taught(encoded, tokenizer) == [f"second{end}"]
    assert encoded.input_ids == encode(CONVERSATION, tokenizer, AUTO).input_ids


@pytest.mark.parametrize("template", [CHATML, MARKED, None])
def test_an_end_token_that_a_completion_has_already_stands_there_once(template):
    tokenizer = tiny_tokenizer(template)
    for ending in ("</s>", "<|im_end|>", "<|im_end|>\n", "</s></s>") if template else ("</s>", "</s>\n"):
        row = Row(id="a", where="f:1", prompt=QUESTION, completion=ANSWER + ending)
        assert encode(row, tokenizer, AUTO) == encode(PAIR, tokenizer, AUTO)
    text = Row(id="t", where="f:3", text=ANSWER)
    assert encode(replace(text, text=f"{ANSWER}</s>"), tokenizer, AUTO) == encode(text, tokenizer, AUTO)


def test_a_template_without_an_end_gets_one():
    tokenizer = tiny_tokenizer(ENDLESS)
    encoded = encode(CONVERSATION, tokenizer, AUTO)
    assert taught(encoded, tokenizer) == ["first</s>", "second</s>"]
    assert tokenizer.decode(encoded.input_ids) == (
        "user: q one\nassistant: first</s>\nuser: q two\nassistant: second</s>"
    )
    assert encoded.num_bytes == len("firstsecond")
    [note] = notes_of(tokenizer, AUTO)
    assert note == "the chat template does not end an answer: </s> is added after each one taught"
    assert not notes_of(tiny_tokenizer(CHATML), AUTO) and not notes_of(tiny_tokenizer(MARKED), AUTO)


def test_bos_stands_where_the_tokenizer_puts_one_and_nowhere_else():
    text = Row(id="t", where="f:3", text=ANSWER)
    puts, has = tiny_tokenizer(), tiny_tokenizer()
    has.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    assert has.bos_token_id == 1 and has(ANSWER)["input_ids"] == puts(ANSWER)["input_ids"][1:]
    for tokenizer in (puts, has):
        assert encode(text, tokenizer, AUTO).input_ids == [*tokenizer(ANSWER)["input_ids"], 2]
        whole = encode(PAIR, tokenizer, AUTO).input_ids
        assert (
            whole[: whole.index(tokenizer("\n", add_special_tokens=False)["input_ids"][0])]
            == tokenizer(QUESTION)["input_ids"]
        )
    puts.chat_template = CHATML
    assert 1 not in encode(PAIR, puts, AUTO).input_ids  # in chat the template decides
    assert encode(text, puts, AUTO).input_ids[0] == 1  # a text goes through no template
    assert first_tokens(puts) == [1] and first_tokens(has) == []


def test_the_date_of_a_template_is_that_of_the_config():
    tokenizer = tiny_tokenizer(DATED)
    day = DataConfig(train=SOURCES, date="2026-02-03")
    assert tokenizer.decode(encode(PAIR, tokenizer, day).input_ids).startswith("03 Feb 2026\n")
    assert notes_of(tokenizer, day) == ["the chat template shows the date: 2026-02-03 (data.date)"]
    assert with_date(AUTO, tokenizer, "2025-01-01").date == "2025-01-01"
    assert with_date(AUTO, tokenizer).date == datetime.date.today().isoformat()
    assert with_date(day, tokenizer, "2025-01-01").date == "2026-02-03"
    assert with_date(AUTO, tiny_tokenizer(CHATML)).date is None
    for wrong in ("today", "2026-02-30"):
        with pytest.raises(BadConfig, match=r"data\.date` is '"):
            make_config({"domain": "a", "data": {"train": [{"path": "x"}], "date": wrong}})
