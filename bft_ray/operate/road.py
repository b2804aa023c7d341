"""The next command between a user's file and a champion: the last lines of `doctor`, `evaluate` and `train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

BEFORE = "before"  # folder of the base model's results


def after_doctor(config: str, overrides: Sequence[str], is_fine: bool, trains: bool = True) -> str:
    """The next command after `doctor`; for a config that only measures, `evaluate` is the last one."""
    if not is_fine:
        return _next(f"correct what is marked FAIL, then {_command('doctor', config, overrides)}")
    if not trains or not Path(BEFORE).is_dir():
        return _next(f"{_command('evaluate', config, overrides)} --out {BEFORE}")
    return _next(_command(_settings_or_training(config), config, overrides))


def after_evaluate(
    config: str, overrides: Sequence[str], model: str | None, out: str | None, against: str | None
) -> str:
    """The next command after `evaluate`; "" after a comparison, which is the last step."""
    if against or (model and out):
        return ""
    if model:
        return _next(f"{_command('evaluate', config, overrides)} --model {shlex.quote(model)} --against {BEFORE}")
    if not out:
        return _next(f"{_command('evaluate', config, overrides)} --out {BEFORE}", "(keeps what a comparison needs)")
    return _next(_command(_settings_or_training(config), config, overrides))


def after_train(config: str | None, overrides: Sequence[str], export: str, champion: str = "", option: str = "") -> str:
    """The next commands after `train`.

    Args:
        config: as it was given; None for a champion's.
        export: folder of the trained model.
        champion: its domain.
        option: of the commands that read it, such as ` --uri URI`.
    """
    lines = []
    if config is None:
        overrides, config = (), "bft.yaml" if Path("bft.yaml").is_file() else f"{champion}.yaml"
        if not Path(config).is_file():
            lines.append(f"bft-ray best {shlex.quote(champion)}{option} --yaml > {shlex.quote(config)}")
    base = _command("evaluate", config, [word for word in overrides if not word.startswith("name=")])
    lines += [] if Path(BEFORE).is_dir() else [f"{base} --out {BEFORE}"]
    return _next(*lines, f"{base} --model {shlex.quote(export)} --against {BEFORE}")


def space_of(config: str) -> Path | None:
    """The search space beside a config, as `bft-ray init` writes them; None where there is none."""
    space = Path(config).parent / "search_space.yaml"
    return space if Path(config).is_file() and space.is_file() else None


def _settings_or_training(config: str) -> str:
    return "profile" if space_of(config) else "train"


def _command(name: str, config: str, overrides: Sequence[str]) -> str:
    return shlex.join(["bft-ray", name, config, *overrides])


def _next(*lines: str) -> str:
    return "\n".join(f"{'next' if place == 0 else '':<10}{line}" for place, line in enumerate(lines))
