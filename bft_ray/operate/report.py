"""`bft-ray report`: the page of a study, and the one of all studies of a database, made from their records at any time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.page.html import to_html
from bft_ray.page.model import Page
from bft_ray.places.addresses import sqlite_path
from bft_ray.places.cache import check_out_file
from bft_ray.places.kept import write_text
from bft_ray.space.load import find_space, study_name
from bft_ray.study.kept import known
from bft_ray.study.records.database import Database
from bft_ray.study.records.store import Store, studies
from bft_ray.study.report.domains import domains_page
from bft_ray.study.report.page import page_of


def study_report(source: str, config: str | None, overrides: Sequence[str], database: str, out: Path | None) -> Path:
    """Write the page of a study, also of one that runs; returns its path.

    Args:
        source: `NAME/DOMAIN`, NAME where the database holds one of it, or its search space.
        out: file; None: `NAME-DOMAIN.html` here.

    Raises:
        BadInput: no such database or study, or a file that cannot be written.
    """
    with Database(database, make=False) as opened:
        name = _study_of(source, config, overrides, studies(opened), opened.shown)
        found = known(Store.find(opened, name))
    return write_page(
        page_of(found), out or Path(f"{name.replace('/', '-')}.html"), (sqlite_path(database), source, config)
    )


def domains_report(database: str, out: Path | None) -> Path:
    """Write the page of all studies of a database, domain by domain; returns its path.

    Raises:
        BadInput: no such database, or a file that cannot be written.
    """
    with Database(database, make=False) as opened:
        stores = [Store.find(opened, name) for name in studies(opened)]
        page = domains_page(stores, opened.shown)
    return write_page(page, out or Path("domains.html"), (sqlite_path(database),))


def _study_of(source: str, config: str | None, overrides: Sequence[str], names: Sequence[str], database: str) -> str:
    if source in names:
        return source
    of_name = [name for name in names if name.partition("/")[0] == source]
    if len(of_name) == 1 and not overrides:
        return of_name[0]
    try:
        find_space(source)
    except BadInput:
        if "/" in source:  # NAME/DOMAIN, or a path
            return source
        has = f"It holds {', '.join(names)}." if names else "It holds no study."
        rule = f"one study of {database}, or a search space"
        raise BadInput("study", source, rule, f"{has} Another database: --database URL.") from None
    return study_name(source, config, overrides)


def write_page(page: Page, out: Path, reads: Sequence[str | Path | None] = ()) -> Path:
    """Write a page to a file; returns its path.

    Args:
        reads: files that it is made from, which it must not overwrite.

    Raises:
        BadInput: a file that cannot be written, or one of `reads`.
    """
    check_out_file(out, reads)
    write_text(out, to_html(page))
    return out
