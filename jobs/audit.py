"""`make audit`: known vulnerabilities of the versions in `constraints.txt`, by pip-audit.

It asks PyPI's list of advisories. Where pip-audit is not installed, or where PyPI does not answer, a line says so, and nothing
fails: an audit that did not take place is not a finding. pip-audit itself ends with 0 where it could ask for no package.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_LIMIT_S = 300.0  # 200 packages take about a minute
_OPTIONS = ("--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off", "--timeout", "15")


def main(constraints: Path = Path("constraints.txt")) -> int:
    """Print what was found; 1 where there is a vulnerability that another version mends, else 0."""
    lines, status = audit(constraints)
    print("\n".join(f"audit: {line}" for line in lines))
    return status


def audit(constraints: Path) -> tuple[list[str], int]:
    """Lines, and the exit status, for the pinned versions of a file."""
    command = _command()
    if command is None:
        return ["skipped: pip-audit is not installed (pip install pip-audit)"], 0
    try:
        words = [*command, "--requirement", str(constraints), *_OPTIONS]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=_LIMIT_S)
        report = json.loads(ended.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return [f"skipped: pip-audit did not end within {_LIMIT_S:g} s"], 0
    except OSError as error:
        return [f"skipped: pip-audit cannot be run ({error})"], 0
    except (ValueError, KeyError, TypeError):
        said = [line for line in ended.stderr.splitlines() if line.strip()] or [f"it ended with {ended.returncode}"]
        return [f"skipped: pip-audit could not ask for advisories ({said[-1].strip()[:160]})"], 0
    return judge(report)


def judge(report: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    """Lines and exit status of pip-audit's report: one entry a package, with `vulns` or a `skip_reason`."""
    asked = [entry for entry in report if "skip_reason" not in entry]
    if not asked:
        return [f"skipped: PyPI answered for none of {len(report)} packages (no network?)"], 0
    lines, mended = [], False
    for entry in asked:
        for found in entry["vulns"]:
            fixes = ", ".join(found["fix_versions"])
            mended = mended or bool(fixes)
            remedy = f"mended in {fixes}: raise it in constraints.txt" if fixes else "no version mends it yet"
            lines.append(f"{entry['name']} {entry['version']}: {found['id']}, {remedy}")
    left = f"; PyPI did not answer for {len(report) - len(asked)}" if len(asked) < len(report) else ""
    return [*lines, f"{len(asked)} packages, {len(lines)} known vulnerabilities{left}"], int(mended)


def _command() -> list[str] | None:
    """pip-audit of this environment, or the one on the path."""
    if find_spec("pip_audit") is not None:
        return [sys.executable, "-m", "pip_audit"]
    found = shutil.which("pip-audit")
    return [found] if found else None


if __name__ == "__main__":
    sys.exit(main())
