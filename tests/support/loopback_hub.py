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
from collections.abc import Iterator
from http.server import ThreadingHTTPServer

from tests.support.answering import Handler, serving

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


class _Handler(Handler):
    def _reply(self) -> None:
        self._body = self.body()
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {self.path}")  # type: ignore[attr-defined]
        parts = path.strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if is_api else parts
        parts = parts[1:] if parts[0] in ("datasets", "models") else parts
        if len(parts) < 2:
            return self.answer(404, b"{}")
        name, rest = "/".join(parts[:2]), parts[2:]
        if name == "lab/gated":
            code = 403 if self.headers.get("Authorization") else 401
            said = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to {name} is restricted."}
            return self.answer(code, b"{}", said)
        served = REPOSITORIES | self.server.more  # type: ignore[attr-defined]
        if name not in served:
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = served[name]
        if not is_api and rest[:1] == ["resolve"]:
            content = files.get("/".join(rest[2:]))
            if content is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.answer(200, content, {"ETag": f'"{hash(content):x}"', "X-Repo-Commit": COMMIT})
        return self._api(name, files, rest)

    def _api(self, name: str, files: dict[str, bytes], rest: list[str]) -> None:
        entries = [
            {"type": "file", "path": file, "size": len(content), "oid": f"{abs(hash(content)):040x}"[:40]}
            for file, content in files.items()
        ]
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            if below:
                return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return self.answer_json(entries)
        if rest[:1] == ["paths-info"]:
            return self.answer_json([each for each in entries if each["path"].encode() in self._body])
        if rest[:1] not in ([], ["revision"]):
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        info = {
            "id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": [],
            "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": file, "size": len(content)} for file, content in files.items()],
        }  # fmt: skip
        return self.answer_json(info)

    do_HEAD = do_GET = do_POST = _reply


@contextlib.contextmanager
def loopback_hub(more: dict[str, dict[str, bytes]] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(address, what was asked so far) while it runs.

    Args:
        more: further repositories, name -> files; may change while it runs.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.asked, server.more = [], {} if more is None else more  # type: ignore[attr-defined]
    with serving(server):
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
