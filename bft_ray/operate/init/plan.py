"""What the config and the search space of a user's rows share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bft_ray.domains import domain as domain_named
from bft_ray.operate.init.look import Found
from bft_ray.operate.init.request import Request
from bft_ray.operate.init.settings import Device, Settings, max_length_for, settings_for
from bft_ray.operate.init.split import TRAIN
from bft_ray.space.draft import differing_windows, window_grid


@dataclass(frozen=True)
class StudyPlan:
    """Rows, files and device, and what follows from them.

    Args:
        domain: its name, and that of the study.
        is_choice: whether the rows are measured by a choice task rather than as `data.validation`.
        parts: split -> its rows.
        paths: split -> its file; only those with rows.
        device: that trains.
    """

    request: Request
    domain: str
    is_choice: bool
    parts: Mapping[str, Sequence[Found]]
    paths: Mapping[str, Path]
    device: Device

    @cached_property
    def row_tokens(self) -> list[int]:
        """Tokens of each training row, ascending; estimated."""
        return sorted(row.row_tokens for row in self.parts[TRAIN])

    @cached_property
    def answer_tokens(self) -> list[int]:
        """Tokens of each answer, ascending; at most as many as a row may have, because the rest is cut off."""
        longest = max_length_for(self.row_tokens, self.request.model)
        return sorted(min(row.answer_tokens, longest) for row in self.parts[TRAIN])

    @cached_property
    def windows(self) -> list[int]:
        """Those that differ on these answers; empty: none do."""
        return differing_windows(window_grid(self.answer_tokens[-1]), self.answer_tokens)

    @property
    def metric(self) -> str:
        """Of the objective: the domain's headline where this config measures it."""
        headline = domain_named(self.domain).headline
        usual = "choices/probability" if self.is_choice else "validation/token_accuracy"
        measured = "choices/" if self.is_choice else "validation/"
        return headline if headline.startswith(measured) else usual

    @cached_property
    def settings(self) -> Settings:
        """Fields of the config that are not the same for everyone."""
        return settings_for(self.row_tokens, self.windows, self.request.model, self.device)
