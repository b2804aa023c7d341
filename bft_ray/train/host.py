"""What the training loop needs from its surroundings: a rank, a place for checkpoints, a listener for events."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from bft_ray.places import storage
from bft_ray.places.kept import read_kept
from bft_ray.train.checkpoint import STEP, flaw_of, to_delete

SCORE_FILE = "score.json"  # in a checkpoint: its value of the metric, higher is better; null: not measured


class Host(Protocol):
    """Ray Train's worker (`bft_ray.train.worker`), or whatever keeps what the loop hands to it."""

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
        """Report an event with its values, for people and for tracking; called only on rank 0.

        Args:
            event: ready, start, resume, prior, passed over, step, validating, validation, saving, checkpoint, notice, profile
                or end.
        """


def saved_in(folder: str) -> list[tuple[str, float | None]]:
    """The checkpoints below a folder or URI, oldest first, without damaged ones: names and scores."""
    names = sorted(storage.folders_in(folder, STEP))
    found = [(name, read_kept(storage.join(folder, name, SCORE_FILE), ["score"])) for name in names]
    return [
        (name, kept["score"])
        for name, kept in found
        if kept is not None and not ((flaw := flaw_of(storage.join(folder, name))) and flaw.is_damage)
    ]


def drop_superseded(folder: str, keep: int) -> None:
    """Delete the checkpoints that are neither the last nor among the `keep` best. After the death of a worker, Ray Train no
    longer knows the earlier ones.
    """
    saved = saved_in(folder)
    for index in to_delete([score for _, score in saved], keep, higher=True):
        storage.remove_folder(storage.join(folder, saved[index][0]))
