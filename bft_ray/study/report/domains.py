"""All studies of a database side by side: which window each domain calls for, and whether 256 stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bft_ray.errors import BadInput
from bft_ray.page.model import Axis, Cell, Figure, Marks, Number, Page, Part, Section, Table, present
from bft_ray.stats.comparison import Comparison
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.kept import Known, known
from bft_ray.study.records.store import Store
from bft_ray.study.report.arms import gain_cells, gain_text
from bft_ray.study.report.describe import chosen_settings
from bft_ray.study.report.sections.head import answer

_PUBLISHED = "256"
_LENGTHS = ("p50", "p95", "p100")


@dataclass(frozen=True)
class Row:
    """A study, as far as it has an answer.

    Args:
        window: of the champion; "" where it has none, or there is no champion.
        stood: whether the window 256 as published was confirmed, in a few words.
        gain: of the champion over the default, or of the best candidate where the default stays; None: not known.
    """

    known: Known
    window: str
    stood: str
    gain: Comparison | None


def domains_page(stores: Sequence[Store], database: str) -> Page:
    """The page of all studies.

    Args:
        database: as it may be shown.
    """
    rows, without = [], []
    for store in stores:
        try:
            rows.append(row_of(known(store)))
        except BadInput:
            without.append(store.study)
    rows.sort(key=lambda row: (row.known.study.domain, row.known.study.name))
    told = [row for row in rows if row.known.choice is not None and row.known.choice.champion is not None]
    beaten = [row for row in told if row.known.choice is not None and row.known.choice.verdict != "default"]
    total = len(rows) + len(without)
    text = f"**{len(told)} of {total} studies have an answer**: the default with window 256 stays in "
    text += f"{len(told) - len(beaten)}, and is beaten in {len(beaten)}"
    text += f" ({', '.join(f'`{row.known.study.name}`' for row in beaten)})." if beaten else "."
    parts: list[Part] = present(
        _figure(rows),
        _table(rows),
        "The gain is that of the champion over `bft` with window 256 as published, or of the best candidate where "
        "that stays; its interval holds for all arms of its own study. Studies have metrics and data of their own: "
        "compare whether an interval contains 0, not the gains.",
    )
    if without:
        parts.append(
            f"Left out, because they began under an earlier version: {', '.join(f'`{name}`' for name in without)}."
        )
    each: list[Part] = [[f"`{row.known.study.name}`: {answer(row.known)}" for row in rows]]
    return Page(
        title="bft-ray: all domains",
        above=f"All studies of `{database}`",
        question="Which window does each domain call for, and does the published 256 stand there?",
        answer=text,
        sections=[
            Section("domains", "Side by side", parts),
            Section("answers", "Their answers", each if rows else ["None."]),
        ],
    )


def row_of(own: Known) -> Row:
    """What the table says of a study."""
    choice = own.choice
    if choice is None or choice.champion is None:
        return Row(own, "", "no answer yet" if own.study.space.confirmation else "nothing was confirmed", None)
    settings = chosen_settings(own)
    arm, best = choice.arm(choice.champion), choice.best_candidate
    window = settings.get("loss.window", "")
    gain = arm.gain if arm.gain is not None else best.gain if best is not None else None
    return Row(own, window, _stood(choice, window), gain)


def _stood(choice: Choice, window: str) -> str:
    if choice.verdict == "default":
        return "yes: nothing beats it"
    if choice.verdict == "baseline":
        return f"no: `{choice.champion}` wins"
    return "its window, not its other settings" if window == _PUBLISHED else "no: beaten"


def _figure(rows: Sequence[Row]) -> Figure | None:
    shown = [row for row in rows if row.gain is not None and row.gain.has_spread]
    if not shown:
        return None
    marks = []
    for place, row in enumerate(shown):
        gain = row.gain
        assert gain is not None
        is_beaten = gain.low > 0
        label = "beats the default" if is_beaten else "within noise of the default"
        marks.append(
            Marks(
                label,
                [gain.gain / gain.se],
                [place],
                shape="dot" if is_beaten else "diamond",
                tone="best" if is_beaten else "main",
                texts=[f"{row.known.study.name}: {gain.name} {gain_text(gain)}"],
                low=[gain.low / gain.se],
                high=[gain.high / gain.se],
            )
        )
    return Figure(
        "domains",
        "Gain over the default by study, in standard errors",
        "Gain of each study's champion or best candidate with its interval; the table has the numbers.",
        Axis("gain in its standard errors"),
        Axis(names=[row.known.study.name for row in shown]),
        marks,
        "Studies have different metrics, so their gains are shown in their own standard errors.",
        rule=0.0,
    )


def _table(rows: Sequence[Row]) -> Table:
    head = ["study", "metric", "champion", "window", "gain", "interval", "detectable", *_LENGTHS, "256 confirmed"]
    return Table(head, [_cells(row) for row in rows])


def _cells(row: Row) -> list[Cell]:
    own = row.known
    champion = (own.choice.champion if own.choice else "") or ""
    lengths: Mapping[str, float] = own.profile["lengths"] if own.profile else {}
    shown = [Number.of(lengths[name], ",.0f") if name in lengths else "" for name in _LENGTHS]
    first: list[Cell] = [own.study.name, own.study.space.objective.metric, champion, row.window]
    return [*first, *gain_cells(row.gain), *shown, row.stood]
