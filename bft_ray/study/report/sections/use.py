"""What to do with the answer: commands, the exact config, all trials, and how to read the page."""

from __future__ import annotations

from bft_ray.page.model import Cell, Code, Number, Part, Section, Table
from bft_ray.places.addresses import redacted_yaml
from bft_ray.study.confirm.candidates import sources
from bft_ray.study.kept import Known
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.leaderboard import table
from bft_ray.study.records.ranking import ranked
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report.describe import chosen_settings, commands, searched


def use(known: Known) -> Section:
    """The commands to type next, the chosen settings, and the configs."""
    study = known.study
    found: list[Part] = []
    if typed := commands(known):
        found.append(Code("\n".join(f"{command:<46}  # {what}" for command, what in typed)))
    if settings := chosen_settings(known):
        found.append(Table(["field", "value"], [[name, value] for name, value in settings.items()], "Chosen settings"))
    if (config := _config(known)) is not None:
        found.append(Code(config, "The exact config of the champion", is_open=False))
    resumes = f"bft-ray search {study.space.name}   # as you gave it: the same command resumes the study"
    found.append(Code(f"{resumes}\nbft-ray report {study.name}", "This study, and this page, again", is_open=False))
    found.append(Code(redacted_yaml(study.space), "The search space", is_open=False))
    found.append(Code(redacted_yaml(study.base), "The config that it varies", is_open=False))
    return Section("use", "How to use it", found)


def _config(known: Known) -> str | None:
    choice, study = known.choice, known.study
    if choice is None or choice.champion is None or study.space.confirmation is None:
        return None
    trial = sources(known.parts)[choice.champion]
    return redacted_yaml(study.config(trial, study.kept_seed))


def trials(known: Known) -> Section | None:
    """Every trial of baselines and search, best first; None while there is none."""
    metric, space = known.study.space.objective.metric, known.study.space
    records = [*known.parts[SEARCH], *known.parts[BASELINES]]
    if not records:
        return None
    of_rungs = rung_metric(space)
    head, *rows = table(records, metric, rung_metric=of_rungs)
    at, shown = head.index(metric), []
    for record, row in zip(ranked(records, metric, of_rungs), rows, strict=True):
        cells: list[Cell] = [*row]
        if record.value is not None:
            cells[at] = Number(record.value, row[at])
        shown.append(cells)
    title = f"All {len(records):,} trials, best first"
    return Section("trials", "What was searched", [searched(known), Table(head, shown, title, is_open=len(rows) <= 30)])


def how_to_read() -> Section:
    """The words of the page."""
    return Section(
        "words",
        "How to read this page",
        [
            [
                "**Arm**: one setting in the confirmation; each is trained anew with every seed, on data and "
                "seeds that the search has not seen.",
                "**Gain**: mean over items and seeds, minus that of the default; above 0 is better, whichever "
                "way the metric points.",
                "**Interval**: holds for all arms together. If it contains 0, the data do not show a difference.",
                "**p**: one-sided, of no gain, adjusted for all comparisons. **best**: the probability that no "
                "other arm is better.",
                "**Detectable**: the true gain that about 8 of 10 such studies would show. A study with a "
                "larger one than you care about was too small.",
                "**Default**: `bft` with window 256, as published. It wins every tie, so a champion is one that "
                "beat it beyond noise.",
                "Figures: point at a mark for its numbers, drag to zoom, double-click to go back. Without "
                "script and in print they are still.",
                "What the search found was picked as the best of many on the same data, so it looks better than "
                "it is; the confirmation does not.",
            ]
        ],
    )
