"""A hub on this machine that takes models: what `huggingface_hub` asks when it makes a repository and uploads a folder."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.support.answering import Handler, serving


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


class _Handler(Handler):
    def do_POST(self) -> None:
        taken: Taken = self.server.taken  # type: ignore[attr-defined]
        body = self.body()
        taken.tokens.add(self.headers.get("Authorization", ""))
        if taken.refuses:
            return self.answer_json({"error": "no"}, taken.refuses)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            taken.repositories[name] = asked.get("visibility") == "private" or asked.get("private") is True
            return self.answer_json({"url": f"{taken.address}/{name}", "name": name, "id": name})
        if self.path == "/api/validate-yaml":
            return self.answer_json({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer_json({"files": files})
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    taken.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.answer_json(
                {
                    "commitUrl": f"{taken.address}/{next(iter(taken.repositories))}/commit/abc",
                    "commitOid": "abc",
                    "success": True,
                }
            )
        return self.answer_json({}, 404)

    def do_GET(self) -> None:
        self.answer_json({"id": "lab/model", "sha": "abc", "siblings": []})


@contextlib.contextmanager
def upload_hub() -> Iterator[Taken]:
    """What it was given so far, while it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.taken = Taken(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    with serving(server):
        yield server.taken  # type: ignore[attr-defined]
