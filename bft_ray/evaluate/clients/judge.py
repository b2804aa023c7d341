"""A judge behind an OpenAI-compatible endpoint: does this answer meet this criterion?

One request a criterion (`POST <url>/chat/completions`, temperature 0), answered with the JSON object
`{"criteria_met": true | false, "explanation": ...}`. What else comes back is no verdict: it is tried again, with waits
that grow, at most `retries` times, and then counted as unjudged; never as "not met".

Answers may concern patients: an endpoint that is not on this machine needs `consent`, redirects are not followed,
requests to this machine pass by any proxy, and the cache keeps hashes and truth values alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bft_ray.config.tasks import JudgeConfig
from bft_ray.errors import BadInput
from bft_ray.places.cache import require_local, try_folder
from bft_ray.places.kept import read_kept, sealed

log = logging.getLogger(__name__)

_LONGEST_ANSWER = 2**20  # bytes of a response that are read
_LONGEST_WAIT_S = 60.0  # between two tries
_FAILURES_IN_A_ROW = 16  # questions in vain, all their tries, after which a judge is given up
_OBJECT = re.compile(r'\{\s*"')  # begins so, if it has a name: braces of formulas and of code are passed over
_TRIED = 50  # of these, from either end of a reply
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_RETRIED = {408, 409, 425, 429}  # and all of 500 and more

Messages = list[dict[str, str]]


class Budget:
    """Requests that may still be sent, over all judges and threads."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self.is_exhausted = False  # something was left unasked
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more request may be sent; counts it."""
        with self._lock:
            if self.used >= self.limit:
                self.is_exhausted = True
                return False
            self.used += 1
            return True


@dataclass(frozen=True)
class Reply:
    """A verdict, or None and why there is none; `is_final`: another try would not help."""

    verdict: bool | None
    reason: str = ""
    is_final: bool = False
    wait_s: float = 0.0  # that the endpoint asks for


def check_judge(config: JudgeConfig, consent: bool, field: str) -> None:
    """Check the settings of a judge, before anything is sent and before a model is loaded.

    Raises:
        BadInput: not an http(s) URL that a request can be sent to, a URL with a password, an endpoint that is not on
            this machine without `consent`, or a key that the environment lacks or that no header can hold.
    """
    host = _host(config.url, f"{field}.url")
    if not is_loopback(config.url) and not consent:
        raise BadInput(
            f"{field}.url",
            host,
            "on this machine (127.0.0.1, localhost), or consent must be true",
            "Answers may concern patients: set consent: true only if they may be sent there.",
        )
    if config.api_key_env is not None:
        _check_key(config.api_key_env, f"{field}.api_key_env")


def _host(url: str, field: str) -> str:
    """The host of a URL that a request can be sent to; BadInput where there is none. No error shows a password."""
    shown = "an address with @ or ?" if "@" in url or "?" in url else url  # what stands there may be secret
    if not _is_one_word(url):
        remedy = "Remove spaces and line ends, and write other letters as %XX."
        raise BadInput(field, shown, "one word of ASCII", remedy)
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")  # as a connection does
    except ValueError as error:
        remedy = "For example http://127.0.0.1:8000/v1, or http://[::1]:8000/v1."
        reason = "it cannot be read as one" if shown != url else str(error)
        raise BadInput(field, shown, f"an http or https URL: {reason}", remedy) from None
    if parts.username or parts.password:
        raise BadInput(field, "a URL with a password", "one without", f"Use {field.removesuffix('url')}api_key_env.")
    if parts.scheme not in ("http", "https") or not host:
        raise BadInput(field, shown, "an http or https URL", "For example http://127.0.0.1:8000/v1.")
    if port == 0 or not _is_one_word(urllib.parse.unquote(host)):
        raise BadInput(field, shown, "the URL of a host and a port that exist", "For example http://127.0.0.1:8000/v1.")
    return host


def _check_key(variable: str, field: str) -> None:
    """BadInput where the environment has no key of this name, or one that no header can hold. The key is never shown."""
    shown = variable if _VARIABLE.fullmatch(variable) else "***"  # it may be the key itself, by mistake
    key = os.environ.get(variable)
    if not key:
        remedy = "Export the key under a name, and give that name here, never the key."
        raise BadInput(field, shown, "a variable of the environment that holds the key", remedy)
    if not _is_one_word(key):
        remedy = "Set it anew: a file that was read into it may end in a new line."
        raise BadInput(field, shown, "a variable that holds one word of ASCII, without spaces or line ends", remedy)


def _is_one_word(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def judge_all(
    config: JudgeConfig, questions: Sequence[Messages], budget: Budget, cache: Path | None, backoff_s: float = 1.0
) -> tuple[list[bool | None], Counter[str]]:
    """Verdicts in order, None where there is none, and how often for which reason.

    Known verdicts come from the cache and cost nothing; new ones go there at once. Nothing is sent beyond the budget,
    nor to a judge that has failed many times in a row.

    Args:
        cache: folder; None: no cache.
        backoff_s: wait before the first repetition; doubled for each further one.
    """
    judge = _Judge(config, budget, cache, backoff_s)
    pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix="judge")
    try:
        replies = list(pool.map(judge.ask, questions))
    finally:  # an interrupt waits for the requests on their way, and sends no more
        judge.stop.set()
        pool.shutdown(cancel_futures=True)
    return [reply.verdict for reply in replies], Counter(reply.reason for reply in replies if reply.verdict is None)


class _Judge:
    """One endpoint, its cache, and how it has fared lately."""

    def __init__(self, config: JudgeConfig, budget: Budget, cache: Path | None, backoff_s: float):
        self.config, self.budget, self.cache, self.backoff_s = config, budget, cache, backoff_s
        handlers: list[Any] = [_NoRedirect()]
        if is_loopback(config.url):
            handlers.append(urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)
        self.num_failed = 0
        self.stop = threading.Event()
        self._is_told = False  # that the cache cannot be written
        self._lock = threading.Lock()

    def ask(self, messages: Messages) -> Reply:
        """One verdict, from the cache or the endpoint."""
        key = self._key(messages)
        if (known := read_verdict(self.cache, key)) is not None:
            return Reply(known)
        for attempt in range(self.config.retries + 1):
            if self.num_failed >= _FAILURES_IN_A_ROW:
                return Reply(None, "judge given up")
            if self.stop.is_set() or not self.budget.take():
                return Reply(None, "budget used up")
            reply = self._request(messages)
            if reply.verdict is not None:
                self.num_failed = 0
                self._keep(key, reply.verdict)
                return reply
            if reply.is_final or attempt == self.config.retries:
                break
            self.stop.wait(min(max(self.backoff_s * 2**attempt, reply.wait_s), _LONGEST_WAIT_S))
        self.num_failed += 1
        return reply

    def _keep(self, key: str, verdict: bool) -> None:
        """Write to the cache. Where that fails, such as on a full disk, the verdict still counts: it is paid for."""
        try:
            write_verdict(self.cache, key, verdict)
        except OSError as error:
            with self._lock:
                is_first, self._is_told = not self._is_told, True
            if is_first:
                log.warning(
                    "a verdict could not be kept in %s (%s). It counts, and the judge is asked on; a later run asks again "
                    "for what is not kept. Make room, or correct the rights of the folder.",
                    self.cache,
                    error.strerror or type(error).__name__,
                )

    def _key(self, messages: Messages) -> str:
        content = json.dumps([self.config.url, self.config.model, messages], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _request(self, messages: Messages) -> Reply:
        body = {"model": self.config.model, "messages": messages, "temperature": 0}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "bft-ray"}
        if self.config.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.config.api_key_env, '')}"
        request = urllib.request.Request(
            self.config.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        try:
            content = self._read(request)
        except urllib.error.HTTPError as error:
            error.close()
            is_final = error.code < 500 and error.code not in _RETRIED
            return Reply(None, f"HTTP {error.code}", is_final, _retry_after(error))
        except TimeoutError:
            return Reply(None, "timeout")
        except (OSError, urllib.error.URLError) as error:
            is_timeout = isinstance(getattr(error, "reason", None), TimeoutError)
            return Reply(None, "timeout" if is_timeout else "no connection")
        except Exception:  # any error that a broken server causes in http.client: counted, and never quoted
            return Reply(None, "no connection")
        verdict = parse_reply(content)
        return Reply(verdict, "" if verdict is not None else "no verdict in its answer")

    def _read(self, request: urllib.request.Request) -> bytes:
        """The body, within `timeout_s` in all: a server that drips a byte at a time does not hold a thread."""
        deadline = time.monotonic() + self.config.timeout_s
        content = b""
        with self.opener.open(request, timeout=self.config.timeout_s) as response:
            while chunk := response.read1(65536):
                content += chunk
                if time.monotonic() > deadline or len(content) > _LONGEST_ANSWER:
                    raise TimeoutError
        return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is a refusal: the answers go to the endpoint that was agreed to, or nowhere."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the endpoint asks to wait; 0 where it gives no seconds."""
    given = str(error.headers.get("Retry-After", "")) if error.headers else ""
    return float(given) if given.strip().isdigit() else 0.0


def parse_reply(content: bytes) -> bool | None:
    """The verdict in a chat completion: the first JSON object in its text whose `criteria_met` is true or false.

    Looked for among the first 50 places where an object with a name begins, and the last 50.
    """
    try:
        text = json.loads(content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    if not isinstance(text, str):
        return None
    decoder = json.JSONDecoder()
    for start in _both_ends([match.start() for match in _OBJECT.finditer(text)]):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("criteria_met"), bool):
            return found["criteria_met"]
    return None


def _both_ends(places: list[int]) -> list[int]:
    """The first and the last of many, in order: each costs a reading of the text, of up to 1 MiB."""
    return places if len(places) <= 2 * _TRIED else places[:_TRIED] + places[-_TRIED:]


# --- the cache: a file a verdict, named by a hash -----------------------------------------------------------


def check_cache(cache: str, field: str) -> None:
    """Check the folder of the cache, before anything is generated; leaves nothing.

    Raises:
        BadInput: one that could not be written once there are verdicts, or a URI.
    """
    require_local(field, cache)
    try:
        try_folder(Path(cache).expanduser())
    except (OSError, RuntimeError) as error:  # the latter of `~` without a home
        reason = getattr(error, "strerror", None) or str(error)
        rule = f"a folder that can be written, or that can be made: {reason}"
        raise BadInput(field, cache, rule, "Name another one, or null for none.") from None


def read_verdict(cache: Path | None, key: str) -> bool | None:
    """A verdict that is known; None where it is not, or its file is broken."""
    if cache is None:
        return None
    try:
        kept = read_kept(_place(cache, key), ["criteria_met"])
    except OSError:
        return None
    return kept["criteria_met"] if kept and isinstance(kept["criteria_met"], bool) else None


def write_verdict(cache: Path | None, key: str, verdict: bool) -> None:
    """Written whole or not at all, readable only by its owner. OSError where it cannot be."""
    if cache is None:
        return
    place = _place(cache, key)
    for folder in (cache, place.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = place.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(sealed(json.dumps({"criteria_met": verdict})))
        os.replace(part, place)
    except OSError:
        with contextlib.suppress(OSError):  # there may be no such file
            part.unlink()
        raise


def _place(cache: Path, key: str) -> Path:
    return cache / key[:2] / f"{key}.json"
