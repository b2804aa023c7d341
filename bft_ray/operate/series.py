"""A series of studies: run or resume all, what they cost, their status, and their common page, which MLflow keeps too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bft_ray.operate.report import write_page
from bft_ray.operate.studies import dry_run, run_study, status_of
from bft_ray.page.html import to_html
from bft_ray.page.model import shown_time
from bft_ray.places.addresses import sqlite_path
from bft_ray.space.load import load_study
from bft_ray.space.series import Series, check_questions, load_series
from bft_ray.study.kept import Known, known
from bft_ray.study.place import Place
from bft_ray.study.records.database import Database
from bft_ray.study.records.store import Store, studies
from bft_ray.study.report.recorder import PAGE, log_report
from bft_ray.study.report.series import Told, sentences, series_page, told
from bft_ray.tracking.begin import RUN_KEY
from bft_ray.tracking.run import Tracker

EXPERIMENT = "bft/series"
_RUN = "series_run_id"  # note on the first study

Line = Callable[[str], None]


def run_series(
    path: Path,
    config: str | None,
    overrides: Sequence[str],
    database: str,
    line: Line,
    *,
    profile: bool = True,
    measure: bool = True,
    place: Place | None = None,
) -> str:
    """Run all studies of a series to their end, or resume them; returns what they say together.

    Args:
        overrides: of all studies.
        line: called with the name of a condition when its study begins.
        profile, measure, place: see `bft_ray.study.driver.search`.

    Raises:
        BadInput, BadConfig: for every study, before the first one trains; BftError: see `bft_ray.study.driver.search`.
    """
    series = _checked(path, config, overrides)
    for number, name in enumerate(series.conditions, 1):
        line(f"--- {name} ({number} of {len(series.conditions)})")
        own = series.study_overrides(name, overrides)
        run_study(series.space, config, own, database, profile=profile, measure=measure, place=place)
    found = read_series(series, config, overrides, database)
    if not _record(found, database):
        line("MLflow is away: the same command records what it lacks")
    return text_of(found)


def _checked(path: Path, config: str | None, overrides: Sequence[str]) -> Series:
    """A series of which every study is whole, and measures what is asked."""
    series = load_series(path)
    for name in series.conditions:
        space, _ = load_study(series.space, config, series.study_overrides(name, overrides))
        check_questions(series, name, space)
    return series


def dry_run_series(path: Path, config: str | None, overrides: Sequence[str], line: Line, *, measure: bool) -> str:
    """What each study would run and cost."""
    series = _checked(path, config, overrides)
    parts = []
    for name in series.conditions:
        text = dry_run(series.space, config, series.study_overrides(name, overrides), measure=measure, line=line)
        parts.append(f"--- {name}\n{text}")
    return "\n\n".join(parts)


def status_of_series(path: Path, config: str | None, overrides: Sequence[str], database: str) -> str:
    """The status of each study, and what they say together so far."""
    series = load_series(path)
    names = _names(series, config, overrides)
    with Database(database, make=False) as opened:
        begun = studies(opened)
    parts = [
        f"--- {condition}\n{status_of(name, None, (), database) if name in begun else 'not begun'}"
        for condition, name in names.items()
    ]
    return "\n\n".join([*parts, text_of(read_series(series, config, overrides, database))])


def series_report(path: Path, config: str | None, overrides: Sequence[str], database: str, out: Path | None) -> Path:
    """Write the common page, also while studies run; returns its path."""
    series = load_series(path)
    found = read_series(series, config, overrides, database)
    return write_page(
        series_page(found, shown_time()), out or Path(f"{series.name}.html"), (sqlite_path(database), config)
    )


def read_series(series: Series, config: str | None, overrides: Sequence[str], database: str) -> Told:
    """What the studies that have begun say together.

    Raises:
        BadInput: no such database.
    """
    names, found = _names(series, config, overrides), {}
    with Database(database, make=False) as opened:
        begun = studies(opened)
        for condition, name in names.items():
            if name in begun:
                found[condition] = known(Store.find(opened, name))
    return told(series, found)


def text_of(found: Told) -> str:
    """The answer for a terminal."""
    return "\n".join([found.series.question, *(text.replace("**", "").replace("`", "") for text in sentences(found))])


def _names(series: Series, config: str | None, overrides: Sequence[str]) -> dict[str, str]:
    """Condition -> `NAME/DOMAIN` of its study."""
    names = {}
    for condition in series.conditions:
        space, base = load_study(series.space, config, series.study_overrides(condition, overrides))
        names[condition] = space.study_of(base)
    return names


def _record(found: Told, database: str) -> bool:
    """Write page, sentences and table to the MLflow run of the series, which lies beside its studies' experiments; False where
    not all of it could be stored.
    """
    first: Known = next(iter(found.known.values()))
    series, study = found.series, first.study
    with Database(database, make=False) as opened:
        store = Store.find(opened, study.name)
        tracker = Tracker.start(
            study.base.tracking,
            experiment=EXPERIMENT,
            run_name=series.name,
            run_id=store.notes().get(_RUN),
            params={
                "series": series.name,
                "space": Path(series.space).stem,
                "conditions": ", ".join(series.conditions),
            },
            tags={RUN_KEY: f"{series.name}-{study.id}", "bft.kind": "series", "bft.series": series.name},
        )
        with tracker:
            store.note(_RUN, tracker.run_id)
            note = [f"[**Read the report**]({tracker.link_to(PAGE)})", *sentences(found)]
            note += [f"- {name}: study `{own.study.name}`, run {own.run_id}" for name, own in found.known.items()]
            page = to_html(series_page(found, shown_time()))
            is_stored = log_report(tracker, "\n\n".join(note), page, "series.json", _table(found))
            return tracker.finish("FINISHED") and is_stored


def _table(found: Told) -> list[dict[str, object]]:
    """Every claim under every condition, as JSON."""
    return [
        {
            "condition": name,
            "at": dict(found.series.conditions[name].at),
            "claim": one.claim.model_dump(),
            "verdict": one.verdict,
            "gain": one.gain and one.gain.as_json(),
        }
        for name, judged in found.judged.items()
        for one in judged
    ]
