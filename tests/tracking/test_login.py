"""The login before MLflow's server, with a stand-in for what is behind it."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from bft_ray.tracking.login import Login

PASSWORD = "right"


async def behind(scope, receive, send) -> None:
    """What a login protects."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"behind"})


def ask(login: Login, headers: dict[str, str] | None = None, **scope: Any) -> tuple[Any, dict[str, str]]:
    """Status (or the message that closes a connection) and headers of the answer to one request."""
    sent: list[Any] = []

    async def send(message) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "scheme": "http"}
    whole |= {"server": ("127.0.0.1", 5000)} | scope
    whole["headers"] = [(key.encode(), value.encode()) for key, value in ({"host": "h:5000"} | (headers or {})).items()]
    asyncio.run(login(whole, None, send))  # type: ignore[arg-type]
    start = sent[0]
    found = {key.decode(): value.decode() for key, value in start.get("headers", [])}
    return start.get("status", start), found


def basic(text: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (basic("bft:right"), 200),
        (basic("bft:wrong"), 401),
        (basic("admin:right"), 401),
        (basic("bft:"), 401),
        ({"authorization": "Basic %%%"}, 401),
        ({"authorization": "Basic"}, 401),
        ({"authorization": "Bearer right"}, 200),
        ({"authorization": "Bearer rightt"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"cookie": "bft_ray_5000=right"}, 401),
        ({"cookie": ";;=\x7f"}, 401),
    ],
)
def test_the_password_and_nothing_else_opens(headers, status):
    login = Login(behind, PASSWORD)
    for path in ("/", "/health", "/static-files/x.js", "/api/2.0/mlflow/runs/search", "/none"):
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            got, answer = ask(login, headers, path=path, method=method)
            assert got == status
            assert ("www-authenticate" in answer) == (status == 401)


def test_a_websocket_is_closed():
    assert ask(Login(behind, PASSWORD), basic("bft:right"), type="websocket")[0]["type"] == "websocket.close"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://h:5000"}, 200),
        ({"origin": "http://h:5001"}, 403),  # another port of the same machine
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),  # a link in a mail
        (
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "origin": "http://evil.example"},
            403,
        ),  # a form
    ],
)
def test_pages_of_others_are_refused_though_the_browser_is_logged_in(headers, status):
    assert ask(Login(behind, PASSWORD), basic("bft:right") | headers)[0] == status
    assert ask(Login(behind, PASSWORD), headers)[0] == 401


def test_a_link_serves_once_and_its_browser_stays_logged_in():
    told: list[str] = []
    login = Login(behind, PASSWORD, told.append)
    (first,) = told
    assert ask(login)[0] == 401 and ask(login, query_string=b"token=")[0] == 401
    assert ask(login, query_string=f"token={first}x".encode())[0] == 401
    assert ask(login, query_string=f"token={first}".encode(), path="/api")[0] == 401
    assert len(told) == 1

    status, answer = ask(login, query_string=f"token={first}".encode())
    assert status == 200 and answer["content-type"].startswith("text/html") and first not in str(answer)
    assert "script-src 'sha256-" in answer["content-security-policy"]
    assert "HttpOnly" in answer["set-cookie"] and "SameSite=Lax" in answer["set-cookie"]
    cookie = {"cookie": "other=1; " + answer["set-cookie"].partition(";")[0]}
    assert ask(login, cookie, path="/api", method="POST")[0] == 200
    assert ask(login, cookie, server=("127.0.0.1", 5001))[0] == 401  # a server beside it has a session of its own
    assert ask(login, cookie | {"origin": "http://h:5001"})[0] == 403

    assert ask(login, query_string=f"token={first}".encode())[0] == 401, "it has been used"
    assert len(told) == 2 and told[1] != first
    assert ask(login, query_string=f"token={told[1]}".encode())[0] == 200  # for a second browser
