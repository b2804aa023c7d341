"""`make audit`: a finding fails, an audit that could not take place says so and does not."""

from __future__ import annotations

import importlib.util
import json
import os

import pytest

from jobs import audit

CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI"}


def vulnerable(*fixes: str) -> dict:
    return {"name": "c", "version": "2", "vulns": [{"id": "CVE-2026-1", "fix_versions": list(fixes), "aliases": []}]}


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """A function: what pip-audit prints and its status -> our lines and status."""
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def run(output: str, status: int = 0, error: str = "") -> tuple[str, int]:
        (tmp_path / "out").write_text(output)
        script = f"#!/bin/sh\necho '{error}' >&2\ncat {tmp_path}/out\nexit {status}\n"
        (tmp_path / "pip-audit").write_text(script)
        (tmp_path / "pip-audit").chmod(0o755)
        ours = audit.main(tmp_path / "constraints.txt")
        return capsys.readouterr().out, ours

    return run


def report(*entries: dict) -> str:
    return json.dumps({"dependencies": entries, "fixes": []})


def test_what_is_known_fails_where_a_version_mends_it(said):
    assert said(report(CLEAN)) == ("audit: 1 packages, 0 known vulnerabilities\n", 0)
    text, status = said(report(CLEAN, SKIPPED, vulnerable("2.1", "3")), 1)
    assert status == 1 and text.splitlines() == [
        "audit: c 2: CVE-2026-1, mended in 2.1, 3: raise it in constraints.txt",
        "audit: 2 packages, 1 known vulnerabilities; PyPI did not answer for 1",
    ]
    text, status = said(report(vulnerable()), 1)
    assert status == 0 and "CVE-2026-1, no version mends it yet" in text


def test_what_could_not_be_asked_is_told_and_fails_nothing(said, monkeypatch):
    """pip-audit ends with 0 and "no known vulnerabilities" where PyPI knows no package, as without a network."""
    assert said(report(SKIPPED, SKIPPED)) == (
        "audit: skipped: PyPI answered for none of 2 packages (no network?)\n",
        0,
    )
    text, status = said("", 1, "ConnectionError: Max retries exceeded")
    assert status == 0 and text.startswith(
        "audit: skipped: pip-audit could not ask for advisories (ConnectionError: Max"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    assert audit.audit(None) == (["skipped: pip-audit is not installed (pip install pip-audit)"], 0)


def test_pip_audit_of_this_environment_comes_first(monkeypatch):
    monkeypatch.setattr(audit, "find_spec", lambda name: importlib.util.find_spec("json"))
    assert audit._command()[1:] == ["-m", "pip_audit"]
