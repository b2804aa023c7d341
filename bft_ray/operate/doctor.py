"""What is wrong with this machine, cluster, tracking server, model or data, before money is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bft_ray.config import ClusterConfig, Config
from bft_ray.errors import BadConfig, BadInput, first_line
from bft_ray.operate import configured
from bft_ray.operate.finding import Finding, from_error
from bft_ray.operate.machine import check_compiler, check_gpus, check_machine, check_places, check_versions
from bft_ray.operate.nodes import check_cluster
from bft_ray.places.addresses import redact
from bft_ray.waits import bounded, waiting
from bft_ray.workers.address import address_of

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def diagnose(
    config: Config | None = None,
    *,
    space: Path | None = None,
    overrides: Sequence[str] = (),
    timeout_s: float = 90.0,
) -> list[Finding]:
    """Run all checks: of this machine, and, with a config, of everything that it names.

    A check that fails, crashes or takes longer than `timeout_s` is a finding, and the others continue.

    Args:
        space: a search space over the config, looked at where all else is fine.
        overrides: FIELD=VALUE that the config was given, for the config that the space names.
    """
    cluster = config.cluster if config else ClusterConfig()
    is_here = address_of(cluster) is None
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", check_versions),
        ("compiler", check_compiler),
        ("gpu", lambda: check_gpus(config, is_local=is_here)),
        ("machine", lambda: check_machine(cluster if config and is_here else None)),
        ("home", check_places),
    ]
    if config is not None:
        checks += [
            ("disk", lambda: configured.check_disk(config)),
            ("name", lambda: configured.check_name(config)),
            ("settings", lambda: configured.check_settings(config)),
            ("model", lambda: configured.check_model(config)),
            ("data", lambda: configured.check_data(config)),
            ("schedule", lambda: configured.check_schedule(config)),
            ("tracking", lambda: configured.check_tracking(config)),
        ]
    if not is_here:
        checks += [("ray", lambda: check_cluster(cluster, has_config=config is not None))]
    elif config is not None:
        checks += [("storage", lambda: configured.check_storage(cluster))]
    findings = [finding for name, check in checks for finding in _guarded(name, check, timeout_s)]
    if config is not None and config.data.train and not exit_code(findings):
        findings += _guarded("plan", lambda: configured.check_fit(config), timeout_s)
        if space is None:  # `check_space` reads its splits in the same way
            findings += _guarded("tokens", lambda: configured.check_samples(config), timeout_s)
    if space is not None:
        findings += _guarded("database", configured.check_database, timeout_s)
    if space is not None and not exit_code(findings):  # it would report the same faults again
        told = {finding.detail for finding in findings}  # notes on the model: a study's checks make them too
        findings += [
            one
            for one in _guarded("space", lambda: configured.check_space(space, overrides), timeout_s)
            if one.detail not in told
        ]
    return findings


def render(findings: Sequence[Finding]) -> str:
    """The findings as text: one line each, the remedy beneath, and a last line that counts."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]}  {finding.check:<10}{finding.detail}")
        if finding.remedy and finding.status != "ok":
            lines.append(f"{'':<16}-> {finding.remedy}")
    num_fails = sum(finding.status == "fail" for finding in findings)
    num_warnings = sum(finding.status == "warn" for finding in findings)
    lines.append(f"{num_fails} failed, {num_warnings} warnings, {len(findings) - num_fails - num_warnings} ok")
    return "\n".join(lines)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where something would stop a run, else 0."""
    return int(any(finding.status == "fail" for finding in findings))


def _guarded(name: str, check: Callable[[], Iterable[Finding]], timeout_s: float) -> list[Finding]:
    try:
        with waiting(f"checking {name}"):
            return bounded(timeout_s, lambda: list(check()))
    except TimeoutError:
        remedy = "Something it reaches hangs: a network file system, a proxy, the hub (HF_HUB_OFFLINE=1 avoids it)."
        return [Finding(name, "fail", f"no answer within {timeout_s:g} s", remedy)]
    except (BadInput, BadConfig) as error:
        return [from_error(name, error)]
    except Exception as error:
        text = redact(f"{type(error).__name__}: {first_line(error)}")
        return [Finding(name, "fail", text, "This check crashed: see the message, or report it.")]
