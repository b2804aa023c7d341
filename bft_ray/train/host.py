"""What the training loop needs from its surroundings: a rank, a place for checkpoints, a listener for events."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from bft_ray.places import storage
from bft_ray.places.kept import read_kept, write_kept
from bft_ray.places.modes import settle
from bft_ray.train.checkpoint import STEP, step_name, to_delete

#: name of an event ("start", "step", "validating", "validation", "saving", "checkpoint", "resume", "profile", "end")
#: and its values
Listener = Callable[[str, dict[str, Any]], None]

SCORE_FILE = "score.json"  # in a checkpoint: its value of the metric, higher is better; null: not measured


class Host(Protocol):
    """Ray Train's worker (`bft_ray.train.worker`), or a folder of this machine (`LocalHost`)."""

    device: torch.device

    def last_checkpoint(self) -> Path | None:
        """Folder of the last complete checkpoint of this run; None where it starts from the beginning."""

    def best_checkpoint(self, step: int) -> Path | None:
        """Folder of the checkpoint with the best score, which is that of `step`; None where it is gone."""

    def origin(self, checkpoint: Path) -> str:
        """The place of a checkpoint for the user, who may have to delete it: its folder, or the URI that it came from."""

    def keep(self, folder: Path, step: int, score: float | None) -> None:
        """Keep a checkpoint that every rank wrote into its own `folder`.

        Args:
            step: steps done.
            score: higher is better; None: not measured.
        """

    def after_step(self, step: int) -> Literal["", "save", "leave"]:
        """What else to do after a step: save a checkpoint, or save one and end, because the run goes on elsewhere. Every rank
        calls it after every step, and gets the same answer.
        """

    def publish(self, folder: Path, text: str) -> None:
        """Keep the profile in `folder`, and show its table; called only on rank 0."""

    def notify(self, event: str, values: dict[str, Any]) -> None:
        """Report an event with its values, for people and for tracking; called only on rank 0."""


def saved_in(folder: str) -> list[tuple[str, float | None]]:
    """The checkpoints below a folder or URI, oldest first: names and scores."""
    names = sorted(storage.folders_in(folder, STEP))
    found = [(name, read_kept(storage.join(folder, name, SCORE_FILE), ["score"])) for name in names]
    return [(name, kept["score"]) for name, kept in found if kept is not None]


def drop_superseded(folder: str, keep: int) -> None:
    """Delete the checkpoints that are neither the last nor among the `keep` best. After the death of a worker, Ray Train no
    longer knows the earlier ones.
    """
    saved = saved_in(folder)
    for index in to_delete([score for _, score in saved], keep, higher=True):
        storage.remove_folder(storage.join(folder, saved[index][0]))


class LocalHost:
    """One process and a folder: the loop without Ray and without a network."""

    def __init__(self, folder: Path, device: torch.device | None = None, keep: int = 1, listen: Listener | None = None):
        self.folder, self._keep, self._listen = folder, keep, listen
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
