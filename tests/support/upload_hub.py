"""A hub on this machine that takes models: what `huggingface_hub` asks when it makes a repository and uploads a folder."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Taken:
    """What the hub was given.

    Args:
        repositories: name -> private.
        files: path in the repository -> content.
        tokens: that came with the calls.
        refuses: status of every answer, where it is not 0.
    """

    address: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    refuses: int = 0


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        taken: Taken = self.server.taken  # type: ignore[attr-defined]
        body = self._body()
        taken.tokens.add(self.headers.get("Authorization", ""))
        if taken.refuses:
            return self._json({"error": "no"}, taken.refuses)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            taken.repositories[name] = asked.get("visibility") == "private" or asked.get("private") is True
            return self._json({"url": f"{taken.address}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    taken.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self._json(
                {
                    "commitUrl": f"{taken.address}/{next(iter(taken.repositories))}/commit/abc",
                    "commitOid": "abc",
                    "success": True,
                }
            )
        return self._json({}, 404)

    def do_GET(self) -> None:
        self._json({"id": "lab/model", "sha": "abc", "siblings": []})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any, code: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def upload_hub() -> Iterator[Taken]:
    """What it was given so far, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.taken = Taken(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.taken  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
