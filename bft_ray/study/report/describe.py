"""A study as text: the note at the top of its MLflow run, and what the terminal shows at its end."""

from __future__ import annotations

import math
import re
import textwrap
from typing import Any

from bft_ray.config.metrics import format_value
from bft_ray.page.model import as_text
from bft_ray.space.definition import SearchSpace
from bft_ray.space.parts import Asha
from bft_ray.study.confirm.candidates import sources
from bft_ray.study.confirm.choice import Choice
from bft_ray.study.confirm.standing import leader, standing_of, training_command
from bft_ray.study.confirm.tested import TestResult
from bft_ray.study.kept import Known
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records.leaderboard import (
    as_markdown,
    counts,
    saved,
    short_names,
    span,
    table,
    trials_text,
    value_text,
)
from bft_ray.study.records.ranking import tuned
from bft_ray.study.records.record import Records, all_of
from bft_ray.study.records.store import BASELINES, SEARCH
from bft_ray.study.report import compare
from bft_ray.study.report.claims import claims_sentence
from bft_ray.study.report.diagnoses import diagnose
from bft_ray.study.report.explain import explain, verdict
from bft_ray.tracking.server import where

#: characters of a note: MLflow cuts a tag at 8,000
LIMIT = 7_900
_TOP = 10  # trials in the table of the conclusion
_LINES, _WIDTH = 25, 110  # of the conclusion


def describe(known: Known, page: str = "") -> str:
    """The note, Markdown: what won and by how much, what to look at, and how to use it. The page has all else.

    Args:
        page: address of the study's page; "" none.
    """
    records, space, choice, test = known.parts, known.study.space, known.choice, known.test
    if choice is not None:
        first, _, evidence = explain(choice).partition("\n\n")
    else:
        first, evidence = compare.verdict(records, space, known.items), compare.evidence(records[SEARCH], space)
    settings, typed = chosen_settings(known), commands(known)
    parts = [
        f"[**Read the report**]({page})" if page else "",
        first,
        _few(space, choice),
        test and test_sentence(test),
        _unconfirmed(space),
    ]
    if found := diagnose(records, space, choice):
        parts.append("#### What to look at")
        parts += [f"- **{finding.title}**. {finding.text} {finding.remedy}" for finding in found]
    if settings:
        parts += ["#### Chosen settings", as_markdown([["field", "value"], *map(list, settings.items())])]
    parts += ["#### Evidence" if evidence else "", evidence.strip()]
    parts += ["#### How to use it" if typed else "", "\n".join(f"- `{command}`: {what}" for command, what in typed)]
    note = "\n\n".join(part for part in parts if part) + "\n"
    return note if len(note) <= LIMIT else note[: LIMIT - 4].rpartition("\n")[0] + "\n..."


def conclusion(known: Known) -> str:
    """The end of a study for a terminal: 25 lines at most, of plain text."""
    records, space, choice, test = known.parts, known.study.space, known.choice, known.test
    first = verdict(choice) if choice is not None else compare.verdict(records, space, known.items)
    lines = _wrapped(first) + _wrapped(_few(space, choice))
    if test is not None:
        lines += _wrapped(test_sentence(test))
    if choice is not None:
        lines += _wrapped(claims_sentence(choice.claims))
    if settings := chosen_settings(known):
        short = short_names(settings)
        lines += _wrapped("Settings: " + ", ".join(f"{short[name]} {value}" for name, value in settings.items()))
    end = [_plain(saved_sentence(records)), *_wrapped(_unconfirmed(space)), ""]
    end += [f"{command:<40}  # {what}" for command, what in commands(known)]
    rows = _rows(records, space, choice)
    room = _LINES - len(lines) - len(end) - 2
    shown = ["", *as_text(rows[:room]).splitlines(), ""] if len(rows) > 1 and room > 1 else [""]
    return "\n".join([*lines, *shown, *end][:_LINES])


# ---- what came out -----------------------------------------------------------------------------------------------------


def test_sentence(test: TestResult) -> str:
    """What the test split showed, Markdown."""
    value = format_value(test.metric, test.champion_value)
    text = f"**Test split, measured once**: `{test.champion}` has {test.metric} {value} on {test.num_items:,} items"
    if test.champion == test.default:
        return f"{text}; it is the default."
    if math.isnan(test.low):
        which = f"{text}, the default `{test.default}` {format_value(test.metric, test.default_value)}"
        return f"{which}: gain {test.gain:+.4f}. The items have no spread, so noise cannot be ruled out."
    worse = "" if test.low > 0 else " It is worse there." if test.high < 0 else " The gain is not beyond noise there."
    power = "" if math.isnan(test.detectable) else f" A true gain of {test.detectable:.4f} shows in 8 of 10 such tests."
    return (
        f"{text}, the default `{test.default}` {format_value(test.metric, test.default_value)}: gain {test.gain:+.4f} "
        f"[{test.low:+.4f}, {test.high:+.4f}], paired by item: of these two models, not of their settings.{worse}{power}"
    )


def _few(space: SearchSpace, choice: Choice | None) -> str:
    """A sentence if fewer candidates were confirmed than were asked for; "" otherwise."""
    if choice is None or space.confirmation is None:
        return ""
    count, asked = len(choice.plan.candidates), space.confirmation.top_k
    if count >= asked:
        return ""
    return (
        f"**Confirmed: {count or 'none'} of the {asked} candidates** that confirmation.top_k asks for. Of the trials that ran to "
        "their end, no more differ from each other and from the baselines."
    )


def _unconfirmed(space: SearchSpace) -> str:
    """A sentence for a study without a confirmation: it registers no champion, and what would; "" otherwise."""
    if space.confirmation is not None:
        return ""
    return (
        "No confirmation, so no champion: with `confirmation` in the space (5 fresh seeds, data of its own) and another "
        "`name`, the study shows whether this holds."
    )


def chosen_settings(known: Known) -> dict[str, str]:
    """Dotted field -> value of the champion; empty where there is none."""
    space, choice = known.study.space, known.choice
    if choice is None or choice.champion is None:
        return {}
    source = sources(known.parts)[choice.champion]
    own: dict[str, Any] = {name: value for name, value in space.fixed.items() if name.startswith("loss.")}
    if source.part == BASELINES:
        name = source.extra.get("baseline", choice.champion)
        own = next((dict(one.overrides) for one in space.baselines if one.name == name), {})
    return {name: value_text(value) for name, value in (own | dict(source.assignment)).items()}


def _rows(records: Records, space: SearchSpace, choice: Choice | None) -> list[list[str]]:
    """The table of the conclusion: arms, or means by setting, or the leaderboard."""
    metric, search = space.objective.metric, records[SEARCH]
    if choice is not None and choice.num_items:
        rows = [["arm", f"mean {metric}", f"gain over {choice.plan.default}", "interval", "detectable"]]
        for arm in choice.arms:
            gain, mean = arm.gain, "" if arm.mean is None else f"{arm.mean:.4f}"
            cells = []
            if gain:
                least = "" if math.isnan(gain.detectable) else f"{gain.detectable:.4f}"
                cells = [f"{gain.gain:+.4f}", f"[{gain.low:+.4f}, {gain.high:+.4f}]", least]
            rows.append([arm.name, mean, *(cells or ["", arm.excluded, ""])])
        return rows
    setting = compare.single(space)
    if space.confirmation is None and setting is not None:
        return compare.by_value(search, metric, setting).texts()
    beside = list(tuned(records[BASELINES], metric).values())
    return table([*search, *beside], metric, rung_metric=rung_metric(space), limit=_TOP)


# ---- how it was found --------------------------------------------------------------------------------------------------


def searched(known: Known) -> list[str]:
    """Lines on the search: space, budget, scheduler, sampler."""
    records, space = known.parts, known.study.space
    search, num_samples = records[SEARCH], known.study.num_samples
    parameters = ", ".join(f"`{name}` {_range(parameter)}" for name, parameter in space.parameters.items())
    lines = [
        f"study `{space.name}`, domain `{known.study.domain}`, config `{space.config}`, objective {space.objective.metric}"
    ]
    lines += [f"varied: {parameters}"]
    if num_samples is not None:
        lines.append(f"samples: train {num_samples:,}")
    shown = ", ".join(f"{count} {status}" for status, count in counts(search).items() if count)
    steps = {record.planned_steps for record in search if record.planned_steps}
    each = f", {' or '.join(map(str, sorted(steps)))} steps each" if 0 < len(steps) <= 3 else ""
    lines.append(f"budget: {len(search)} trials ({shown}){each}, seeds {', '.join(map(str, space.seeds))}")
    scheduler = space.scheduler
    stops = (
        f"ASHA from step {scheduler.grace_steps}, 1 of {scheduler.reduction} is promoted"
        if isinstance(scheduler, Asha)
        else "none"
    )
    lines.append(f"sampler {space.sampler.kind}, seed {space.sampler.seed}; early stops: {stops}")
    lines.append(saved_sentence(records))
    times = [(record.started, record.finished) for record in all_of(records)]
    begun, ended = [a for a, _ in times if a is not None], [b for _, b in times if b is not None]
    if begun and ended:
        lines.append(f"from the first start to the last end: {span(max(ended) - min(begun))}")
    return lines


def _range(parameter: Any) -> str:
    if parameter.kind == "categorical":
        return "{" + ", ".join(map(value_text, parameter.values)) + "}"
    return f"{value_text(parameter.low)} to {value_text(parameter.high)}" + (" (log)" if parameter.log else "")


def saved_sentence(records: Records) -> str:
    """The steps that were trained and saved, over all parts: baselines and confirmation too; no full stop."""
    found = saved(all_of(records))
    parts = []
    if found.num_duplicates:
        parts.append(f"{found.duplicates:,} by {found.num_duplicates} duplicate{'s' * (found.num_duplicates != 1)}")
    if found.num_pruned:
        parts.append(f"{found.pruned:,} by stopping {trials_text(found.num_pruned)} early")
    less = found.duplicates + found.pruned
    avoided = f"; saved: {', '.join(parts)}" if parts else ""
    return f"{found.trained:,} steps trained{avoided}" + (
        f": {less / (found.trained + less):.0%} less than all" if less else ""
    )


def commands(known: Known) -> list[tuple[str, str]]:
    """(command, what it does): what to type next."""
    space, domain, choice = known.study.space, known.study.domain, known.choice
    if choice is None or choice.champion is None:
        standing = standing_of(known.parts, space.objective.metric, known.items)
        if choice is not None or space.confirmation is not None or standing is None:
            return []
        record = leader(standing)
        if record is None:
            return []
        return [(training_command(record, space), f"trains with {record.label}")]
    if space.confirmation is not None and not space.confirmation.register_champion:
        return []
    option, note = where(known.study.base.tracking.uri)
    return [
        (f"bft-ray best {domain}{option}", f"the chosen configuration{note}"),
        (f"bft-ray train --champion {domain}{option}", "trains with it"),
    ]


def _plain(text: str) -> str:
    """The text without the Markdown marks of `explain`."""
    return re.sub(r"\*\*|`", "", text)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(_plain(text), _WIDTH)
