"""A login before everything that an MLflow server answers: an ASGI application around its own.

MLflow's plugin `basic-auth` leaves /health, /static... and /favicon.ico open, and MLflow takes requests from pages of any
port of this machine, which on a shared one are other people's. Here nothing of MLflow runs before the login.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

USER = "bft"
#: MLflow 3 opens as a page of agents and traces until a browser has chosen models; its pages keep the choice in this place.
#: A choice of the user's own stays
_SCRIPT = (
    "const place = 'mlflow.workflowType_v1';"
    "if (!localStorage.getItem(place)) localStorage.setItem(place, JSON.stringify('machine_learning'));"
    "location.replace('/' + location.hash);"
)
_WELCOME = f"<!doctype html><title>MLflow</title><script>{_SCRIPT}</script><noscript>MLflow needs scripts.</noscript>"
_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_OWN_SCRIPT = f"default-src 'none'; script-src 'sha256-{_DIGEST}'"


class Login:
    """Lets requests pass that carry the password; any other one gets 401, whatever its path.

    Args:
        app: what stands behind it.
        password: for Basic (with the user `bft`) and Bearer, as MLflow's clients send them.
        tell: where a browser shall log in by a link: gets a token for `/?token=...`, and the next one as soon as that is
            used, for each serves once. None: browsers ask for user and password.
    """

    def __init__(self, app: App, password: str, tell: Callable[[str], None] | None = None):
        self._app, self._password, self._tell = app, password, tell
        self._session, self._token = secrets.token_urlsafe(32), ""
        self._renew()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # MLflow has none
        elif self._takes_token(scope):
            await self._begin_session(scope, send)
        elif not self._is_known(scope):
            await self._refuse(send)
        elif _is_foreign(scope):
            await _answer(send, 403, "Another page's script has sent this.")
        else:
            await self._app(scope, receive, send)

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(32)
        if self._tell is not None:
            self._tell(self._token)

    def _takes_token(self, scope: Scope) -> bool:
        """Whether the link is asked for with the present token, which is then used up."""
        if self._tell is None or scope["method"] != "GET" or scope["path"] != "/":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not _equal(given, self._token):
            return False
        self._renew()
        return True

    async def _begin_session(self, scope: Scope, send: Send) -> None:
        """A cookie for this browser, then the page without the token in its address, showing models and not agents."""
        cookie = f"{_cookie_name(scope)}={self._session}; Path=/; HttpOnly; SameSite=Lax"
        headers = {"set-cookie": cookie, "content-type": "text/html; charset=utf-8"}
        await _answer(send, 200, _WELCOME, headers | {"content-security-policy": _OWN_SCRIPT})

    def _is_known(self, scope: Scope) -> bool:
        kind, _, value = _header(scope, b"authorization").partition(" ")
        if kind.lower() == "bearer":
            return _equal(value.strip(), self._password)
        if kind.lower() == "basic":
            return _equal(_decoded(value), f"{USER}:{self._password}")
        if self._tell is None:
            return False
        try:
            cookie = SimpleCookie(_header(scope, b"cookie")).get(_cookie_name(scope))
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, self._session)

    async def _refuse(self, send: Send) -> None:
        if self._tell is not None:
            text = "Open the link that `bft-ray ui` has printed last: each serves once."
            await _answer(send, 401, text, {"www-authenticate": "Bearer"})
            return
        text = "Log in: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        await _answer(send, 401, text, {"www-authenticate": 'Basic realm="MLflow", charset="UTF-8"'})


def _is_foreign(scope: Scope) -> bool:
    """Whether a page of another address has made the browser send this; other ports of this host are other addresses."""
    origin = _header(scope, b"origin")
    if origin:
        return origin != f"{scope['scheme']}://{_header(scope, b'host')}"
    follows_a_link = _header(scope, b"sec-fetch-mode") == "navigate"
    return _header(scope, b"sec-fetch-site") in ("cross-site", "same-site") and not follows_a_link


def _cookie_name(scope: Scope) -> str:
    """Browsers keep cookies by host alone: two of these servers on a machine must not share one."""
    return f"bft_ray_{(scope.get('server') or ('', 0))[1]}"


def _header(scope: Scope, name: bytes) -> str:
    return b"; ".join(value for key, value in scope["headers"] if key == name).decode("latin-1")


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


def _equal(given: str, right: str) -> bool:
    """In a time that tells nothing of how much of it is right."""
    return secrets.compare_digest(given.encode(), right.encode())


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    fixed = {"content-type": "text/plain; charset=utf-8", "cache-control": "no-store", "referrer-policy": "no-referrer"}
    whole = [(key.encode(), value.encode()) for key, value in (fixed | (headers or {})).items()]
    await send({"type": "http.response.start", "status": status, "headers": whole})
    await send({"type": "http.response.body", "body": text.encode()})
