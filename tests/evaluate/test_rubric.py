"""Rubric judging: scores by hand, and a judge behind a local HTTP server, faults included."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bft_ray.config import DataConfig, SourceConfig
from bft_ray.config.metrics import describe
from bft_ray.config.tasks import Decoding, JudgeConfig, RubricTask
from bft_ray.data.rows import Row
from bft_ray.errors import BadInput, BftError
from bft_ray.evaluate.clients.judge import Budget, check_judge, is_loopback, judge_all, parse_reply
from bft_ray.evaluate.engine.request import Context
from bft_ray.evaluate.tasks.rubric import RubricItem, agreement, item_columns, prepare, question, read_rubrics
from tests.support.tiny_tokenizer import tiny_tokenizer

NONSENSE = "I would say that it does."
YES, NO = '{"criteria_met": true, "explanation": "it does"}', 'Well: ```json\n{"criteria_met": false}\n```'


class Endpoint:
    """Chat completions on 127.0.0.1.

    Args:
        behave: (criterion, how often it was asked, this time counted) -> what to do: text of the answer, a status
            code, a tuple (status, headers), "hang", "drip" or "close".
    """

    def __init__(self, behave):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                material = body["messages"][-1]["content"]
                criterion = material.partition("<criterion>\n")[2].partition("\n</criterion>")[0]
                with endpoint.lock:
                    endpoint.asked[criterion] += 1
                    endpoint.requests.append((self.path, dict(self.headers), body))
                    endpoint.running += 1
                    endpoint.most = max(endpoint.most, endpoint.running)
                    count = endpoint.asked[criterion]
                said = behave(criterion, count)
                with endpoint.lock:
                    endpoint.running -= 1  # before the answer, after which the next one may come at once
                with contextlib.suppress(OSError):  # the other side has gone
                    self.answer(said)

            do_GET = do_POST

            def answer(self, act):
                if act == "hang":
                    endpoint.released.wait(5)
                    return
                if act == "close":
                    self.connection.close()
                    return
                status, headers = act if isinstance(act, tuple) else (act, {}) if isinstance(act, int) else (200, {})
                content = json.dumps({"choices": [{"message": {"role": "assistant", "content": act}}]}).encode()
                if status != 200:
                    content = b'{"error": "no"}'
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if act == "drip":
                    while not endpoint.released.wait(0.05):
                        self.wfile.write(b" ")
                    return
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.asked: Counter[str] = Counter()
        self.requests: list[tuple[str, dict, dict]] = []
        self.running = self.most = 0
        self.lock, self.released = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve():
    """A function that starts an endpoint."""
    endpoints = []

    def start(behave):
        endpoints.append(Endpoint(behave))
        return endpoints[-1]

    yield start
    for endpoint in endpoints:
        endpoint.close()


@pytest.fixture
def context(tiny_data):
    data = DataConfig(train=[SourceConfig(path=str(tiny_data))], max_length=64, micro_batch_tokens=64)
    return Context(tiny_tokenizer(), data, 64, 0)


def judge(endpoint, **settings) -> JudgeConfig:
    return JudgeConfig(**{"url": endpoint.url, "model": "judge", "retries": 0, "timeout_s": 5.0, **settings})


def ask(config: JudgeConfig, criteria: list[str], limit: int = 1000, cache: Path | None = None):
    budget = Budget(limit)
    questions = [question("the gene?", "it binds", criterion) for criterion in criteria]
    return *judge_all(config, questions, budget, cache, backoff_s=0.01), budget


# --- one judge ----------------------------------------------------------------------------------------------


def test_what_is_asked_and_answered(serve, monkeypatch):
    endpoint = serve(lambda criterion, _: YES if criterion == "good" else NO)
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # this machine is reached directly
    verdicts, reasons, budget = ask(judge(endpoint, api_key_env="JUDGE_KEY"), ["good", "bad", "good"])
    assert verdicts == [True, False, True] and not reasons and budget.used == 3
    for path, headers, body in endpoint.requests:
        assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer s3cret"
        assert (body["model"], body["temperature"]) == ("judge", 0)
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert "the gene?" in body["messages"][1]["content"] and "it binds" in body["messages"][1]["content"]
    ask(judge(endpoint), ["good"])
    assert "Authorization" not in endpoint.requests[-1][1]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (500, "HTTP 500"),
        (503, "HTTP 503"),
        ((429, {"Retry-After": "0"}), "HTTP 429"),
        (NONSENSE, "no verdict in its answer"),
        ("", "no verdict in its answer"),
        ("close", "no connection"),
        ("hang", "timeout"),
        ("drip", "timeout"),
    ],
    ids=str,
)
def test_a_fault_is_tried_again_and_then_counted(serve, first, reason):
    recovers = serve(lambda _, count: first if count == 1 else YES)
    verdicts, reasons, budget = ask(judge(recovers, retries=2, timeout_s=0.4), ["a"])
    assert (verdicts, dict(reasons), budget.used) == ([True], {}, 2)
    fails = serve(lambda *_: first)
    verdicts, reasons, budget = ask(judge(fails, retries=1, timeout_s=0.4), ["a"])
    assert (verdicts, dict(reasons), budget.used) == ([None], {reason: 1}, 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_final(serve, status):
    endpoint = serve(lambda *_: status)
    verdicts, reasons, budget = ask(judge(endpoint, retries=3), ["a"])
    assert (verdicts, dict(reasons), budget.used) == ([None], {f"HTTP {status}": 1}, 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(serve, status):
    elsewhere = serve(lambda *_: YES)
    endpoint = serve(lambda *_: (status, {"Location": elsewhere.url + "/chat/completions"}))
    verdicts, reasons, _ = ask(judge(endpoint, retries=3), ["a"])
    assert (verdicts, dict(reasons)) == ([None], {f"HTTP {status}": 1})
    assert not elsewhere.requests and len(endpoint.requests) == 1


def test_requests_run_side_by_side_and_no_more_of_them(serve):
    def slowly(*_):
        time.sleep(0.1)
        return YES

    endpoint = serve(slowly)
    verdicts, _, _ = ask(judge(endpoint, concurrency=4), [f"c{i}" for i in range(16)])
    assert verdicts == [True] * 16 and 2 <= endpoint.most <= 4


def test_the_endpoint_says_how_long_to_wait(serve):
    endpoint = serve(lambda _, count: (429, {"Retry-After": "1"}) if count == 1 else YES)
    start = time.monotonic()
    assert ask(judge(endpoint, retries=1), ["a"])[0] == [True]
    assert time.monotonic() - start >= 1


def test_a_judge_that_never_answers_is_given_up(serve):
    endpoint = serve(lambda *_: 500)
    verdicts, reasons, _ = ask(judge(endpoint, retries=1, concurrency=1), [f"c{i}" for i in range(50)])
    assert verdicts == [None] * 50 and len(endpoint.requests) == 32
    assert reasons == {"HTTP 500": 16, "judge given up": 34}


def test_the_cache_keeps_truth_values_alone(serve, tmp_path):
    endpoint = serve(lambda criterion, _: {"a": YES, "b": NO}.get(criterion, NONSENSE))
    cache = tmp_path / "verdicts"
    assert ask(judge(endpoint), ["a", "b", "c"], cache=cache)[0] == [True, False, None]
    verdicts, _, budget = ask(judge(endpoint), ["a", "b", "c"], cache=cache)
    assert (verdicts, budget.used) == ([True, False, None], 1)
    assert ask(judge(endpoint, model="other"), ["a"], cache=cache)[2].used == 1  # another judge has its own
    files = [path for path in cache.rglob("*") if path.is_file()]
    assert sorted(json.loads(path.read_text())["criteria_met"] for path in files) == [False, True, True]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    for path in files:
        path.write_text('{"criteria_met"')  # cut off: asked again
    assert ask(judge(endpoint), ["a", "b"], cache=cache)[::2][0] == [True, False]


@pytest.mark.parametrize("is_full", [True, False], ids=["full", "a file in the way"])
def test_a_verdict_counts_that_cannot_be_kept(serve, tmp_path, caplog, monkeypatch, is_full):
    def no_room(part, place):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if is_full:
        monkeypatch.setattr(os, "replace", no_room)
        cache = tmp_path / "verdicts"
    else:
        (tmp_path / "file").touch()
        cache = tmp_path / "file" / "verdicts"
    endpoint = serve(lambda criterion, _: YES if criterion == "c0" else NO)
    verdicts, reasons, budget = ask(judge(endpoint, retries=3), ["c0", "c1", "c2", "c3"], cache=cache)
    assert (verdicts, dict(reasons), budget.used) == ([True, False, False, False], {}, 4)
    [warning] = [record.getMessage() for record in caplog.records]
    assert str(cache) in warning and os.strerror(errno.ENOSPC if is_full else errno.ENOTDIR) in warning
    assert not list(tmp_path.rglob("*.part"))


def test_the_budget_is_never_passed(serve, tmp_path):
    endpoint = serve(lambda _, count: 500 if count == 1 else YES)
    config = judge(endpoint, retries=5, concurrency=4)
    verdicts, reasons, budget = ask(config, [f"c{i}" for i in range(20)], limit=7, cache=tmp_path)
    assert len(endpoint.requests) == budget.used == 7 and budget.is_exhausted
    assert reasons["budget used up"] == verdicts.count(None)
    again, _, budget = ask(config, [f"c{i}" for i in range(20)], limit=40, cache=tmp_path)
    assert again == [True] * 20 and not budget.is_exhausted


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (YES, True),
        (NO, False),
        ('{"a": {} } {"criteria_met": true}', True),
        ('{"criteria_met": "true"}', None),
        ('{"criteria_met": 1}', None),
        ('{"criteria_met": null}', None),
        ('{"criteria_met": tru', None),
        ("true", None),
        ("", None),
        (None, None),
        ("{" * 5000, None),
    ],
)
def test_what_counts_as_a_verdict(text, verdict):
    assert parse_reply(json.dumps({"choices": [{"message": {"content": text}}]}).encode()) is verdict


@pytest.mark.parametrize("text", ["{" * 2**20, '{"' * 2**19, '{ "a": ' * 2**17], ids=["braces", "names", "nested"])
def test_a_reply_of_braces_is_tried_a_hundred_times_at_most(monkeypatch, text):
    raw_decode, starts = json.JSONDecoder.raw_decode, []

    def counted(decoder, content, idx=0):
        starts.append(idx)
        assert len(starts) <= 1 + 100  # the reply itself, and what is in its text
        return raw_decode(decoder, content, idx)

    reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    assert parse_reply(reply) is None and starts


@pytest.mark.parametrize("much", ["\\frac{a}{b} ", '{"step": 1} '])
def test_a_verdict_is_found_at_either_end(much):
    for text in (
        f"{YES} {much * 5000}",
        f"{much * 5000} {YES}",
        f'{much * 5000} {{\n "x": {{}}, "criteria_met": true}}',
    ):
        assert parse_reply(json.dumps({"choices": [{"message": {"content": text}}]}).encode()) is True


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"choices": []}', b'{"choices": [{}]}', b"3", b"[" * 100_000]
)
def test_no_completion_no_verdict(content):
    assert parse_reply(content) is None


# --- consent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://localhost/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://127.9.9.9/", True),
        ("https://api.example.com/v1", False),
        ("http://10.0.0.1/v1", False),
        ("http://0.0.0.0/v1", False),
        ("http://127.0.0.1.example.com/", False),
        ("http://localhost.example.com/", False),
        ("http://2130706433/", False),
    ],
)
def test_consent_is_needed_beyond_this_machine(url, is_here):
    assert is_loopback(url) is is_here
    config = JudgeConfig(url=url, model="m")
    check_judge(config, True, "judge")
    if is_here:
        check_judge(config, False, "judge")
    else:
        with pytest.raises(BadInput, match=r"judge.url.*consent must be true"):
            check_judge(config, False, "judge")


def test_judges_are_checked(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for settings, message in [
        ({"url": "127.0.0.1:8000"}, r"judge.url.*an http or https URL"),
        ({"url": "file:///etc/passwd"}, r"an http or https URL"),
        ({"url": "http://me:s3cret@127.0.0.1/"}, r"a URL with a password"),
        ({"url": "http://127.0.0.1/", "api_key_env": "NO_SUCH_KEY"}, r"judge.api_key_env` is 'NO_SUCH_KEY'"),
    ]:
        with pytest.raises(BadInput, match=message) as caught:
            check_judge(JudgeConfig(model="m", **settings), True, "judge")
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://[::1", r"an http or https URL: Invalid IPv6 URL\. For example"),
        (
            "http://127.0.0.1:99999/v1",
            r"is 'http://127.0.0.1:99999/v1', but must be an http or https URL: Port out of range",
        ),
        ("http://127.0.0.1:port/v1", r"an http or https URL: Port could not be cast"),
        ("http://127.0.0.1:0/v1", r"a host and a port that exist"),
        ("http://127.0.0.1/v1\n", r"one word of ASCII. Remove spaces and line ends"),
        ("http://127.0.0.1/\x01v1", r"one word of ASCII"),
        ("http://127.0.0.1/v 1", r"one word of ASCII"),
        (" http://127.0.0.1/v1", r"one word of ASCII"),
        ("http://127.0.0.1/癌", r"one word of ASCII"),
        ("http://a..b/v1", r"an http or https URL: "),
        ("http://a%0Ab/v1", r"a host and a port that exist"),
        ("http://me:s3cret@[::1", r"is 'an address with @ or \?', but must be an http or https URL"),
        ("http://me:s3cret@127.0.0.1/\n", r"is 'an address with @ or \?'"),
        ("ftp://me:s3cret@127.0.0.1/", r"a URL with a password"),
        ("http://127.0.0.1:99999/v1?key=s3cret", r"is 'an address with @ or \?'"),
        ("http://me@127.0.0.1:s3cret/v1", r"it cannot be read as one"),
    ],
)
def test_a_url_that_no_request_can_be_sent_to(url, message):
    with pytest.raises(BadInput, match=rf"judge\.url` .*{message}") as caught:
        check_judge(JudgeConfig(url=url, model="m"), True, "judge")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("key", ["s3cret\n", "s3c ret", "s3cret\x7f", "s3crét"])
def test_a_key_that_no_header_can_hold(monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    config = JudgeConfig(url="http://127.0.0.1/v1", model="m", api_key_env="JUDGE_KEY")
    with pytest.raises(
        BadInput, match=r"judge.api_key_env` is 'JUDGE_KEY', .*one word of ASCII.*Set it anew"
    ) as caught:
        check_judge(config, True, "judge")
    assert "s3c" not in str(caught.value)


def test_a_key_in_place_of_its_name_is_not_shown():
    config = JudgeConfig(url="http://127.0.0.1/v1", model="m", api_key_env="sk-s3cret")
    with pytest.raises(BadInput, match=r"judge.api_key_env` is '\*\*\*', .*never the key") as caught:
        check_judge(config, True, "judge")
    assert "s3cret" not in str(caught.value)


# --- scores -------------------------------------------------------------------------------------------------


def item(*points: float) -> RubricItem:
    return RubricItem(Row("i", "f:1", prompt="?"), tuple((f"c{i}", point) for i, point in enumerate(points)))


def test_scores_by_hand():
    items = [item(5, 3, -4), item(2), item(1, -6)]
    first = [True, False, True, True, False, True]
    second = [True, True, False, True, True, None]
    texts = [["x"]] * 3
    columns, tags = item_columns(items, [first], texts)
    assert tags == [{}, {}, {}]
    assert columns["rubric_score"] == pytest.approx([1 / 8, 1, -6])
    assert columns["criteria_met"] == pytest.approx([2 / 3, 1, 1 / 2])
    both, _ = item_columns(items, [first, second], texts)
    assert both["rubric_score"][:2] == pytest.approx([(1 / 8 + 1) / 2, 1]) and np.isnan(both["rubric_score"][2])
    samples, _ = item_columns([item(5, 3, -4)], [[True, False, True, True, True, False]], [["x", "y"]])
    assert samples["rubric_score"] == pytest.approx([(1 / 8 + 1) / 2])


def test_agreement_by_hand():
    # 4 of 6 agree; by chance 1/2 * 1/2 + 1/2 * 1/2
    first, second = [True, True, True, False, False, False, None], [True, True, False, False, False, True, True]
    assert agreement("r", first, second) == pytest.approx({"r/judge_agreement": 4 / 6, "r/judge_kappa": 1 / 3})
    from sklearn.metrics import cohen_kappa_score

    draw = np.random.default_rng(0)
    a, b = (draw.random((2, 50)) < 0.3).tolist()
    assert agreement("r", a, b)["r/judge_kappa"] == pytest.approx(cohen_kappa_score(a, b))
    assert agreement("r", [True, True], [True, True]) == {"r/judge_agreement": 1.0}
    assert agreement("r", [None], [True]) == {}


# --- the task -----------------------------------------------------------------------------------------------

ROWS = [
    {
        "id": "a",
        "prompt": "the gene?",
        "rubric": [{"criterion": "yes", "points": 5}, {"criterion": "no", "points": -2}],
    },
    {
        "prompt_id": "b",
        "prompt": [{"role": "user", "content": "cells?"}],
        "rubrics": [{"criterion": "no", "points": 3}],
    },
    {
        "id": "c",
        "prompt": "the protein?",
        "rubric": [{"criterion": "yes", "points": 1}, {"criterion": "x", "points": 1}],
    },
]


def by_name(criterion: str, _: int) -> str:
    return {"yes": YES, "no": NO}.get(criterion, NONSENSE)


def write_task(folder, judges, rows=ROWS, **settings) -> RubricTask:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return RubricTask(name="health", path=str(path), judges=judges, **settings)


def answers(context, *texts: str) -> list[list[list[np.ndarray]]]:
    return [[[np.array(context.tokenizer.encode(text, add_special_tokens=False), np.int32)] for text in texts]]


def test_a_whole_task(serve, context, tmp_path):
    endpoint = serve(by_name)
    other = serve(lambda criterion, count: YES if criterion == "yes" and count == 1 else by_name(criterion, count))
    task = write_task(tmp_path, [judge(endpoint), judge(other)], cache=str(tmp_path / "cache"))
    prepared = prepare(task, context)
    assert not endpoint.requests  # nothing is sent before there are answers
    [asked] = prepared.requests
    assert asked.ids == ["a", "b", "c"] and asked.decoding.max_new_tokens == 512
    assert context.tokenizer.decode(asked.prompts[0]).endswith("the gene?\n")
    measured = prepared.finish(answers(context, "it binds", "", "in cells"))
    metrics = measured.metrics
    assert metrics["health/rubric_score"] == pytest.approx((1 + 0) / 2)  # c has a criterion without verdict
    assert [record.get("rubric_score") for record in measured.records] == [1, 0, None]
    assert (metrics["health/num_unjudged"], metrics["health/num_empty"], metrics["health/num_items"]) == (2, 1, 3)
    assert (metrics["health/judge_agreement"], metrics["health/judge_kappa"]) == (1, 1)
    assert "health/rubric_score_se" in metrics and all(describe(name) for name in metrics)
    before = len(endpoint.requests)
    assert prepared.finish(answers(context, "it binds", "", "in cells")).metrics == metrics
    assert len(endpoint.requests) == before + 1  # only what had no verdict


def test_the_mean_is_clipped_not_the_item(serve, context, tmp_path):
    endpoint = serve(lambda *_: YES)
    rows = [{"prompt": "?", "rubric": [{"criterion": "x", "points": 1}, {"criterion": "y", "points": -9}]}]
    measured = prepare(write_task(tmp_path, [judge(endpoint)], rows), context).finish(answers(context, "cells"))
    assert measured.metrics["health/rubric_score"] == 0 and measured.records[0]["rubric_score"] == -8


def test_too_little_judged_is_no_score(serve, context, tmp_path, caplog):
    endpoint = serve(lambda *_: NONSENSE)
    prepared = prepare(write_task(tmp_path, [judge(endpoint)]), context)
    with pytest.raises(BftError, match=r"^3 of 3 items could not be judged whole, so evaluation.tasks.health has no"):
        prepared.finish(answers(context, "it binds", "cells", "protein"))
    assert "no verdict in its answer" in caplog.text
    assert "binds" not in caplog.text and "gene?" not in caplog.text


def test_a_budget_that_stops(serve, context, tmp_path):
    endpoint = serve(lambda *_: YES)
    task = write_task(tmp_path, [judge(endpoint, concurrency=1)], max_requests=3)
    with pytest.raises(BadInput, match=r"max_requests` is 3, but must be at least 5, one request a criterion"):
        prepare(task, context)
    prepared = prepare(task.model_copy(update={"cache": str(tmp_path / "cache")}), context)
    said = answers(context, "it binds", "cells", "protein")
    with pytest.raises(
        BftError,
        match=r"^the budget of 3 requests \(evaluation.tasks.health.max_requests\) is used up with 3 of 5 verdicts.*run again",
    ):
        prepared.finish(said)
    assert prepared.finish(said).metrics["health/num_unjudged"] == 0
    assert len(endpoint.requests) == 5


@pytest.mark.parametrize("cache", ["file", "file/below/it", "s3://bucket/verdicts", "~no_such_user/v", "n" * 300])
def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_generated(context, tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    task = write_task(tmp_path, [JudgeConfig(url="http://127.0.0.1/", model="m")], cache=cache)
    with pytest.raises(BadInput, match=r"evaluation\.tasks\.health\.cache` .* must be a folder .*Name a"):
        prepare(task, context)
    prepare(task.model_copy(update={"cache": str(tmp_path / "new" / "verdicts")}), context)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "rubric": ROWS[0]["rubric"]}, r"rows.jsonl:1 prompt"),
        ({"prompt": [{"role": "user"}], "rubric": ROWS[0]["rubric"]}, r"rows.jsonl:1 prompt.0"),
        ({"prompt": "?"}, r"rows.jsonl:1 rubric` is 'missing'"),
        ({"prompt": "?", "rubric": []}, r"rows.jsonl:1 rubric"),
        ({"prompt": "?", "rubric": ["x"]}, r"rows.jsonl:1 rubric.0"),
        (
            {"prompt": "?", "rubric": [{"criterion": "x", "points": "5"}]},
            r"rubric.0.points` is 'text', but must be a num",
        ),
        ({"prompt": "?", "rubric": [{"criterion": "x", "points": 0}]}, r"rubric.0.points` is 0"),
        ({"prompt": "?", "rubric": [{"criterion": "x", "points": True}]}, r"rubric.0.points"),
        (
            {"prompt": "?", "rubric": [{"criterion": "x", "points": -1}]},
            r"rubric` is 'criteria without positive points'",
        ),
    ],
)
def test_bad_rows_are_named(context, tmp_path, row, message):
    task = write_task(tmp_path, [JudgeConfig(url="http://127.0.0.1/", model="m")], [row])
    with pytest.raises(BadInput, match=message):
        read_rubrics(task, "field")


@pytest.mark.parametrize(
    ("points", "shown"),
    [
        ("1" + "0" * 400, r"10000.*0000"),
        ("1e308", r"1e\+308"),
        ("-1000001", "-1000001"),
        ("1e-320", "1e-320"),
        ("Infinity", "inf"),
    ],
)
def test_points_that_would_overflow_are_refused(tmp_path, points, shown):
    task = write_task(tmp_path, [JudgeConfig(url="http://127.0.0.1/", model="m")])
    criterion = '{"criterion": "x", "points": %s}'
    Path(task.path).write_text(f'{{"prompt": "?", "rubric": [{criterion % "5"}, {criterion % points}]}}')
    rule = "but must be a number from 1e-06 to 1,000,000, or the negative of one"
    with pytest.raises(
        BadInput, match=rf"rows\.jsonl:1 rubric\.1\.points` is {shown}, {rule}\. .*scale all points"
    ) as caught:
        read_rubrics(task, "field")
    assert len(str(caught.value)) < 400


def test_the_largest_and_smallest_points_have_a_score(tmp_path):
    task = write_task(tmp_path, [JudgeConfig(url="http://127.0.0.1/", model="m")])
    criteria = [{"criterion": "x", "points": points} for points in (1e-6, -1_000_000)]
    Path(task.path).write_text(json.dumps({"prompt": "?", "rubric": criteria}))
    columns, _ = item_columns(read_rubrics(task, "field"), [[False, True]], [["x"]])
    assert columns["rubric_score"] == pytest.approx([-1e12])


def test_nothing_is_sent_without_consent(context, tmp_path):
    task = write_task(tmp_path, [JudgeConfig(url="http://10.1.2.3/v1", model="m")])
    with pytest.raises(BadInput, match=r"evaluation.tasks.health.judges.0.url` is '10.1.2.3'.*consent: true"):
        prepare(task, context)
    prepare(task.model_copy(update={"consent": True}), context)


def test_sampled_answers_are_judged_each(serve, context, tmp_path):
    endpoint = serve(lambda *_: YES)
    decoding = Decoding(temperature=1, num_samples=2)
    prepared = prepare(write_task(tmp_path, [judge(endpoint)], ROWS[:1], decoding=decoding), context)
    one, two = answers(context, "it binds", "cells")[0]
    assert prepared.finish([[one + two]]).metrics["health/rubric_score"] == pytest.approx(3 / 5)
    assert len(endpoint.requests) == 4
