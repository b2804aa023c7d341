"""The options of `bft-ray init`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bft_ray.config import SourceConfig
from bft_ray.errors import BadInput

SPACES = ("bft", "families")


@dataclass(frozen=True)
class Request:
    """The arguments of the command line, by their names there; see `bft-ray init --help`.

    Args:
        data: file, saved datasets folder or hub id.
        out: config to write, or a folder for `bft.yaml`; all other files go to its folder.
        prompt, completion: a column each, or a template with columns in braces.
        group: column whose equal values stay on one side of a split.
        form: `auto`, or the name of a form of rows, where several fit.
        space: what the search space varies: `bft`, the published forms of BFT; or `families`, every token weight from plain
            fine-tuning to BFT, and the anchor.
    """

    data: str
    out: Path = Path("bft.yaml")
    prompt: str | None = None
    completion: str | None = None
    group: str | None = None
    form: str = "auto"
    split: str | None = None
    config_name: str | None = None
    limit: int | None = None
    domain: str | None = None
    model: str = "starter"
    space: str = "bft"
    force: bool = False

    def source(self, path: Path | None = None) -> SourceConfig:
        """The data, or a file beside it that is read in the same way.

        Raises:
            BadInput: one of --prompt and --completion without the other, a limit below 1, a space that there is not.
        """
        for given, missing in (("prompt", "completion"), ("completion", "prompt")):
            if getattr(self, given) and not getattr(self, missing):
                remedy = f"Add --{missing} COLUMN; a template in braces joins several columns."
                raise BadInput(f"--{missing}", None, f"given with --{given}", remedy)
        if self.space not in SPACES:
            raise BadInput("--space", self.space, f"one of {', '.join(SPACES)}")
        if self.limit is not None and self.limit < 1:
            raise BadInput("--limit", self.limit, "at least 1", "Leave --limit out for all rows.")
        named = {"prompt": self.prompt, "completion": self.completion, "group": self.group}
        columns = {field: column.replace("\\n", "\n") for field, column in named.items() if column}
        if path is not None:
            return SourceConfig(path=str(path), form=self.form, columns=columns)
        return SourceConfig(
            path=self.data,
            form=self.form,
            split=self.split,
            config_name=self.config_name,
            limit=self.limit,
            columns=columns,
        )
