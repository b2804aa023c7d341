"""A hub of datasets and models on this machine, as a thread of a test.

It answers what `datasets` and `transformers` ask of the hub's API for

- `lab/open`: files of two splits, `lab/two`: two configurations, each a file,
- `lab/gated`: 403 with a token, 401 without one, as the hub does it for a gated repository,
- what a test adds, files of a model such as `lab/model`,
- and 401 for any other, as the hub does it for one that does not exist.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _lines(split: str, num: int) -> bytes:
    rows = [{"question": f"{split} question {i}?", "answer": f"{split} answer {i}"} for i in range(num)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


_TWO = b"""---
configs:
- config_name: easy
  data_files: easy.jsonl
- config_name: hard
  data_files: hard.jsonl
---
"""
REPOSITORIES = {
    "lab/open": {"train.jsonl": _lines("train", 3), "test.jsonl": _lines("test", 2)},
    "lab/two": {"README.md": _TWO, "easy.jsonl": _lines("easy", 2), "hard.jsonl": _lines("hard", 4)},
}


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        self._body = self.rfile.read(size)
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        parts = path.strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        parts = parts[1:] if parts[0] in ("datasets", "models") else parts
        if len(parts) < 2:
            return self._send(404, b"{}", with_body)
        name, rest = "/".join(parts[:2]), parts[2:]
        if name == "lab/gated":
            code = 403 if self.headers.get("Authorization") else 401
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted."}
            return self._send(code, b"{}", with_body, said)
        served = REPOSITORIES | self.server.more  # type: ignore[attr-defined]
        if name not in served:
            return self._send(401, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})
        files = served[name]
        if not is_api and rest[:1] == ["resolve"]:
            content = files.get("/".join(rest[2:]))
            if content is None:
                return self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            return self._send(200, content, with_body, {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": COMMIT})
        return self._api(name, files, rest, with_body)

    def _api(self, name: str, files: dict[str, bytes], rest: list[str], with_body: bool) -> None:
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": f"{abs(hash(content)):040x}"[:40]}
            for file, content in files.items()
        ]
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            if below:
                return self._send(404, b"{}", with_body, {"X-Error-Code": "EntryNotFound"})
            return self._json(entries, with_body)
        if rest[:1] == ["paths-info"]:
            return self._json([each for each in entries if each["path"].encode() in self._body], with_body)
        if rest[:1] not in ([], ["revision"]):
            return self._send(404, b"{}", with_body, {"X-Error-Code": "EntryNotFound"})
        info = {
            "id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": [],
            "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": file, "size": len(content)} for file, content in files.items()],
        }  # fmt: skip
        return self._json(info, with_body)

    def _json(self, value: Any, with_body: bool) -> None:
        self._send(200, json.dumps(value).encode(), with_body, {"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextlib.contextmanager
def loopback_hub(more: dict[str, dict[str, bytes]] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(address, what was asked so far) while it runs.

    Args:
        more: further repositories, name -> files; may change while it runs.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked, server.more = [], {} if more is None else more  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
