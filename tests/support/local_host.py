"""The host of one process and a folder: the loop without Ray and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from bft_ray.places.kept import write_kept
from bft_ray.places.modes import settle
from bft_ray.train.checkpoint import step_name
from bft_ray.train.host import SCORE_FILE, drop_superseded, saved_in


class LocalHost:
    """One process and a folder: the loop without Ray and without a network."""

    def __init__(
        self,
        folder: Path,
        device: torch.device | None = None,
        keep: int = 1,
        listen: Callable[[str, dict[str, Any]], None] | None = None,
    ):
        self.folder, self._keep, self._listen = folder, keep, listen
        self.device = device
        folder.mkdir(parents=True, exist_ok=True)

    def last_checkpoint(self) -> Path | None:
        saved = saved_in(str(self.folder))
        return self.folder / saved[-1][0] if saved else None

    def best_checkpoint(self, step: int) -> Path | None:
        return self.folder / step_name(step)

    def origin(self, checkpoint: Path) -> str:
        return str(checkpoint)

    def keep(self, folder: Path, step: int, score: float | None) -> None:
        target = self.folder / step_name(step)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
        settle(target)
        write_kept(target / SCORE_FILE, {"score": score})  # last: a folder without it is not complete
        drop_superseded(str(self.folder), self._keep)

    def after_step(self, step: int) -> Literal["", "save", "leave"]:
        return ""

    def publish(self, folder: Path, text: str) -> None:
        shutil.copytree(folder, self.folder / "profile", dirs_exist_ok=True)
        self.notify("profile", {"table": text, "folder": str(self.folder / "profile")})

    def notify(self, event: str, values: dict[str, Any]) -> None:
        if self._listen:
            self._listen(event, values)
