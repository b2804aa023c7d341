"""Studies and profiles in a notebook: records as pandas frames; figures and pages that show themselves.

`from bft_ray import records_of` finds these functions without loading anything before it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.page.html import to_html
from bft_ray.page.live import to_tree
from bft_ray.page.model import Figure, Page, Plot
from bft_ray.page.svg import to_svg
from bft_ray.places.kept import write_text
from bft_ray.places.scratch import scratch
from bft_ray.study.kept import Known, known
from bft_ray.study.records.database import Database, database_url
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import Store, studies
from bft_ray.study.report.page import page_of

if TYPE_CHECKING:
    import pandas

_HEIGHT = 720  # pixels of a page in a notebook


@dataclass(frozen=True)
class ShownFigure:
    """A figure that a notebook draws: live where it knows plotly, else as a static picture."""

    figure: Figure | Plot

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        still = {"image/svg+xml": to_svg(self.figure)} if isinstance(self.figure, Figure) else {}
        return {"application/vnd.plotly.v1+json": to_tree(self.figure), **still, "text/plain": self.figure.alt}


@dataclass(frozen=True)
class ShownPage:
    """A page that a notebook shows in a frame of its own."""

    page: Page

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{escape(to_html(self.page))}" style="width:100%;height:{_HEIGHT}px;border:0"></iframe>'

    def save(self, path: str | Path) -> Path:
        """Write it as one HTML file."""
        write_text(path, to_html(self.page))
        return Path(path)


def list_studies(database: str | None = None) -> pandas.DataFrame:
    """A row a study: name, and the number of its trials by part.

    Args:
        database: as for `bft-ray search`; None: STUDY_DATABASE, else bft_studies.db.

    Raises:
        BadInput: no such database.
    """
    import pandas

    rows = []
    with Database(database_url(database), make=False) as opened:
        for name in studies(opened):
            store = Store.find(opened, name)
            parts = {part: len(store.open_part(part).records()) for part in ("baselines", "search", "confirmation")}
            rows.append({"study": name, "finished": bool(store.notes().get("result")), **parts})
    return pandas.DataFrame(rows)


def records_of(study: str, database: str | None = None) -> pandas.DataFrame:
    """A row a trial: id, name, status, seeds, settings, value, every metric, steps, seconds, why it failed or is a duplicate.

    Args:
        study: `NAME/DOMAIN`.

    Raises:
        BadInput: no such database or study.
    """
    import pandas

    return pandas.DataFrame([_row(record) for own in _known(study, database).parts.values() for record in own])


def _row(record: TrialRecord) -> dict[str, Any]:
    return {
        "trial": record.id,
        "name": record.name,
        "status": record.status,
        "seeds": record.seeds,
        **record.assignment,
        "value": record.value,
        **record.metrics,
        "steps": record.num_steps,
        "seconds": record.duration_s,
        "reason": record.duplicate_because or record.reason,
    }


def report_of(study: str, database: str | None = None) -> ShownPage:
    """The page of a study, also while it runs (arguments and errors: see `records_of`)."""
    return ShownPage(page_of(_known(study, database)))


def figures_of(study: str, database: str | None = None) -> Mapping[str, ShownFigure]:
    """Name -> a figure of the study's page (arguments and errors: see `records_of`)."""
    return {figure.name: ShownFigure(figure) for figure in page_of(_known(study, database)).figures}


def profile_of(config: str, overrides: Sequence[str] = (), out: str | Path | None = None) -> ShownPage:
    """The window profile of a config's training data: one forward pass of its model.

    Args:
        config: YAML file or recipe.
        overrides: dotted fields, as in `bft-ray profile`.
        out: folder that keeps its files; None: nothing is kept.

    Raises:
        BadConfig, BadInput: see `bft_ray.profile.run.profile_data`.
    """
    from bft_ray.config import load_config
    from bft_ray.profile.page import page_of as profile_page
    from bft_ray.profile.run import profile_data

    loaded = load_config(config, list(overrides))
    with scratch("profile") as temporary:
        profile = profile_data(loaded, Path(out) if out else temporary / "profile", source=config, track=False)
    return ShownPage(profile_page(profile.to_dict(), profile.proposal))


def _known(study: str, database: str | None) -> Known:
    with Database(database_url(database), make=False) as opened:
        return known(Store.find(opened, study))
