"""Generation: independence of batches, the metrics by hand, agreement with rouge-score, bad input."""

from __future__ import annotations

import json
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bft_ray.config import DataConfig, ModelConfig, SourceConfig
from bft_ray.config.metrics import describe
from bft_ray.config.tasks import Decoding, GenerationTask
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.engine.generate import answer_key, choose, run_generate
from bft_ray.evaluate.engine.request import Context, Generate
from bft_ray.evaluate.rouge import common_subsequence, rouge_1, rouge_l, token_f1
from bft_ray.evaluate.tasks.generation import parse_answer, prepare
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.model.ends import end_tokens
from bft_ray.stats.power import detectable
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer

GREEDY = Decoding(max_new_tokens=12)
SAMPLED = Decoding(max_new_tokens=12, temperature=0.8, top_p=0.9, num_samples=2)
EOS = [1]


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelConfig(path=str(tiny_model), dtype="fp32"))


@pytest.fixture
def context(tiny_model, tiny_data):
    data = DataConfig(train=[SourceConfig(path=str(tiny_data))], max_length=64, micro_batch_tokens=64)
    return Context(load_tokenizer(ModelConfig(path=str(tiny_model))), data, 256, 0)


def prompts(n: int = 12) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(5, 96, draw.integers(1, 20)).astype(np.int32) for _ in range(n)]


def request(decoding: Decoding, own: list[np.ndarray] | None = None, seed: int = 0) -> Generate:
    own = prompts() if own is None else own
    return Generate([f"item-{i}" for i in range(len(own))], own, decoding, seed)


def lists(answers) -> list[list[list[int]]]:
    return [[tokens.tolist() for tokens in item] for item in answers]


def generate(model, decoding=GREEDY, batch_tokens=256, eos=EOS, **other):
    return lists(run_generate(model, request(decoding, **other), batch_tokens, "cpu", 0, eos))


@torch.no_grad()
def one_by_one(model, prompt: np.ndarray, max_new_tokens: int, eos: list[int]) -> list[int]:
    """Greedy decoding, plainly: no cache, no batch."""
    model.eval()
    tokens = prompt.tolist()
    while len(tokens) < len(prompt) + max_new_tokens:
        best = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        if best in eos:
            break
        tokens.append(best)
    return tokens[len(prompt) :]


# --- the verb -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 64, 100, 10_000])
def test_greedy_answers_are_those_of_a_plain_loop(model, batch_tokens):
    answers = generate(model, batch_tokens=batch_tokens, eos=[1, 7, 9, 30, 31, 32, 33, 34, 35])
    expected = [one_by_one(model, prompt, 12, [1, 7, 9, 30, 31, 32, 33, 34, 35]) for prompt in prompts()]
    assert answers == [[tokens] for tokens in expected]
    lengths = {len(tokens) for tokens in expected}
    assert len(lengths) > 2 and 12 in lengths  # some ended early, some were cut


@pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
def test_samples_do_not_depend_on_batches_order_or_company(model, batch_tokens):
    whole = generate(model, SAMPLED)
    assert generate(model, SAMPLED, batch_tokens) == whole
    some = Generate(["item-7", "item-2"], [prompts()[7], prompts()[2]], SAMPLED, 0)
    assert lists(run_generate(model, some, batch_tokens, "cpu", 0, EOS)) == [whole[7], whole[2]]
    assert all(first != second for first, second in whole)
    assert generate(model, SAMPLED, seed=1) != whole


@pytest.mark.slow
def test_a_close_call_is_decided_alone(tiny_model):
    """Tokens in pairs that differ by less than rounding: batches alone would decide between them."""
    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32"))
    torch.manual_seed(0)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight[6::2] = weight[5:-1:2] * (1 + 1e-7 * torch.randn_like(weight[6::2]))
    for decoding in (GREEDY, SAMPLED.model_copy(update={"temperature": 1e-3})):
        whole = generate(model, decoding)
        assert all(generate(model, decoding, batch_tokens) == whole for batch_tokens in (1, 40, 70, 150, 10_000))


def test_sampling_follows_the_distribution():
    """Frequencies of the chosen tokens, with and without a nucleus."""
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    for decoding, expected in [
        (Decoding(temperature=1.0), [0.4, 0.3, 0.2, 0.1]),
        (Decoding(temperature=1.0, top_p=0.6), [4 / 7, 3 / 7, 0, 0]),
        (Decoding(temperature=1.0, top_p=0.05), [1, 0, 0, 0]),
        (Decoding(temperature=0.5), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ]:
        noise = -torch.empty(20_000, 4).exponential_(generator=torch.Generator().manual_seed(0)).log()
        tokens, _ = choose(logits.expand(20_000, 4), noise, decoding)
        shares = torch.bincount(tokens, minlength=4) / 20_000
        assert shares.tolist() == pytest.approx(expected, abs=0.012)


def test_close_calls_are_seen():
    edge = Decoding(temperature=1.0, top_p=0.7)  # the nucleus ends where it is asked to
    logits, zero = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), torch.zeros(1, 4)
    assert not choose(logits, zero, GREEDY)[1] and not choose(logits, zero, edge)[1]
    assert choose(torch.tensor([[1.0, 1.0005, 0.0]]), torch.zeros(1, 3), GREEDY)[1]
    assert choose(logits, torch.tensor([[0.0, 0.0, 9.0, 0.0]]), edge)[1]  # its edge would change the choice


def test_the_models_own_settings_play_no_part(model):
    plain = generate(model)
    own = model.generation_config
    own.repetition_penalty, own.min_new_tokens, model.config.use_cache = 5.0, 12, False
    model.train()
    try:
        assert generate(model) == plain
        assert model.training and model.generation_config is own and not model.config.use_cache
    finally:
        own.repetition_penalty = own.min_new_tokens = None


def test_an_adapter_generates_too(tiny_model):
    from bft_ray.config import LoraConfig

    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32"), LoraConfig(rank=2))
    plain = generate(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    assert generate(model) != plain == generate(model.unload())


def test_an_answer_ends_where_the_context_ends(model):
    long = [np.full(508, 9, np.int32), np.full(300, 9, np.int32)]
    near, far = generate(model, own=long)
    assert len(near[0]) == 4 and len(far[0]) == 12
    with pytest.raises(BadInput, match=r"prompt of item-0.* is '512 tokens', but must be shorter than the model's"):
        generate(model, own=[np.full(512, 9, np.int32)])


def test_broken_logits_are_named(tiny_model):
    model = load_model(ModelConfig(path=str(tiny_model), dtype="fp32"))
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = math.nan
    with pytest.raises(BftError, match=r"logits are not numbers for item-1; try"):
        generate(model, own=[np.array([5, 6]), np.array([9])], decoding=Decoding(max_new_tokens=1))


def test_vllm_is_asked_for_and_missing(model, context, tmp_path):
    vllm = Decoding(engine="vllm")
    with pytest.raises(BadInput, match=r"is 'vllm', but must be transformers where vLLM is not installed"):
        generate(model, vllm)
    task = write_task(tmp_path, [{"prompt": "w1", "completion": "w2"}], decoding=vllm)
    with pytest.raises(BadInput, match=r"evaluation.tasks.qa.decoding.engine"):
        prepare(task, context)


def test_keys_differ():
    keys = {answer_key(seed, item, sample) for seed in (0, 1) for item in ("a", "b", "1", "11") for sample in range(12)}
    assert len(keys) == 2 * 4 * 12 and all(0 <= key < 2**63 for key in keys)


def test_a_turn_ends_as_in_training(context):
    assert end_tokens(context.tokenizer, context.data) == [1]
    chat = tiny_tokenizer(CHATML)
    assert sorted(chat.convert_tokens_to_ids(["</s>", "<|im_end|>"])) == end_tokens(chat, context.data)


# --- metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("so 6 * 7\n#### 42", "final", "42"),
        ("#### $1,200.00 dollars", "final", "1200"),
        ("#### -3.50", "final", "-3.5"),
        ("#### $-3", "final", "-3"),
        ("####.5", "final", "0.5"),
        ("#### 18.", "final", "18"),
        ("#### 7%\n#### 8", "final", "7"),
        ("#### 100000", "final", "100000"),
        ("#### -0", "final", "0"),
        ("the answer is 42", "final", None),
        ("#### forty", "final", None),
        ("#### 1/2", "final", None),
        ("#### 12/2", "final", None),
        ("#### 1e5", "final", "100000"),
        ("#### 2.50E-3 g", "final", "0.0025"),
        ("#### +5", "final", "5"),
        ("#### \u22125", "final", "-5"),
        ("#### (42)", "final", "42"),
        ("#### 007", "final", "7"),
        ("#### 123456789012345678901234567890123", "final", "123456789012345678901234567890123"),
        ("#### 42\n\n3 more", "final", "42"),
        ("#### 1,234,567.", "final", "1234567"),
        ("#### 10^6", "final", None),
        ("#### 2 x 10^5", "final", None),
        ("#### 1 000", "final", None),
        ("#### 12:30", "final", None),
        ("#### 1.5.2", "final", None),
        ("#### 1,2", "final", None),
        ("#### 12,34,567", "final", None),
        ("#### 1e5000", "final", None),
        ("Maybe. No, yes", "yes_no_maybe", "maybe"),
        ("I know nothing", "yes_no_maybe", None),
        ("No", "yes_no_maybe", "no"),
        ("The  BRCA1-gene, a!", "text", "brca1gene"),
        ("The", "text", None),
        ("", "text", None),
    ],
)
def test_what_exact_match_compares(text, answer, expected):
    assert parse_answer(text, answer) == expected


def test_overlap_by_hand():
    # shared in order: "the cat the mat" of 5 and 6 tokens
    assert rouge_l("the cat near the mat", "The cat sat on the mat.") == pytest.approx(2 * 4 / 11)
    assert rouge_1("mat the the the", "the cat sat on the mat") == pytest.approx(2 * 3 / 10)
    assert rouge_l("mat the cat", "the cat sat on the mat") == pytest.approx(2 * 2 / 9)
    assert (rouge_l("", "a b"), rouge_1("a", ""), rouge_l("中文", "中文")) == (0, 0, 0)
    # words without articles: "cat sat" and "cat sat on mat"
    assert token_f1("A cat sat!", "the cat sat on the mat") == pytest.approx(2 * 2 / 6)
    assert (token_f1("the", "a"), token_f1("", "cat"), token_f1("中文", "中文")) == (1, 0, 1)
    assert common_subsequence("ABCBDAB", "BDCABA") == 4


def test_rouge_agrees_with_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    draw = random.Random(0)
    words = ["Wnt", "p53-mediated", "the", "of", "DNA", "β-catenin", "5'", "a,b", "signalling.", "\n", "3.5"]
    for _ in range(300):
        text, gold = (" ".join(draw.choices(words, k=draw.randint(0, 40))) for _ in range(2))
        expected = scorer.score(gold, text)
        assert rouge_1(text, gold) == pytest.approx(expected["rouge1"].fmeasure, abs=1e-12)
        assert rouge_l(text, gold) == pytest.approx(expected["rougeL"].fmeasure, abs=1e-12)


def write_task(folder, rows, **settings) -> GenerationTask:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return GenerationTask(name="qa", path=str(path), **settings)


def test_metrics_by_hand(context, tmp_path):
    golds = ["w1 w2 w3 w4", "w5", "w6 w7"]
    rows = [{"id": f"r{i}", "prompt": f"w{i} w9", "completion": gold} for i, gold in enumerate(golds)]
    prepared = prepare(write_task(tmp_path, rows, decoding=GREEDY), context)
    [asked] = prepared.requests
    words = context.tokenizer.convert_tokens_to_ids
    assert [prompt.tolist() for prompt in asked.prompts] == [[2, *words([f"w{i}", "w9", "\n"])] for i in range(3)]
    assert (asked.ids, asked.seed, asked.decoding) == (["r0", "r1", "r2"], 0, GREEDY)

    answers = [[np.array(words(["w1", "w3"]))], [np.array(words(["w5"]))], [np.array([], np.int32)]]
    measured = prepared.finish([answers])
    metrics = measured.metrics
    assert metrics["qa/exact_match"] == pytest.approx(1 / 3)
    assert metrics["qa/token_f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["qa/rouge_l"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["qa/exact_match_se"] == pytest.approx(np.std([0, 1, 0], ddof=1) / math.sqrt(3))
    assert metrics["qa/exact_match_detectable"] == pytest.approx(
        detectable(math.sqrt(2) * metrics["qa/exact_match_se"], 4)
    )
    assert (metrics["qa/num_empty"], metrics["qa/num_unparsed"], metrics["qa/num_items"]) == (1, 0, 3)
    assert metrics["qa/answer_tokens"] == 1
    assert all(describe(name) for name in metrics)
    assert re.fullmatch("[0-9a-f]{4}", measured.records[0]["content"])
    assert measured.records[0] == {
        "id": "r0", "content": measured.records[0]["content"], "exact_match": 0, "token_f1": pytest.approx(2 / 3),
        "rouge_l": pytest.approx(2 / 3), "empty": 0, "unparsed": 0, "answer_tokens": 2,
    }  # fmt: skip


def test_samples_are_averaged_and_the_unparsed_counted(context, tmp_path):
    context = SimpleNamespace(tokenizer=tiny_tokenizer(), data=context.data, batch_tokens=64, seed=0)
    decoding = Decoding(temperature=1, num_samples=3)
    task = write_task(tmp_path, [{"prompt": "?", "completion": "yes"}], answer="yes_no_maybe", decoding=decoding)
    encode = context.tokenizer.encode
    answers = [[np.array(encode(text, add_special_tokens=False)) for text in ("well, yes", "perhaps", "Yes")]]
    metrics = prepare(task, context).finish([answers]).metrics
    assert metrics["qa/exact_match"] == pytest.approx(2 / 3)
    assert (metrics["qa/num_unparsed"], metrics["qa/num_empty"]) == (1, 0)
    assert "qa/exact_match_se" not in metrics


def test_rouge_is_left_out_where_it_sees_nothing(context, tmp_path):
    context = SimpleNamespace(tokenizer=tiny_tokenizer(), data=context.data, batch_tokens=64, seed=0)
    task = write_task(tmp_path, [{"prompt": "?", "completion": "基因"}, {"prompt": "!", "completion": "ok 基"}])
    answers = [[np.array(context.tokenizer.encode("ok", add_special_tokens=False))]] * 2
    measured = prepare(task, context).finish([answers])
    assert measured.metrics["qa/rouge_l"] == 1.0 and "rouge_l" not in measured.records[0]


@pytest.mark.parametrize(
    ("rows", "answer", "message"),
    [
        (
            [{"prompt": "w1", "completion": "#### 4"}, {"prompt": "w1", "completion": "4"}],
            "final",
            r"rows.jsonl:2 completion.*number after ####. Remove the row, or set evaluation.tasks.qa.answer to text\.",
        ),
        ([{"prompt": "w1", "completion": "perhaps"}], "yes_no_maybe", r"rows.jsonl:1 completion.*yes, no or maybe"),
        (
            [{"prompt": "w1", "completion": "..."}],
            "text",
            r"rows.jsonl:1 completion.*letter or digit. Remove the row\.$",
        ),
        ([{"prompt": "w1", "completion": " "}], "text", r"rows.jsonl:1. is 'empty completion'"),
        (
            [{"prompt": "w1 " * 70, "completion": "w2"}],
            "text",
            r"rows.jsonl:1 prompt.*73 tokens.*data.max_length \(64\)",
        ),
        ([{"text": "w1"}], "text", r"rows.jsonl:1. is 'a row of text'"),
        ([], "text", r"a file with rows"),
        ([{"id": 1, "prompt": "w1", "completion": "w2"}] * 2, "text", r"is at .*rows.jsonl:1 too"),
    ],
)
def test_bad_rows_are_named(context, tmp_path, rows, answer, message):
    with pytest.raises(BadInput, match=message):
        prepare(write_task(tmp_path, rows, answer=answer), context)


def test_messages_serve_as_prompt(context, tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "w1"}], "completion": [{"role": "assistant", "content": "w2"}]}]
    [asked] = prepare(write_task(tmp_path, rows), context).requests
    assert asked.prompts[0].tolist() == [2, 6, 4]


# --- through the whole evaluation ---------------------------------------------------------------------------


@pytest.mark.slow
def test_an_evaluation_with_generated_answers(make_tree, tmp_path):
    """Two workers or one, small batches or large: the same metrics and records."""
    from bft_ray.config import Config
    from bft_ray.evaluate.run import evaluate_model

    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"w{i} w3", "completion": f"w{i} w{i + 1}"}) for i in range(24)))
    names = tmp_path / "names.jsonl"
    names.write_text("\n".join(json.dumps({"prompt": f"w{i}", "gold_name": f"w{i} w9"}) for i in range(10, 22)))
    sampled = {"temperature": 0.9, "top_p": 0.9, "num_samples": 2, "max_new_tokens": 6}
    tasks = [
        {"kind": "generation", "name": "greedy", "path": str(path), "decoding": {"max_new_tokens": 8}},
        {"kind": "generation", "name": "sampled", "path": str(path), "decoding": sampled},
        {"kind": "names", "path": str(names), "prefix": "w50 ", "decoding": {"max_new_tokens": 4}},
    ]
    results = []
    for num_workers, batch_tokens in [(1, 2048), (2, 128)]:
        config = make_tree(
            evaluation={"tasks": tasks, "batch_tokens": batch_tokens}, cluster={"num_workers": num_workers}
        )
        results.append(evaluate_model(Config(**config)))
    one, two = results
    assert {"greedy/exact_match", "sampled/token_f1", "names/probability", "names/rouge_l"} <= set(one.metrics)
    assert one.metrics == pytest.approx(two.metrics, rel=1e-5)
    generated = [[record for record in own.records if record["set"] != "names"] for own in results]
    generated = [[record for record in own if record["set"] != "validation"] for own in generated]
    assert len(generated[0]) == 48 and generated[0] == generated[1]
