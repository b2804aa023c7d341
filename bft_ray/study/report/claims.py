"""The claims of a study as text and as a table: which hold, which do not, and which cannot be told."""

from __future__ import annotations

from collections.abc import Sequence

from bft_ray.page.model import Cell, Table
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.confirm.claims import Judged
from bft_ray.study.report.arms import gain_cells, gain_text, signed


def claims_table(choice: Choice) -> Table:
    """A table with one row for each claim: verdict, gain, interval, detectable gain."""
    rows: list[list[Cell]] = []
    for one in choice.claims:
        verdict = one.verdict if one.verdict == "cannot be told" else f"**{one.verdict}**"
        rows.append([str(one.claim), verdict, *gain_cells(one.gain, one.why)])
    return Table(["claim", "verdict", "gain", "interval", "detectable"], rows)


def claims_sentence(judged: Sequence[Judged]) -> str:
    """Markdown: each claim with its verdict, those that do not hold first; "" without claims."""
    if not judged:
        return ""
    order = ("does not hold", "cannot be told", "holds")
    told = [_told(one) for verdict in order for one in judged if one.verdict == verdict]
    return f"**Claims**: {'; '.join(told)}."


def _told(one: Judged) -> str:
    gain = one.gain
    if gain is None:
        return f"that {one.claim} cannot be told ({one.why})"
    if not gain.has_spread:
        seen = "are the same" if gain.gain == 0 else f"differ by {signed(gain.gain)}"
        said = str(one.claim) if one.verdict == "holds" else f"that {one.claim} cannot be told"
        return f"{said}: they {seen} on every item and seed"
    if one.verdict == "cannot be told":
        return f"whether {one.claim} cannot be told: {gain_text(gain)}"
    if one.verdict == "holds":
        return f"{one.claim}: {gain_text(gain)}"
    if one.claim.by_at_most is not None:
        return f"it does not hold that {one.claim}: {gain_text(gain)}"
    return f"it does not hold that {one.claim}; the reverse does: {gain_text(gain)}"


def about_claims(choice: Choice) -> str:
    """How the table of the claims is read."""
    count, level = len(choice.claims), 1 - choice.plan.alpha
    return (
        f"Each claim is judged by the gain of its first arm over its second, on the same items and seeds; the "
        f"interval{'s' * (count > 1)} hold{'s' * (count == 1)}{' together' * (count > 1)} at {level:.0%}."
    )
