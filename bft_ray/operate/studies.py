"""`bft-ray search`: start a study, show its status, end it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bft_ray.config import Config
from bft_ray.config.metrics import format_value
from bft_ray.operate.lasting import require_outlasting
from bft_ray.operate.plan.fit import fit_of
from bft_ray.operate.plan.hours import spent
from bft_ray.operate.plan.trace import Untraceable
from bft_ray.space.assign import config_of
from bft_ray.space.cost import cost_of, describe
from bft_ray.space.grid import representatives
from bft_ray.space.load import load_study, study_name
from bft_ray.study.agenda import PARTS, used_hours
from bft_ray.study.checks.expect import caveats, local_slots, requirements, study_s
from bft_ray.study.checks.ready import inspect_study
from bft_ray.study.conclude import StudyResult
from bft_ray.study.driver import search
from bft_ray.study.execute.measure import measure as measured_on
from bft_ray.study.place import Place
from bft_ray.study.records.database import Database
from bft_ray.study.records.leaderboard import as_text, counts, expected_s, saved, span, status_text
from bft_ray.study.records.lease import Holder
from bft_ray.study.records.ranking import best, tuned
from bft_ray.study.records.record import TrialRecord, mean
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store, studies

_NUM_FAILED = 3  # whose reasons are shown
_RESUME = ": the same `bft-ray search` resumes it"


def run_study(
    source: str,
    config: str | None,
    overrides: Sequence[str],
    database: str,
    *,
    profile: bool = True,
    measure: bool = True,
    place: Place | None = None,
) -> StudyResult:
    """Run a study to its end, or resume it; returns its result.

    Args:
        profile, measure, place: see `search`.

    Raises:
        BadInput, BadConfig, BftError: see `search`.
    """
    space, base = load_study(source, config, overrides)
    require_outlasting(config_of(base, space, representatives(space, 1)[0]), database)
    if config is not None:
        space = space.model_copy(update={"config": str(config)})  # the commands that it prints name the config so
    return search(space, base, database, profile=profile, measure=measure, place=place)


def dry_run(
    source: str,
    config: str | None,
    overrides: Sequence[str],
    *,
    measure: bool = True,
    price: float | None = None,
    line: Callable[[str], None] = lambda text: None,
) -> str:
    """What a study would run and cost. Its data are read and tokenised, because the longest sample decides which trials
    are duplicates.

    Args:
        measure: measure time, disk and memory on a few steps.
        price: of an hour of one GPU.
        line: called with a line when the measurement begins.

    Raises:
        BadInput, BadConfig: for everything that can be known before a worker starts.
    """
    space, base = load_study(source, config, overrides)
    told: list[str] = []
    facts = inspect_study(space, base, told.append)
    cost = cost_of(space, base, facts.longest, facts.samples_per_source)
    lines = [*told, *caveats(space, cost, facts), *_fit(facts.first)]
    if measure:
        found = measured_on(facts.first, line)
        lines += requirements(space, facts.first, cost, found, local_slots(facts.first.cluster))
        seconds = study_s(cost, found)
        if price is not None and seconds is not None:
            lines.append(f"price   {_price(facts.first, seconds, price)}")
    return "\n".join([describe(space, base, facts.longest, facts.samples_per_source), "", *lines])


def _price(first: Config, seconds: float, price: float) -> str:
    """GPU-hours and their price, from a speed that was measured on this machine."""
    import torch

    gpus = first.cluster.gpus_per_worker
    if not (torch.cuda.is_available() if gpus is None else gpus):
        return "not known: the speed was measured without a GPU"
    return spent(first, seconds, price).removeprefix("; ")


def _fit(first: Config) -> list[str]:
    """What a trial needs, computed from the model's config; a line for what cannot fit."""
    try:
        fit = fit_of(first)
    except Untraceable as error:
        return [f"note: {error}"]
    mark = "" if fit.status == "ok" else "note: "
    return [f"plan    {mark}{fit}", *([f"        it fits with {fit.remedy}"] if fit.remedy else [])]


def status_of(source: str | None, config: str | None, overrides: Sequence[str], database: str) -> str:
    """The status of a study; without a source, a line for each study in the database. Nothing is written.

    Raises:
        BadInput: no such database or study.
    """
    if source is None:
        with Database(database, make=False) as opened:
            found = [_Status.at(Store.find(opened, name)) for name in studies(opened)]
        return "\n".join(_line(look) for look in found) or "the database holds no study"
    name = study_name(source, config, overrides)
    with Database(database, make=False) as opened:
        look = _Status.at(Store.find(opened, name))
    text = [f"study    {name}, {look.state}" + ("" if look.is_driven or look.is_finished else _RESUME)]
    steps = {part: saved(records).trained for part, records in look.parts.items() if records}
    each = ", ".join(f"{part} {count:,}" for part, count in steps.items())
    text.append(f"steps    {sum(steps.values()):,} trained" + (f": {each}" if len(steps) > 1 else ""))
    for part, records in look.parts.items():
        if records or part == SEARCH:
            text += ["", f"--- {part}", _part_text(look, part, records)]
    if look.is_finished:
        text += ["", look.notes["result"]["text"]]
    return "\n".join(text)


@dataclass(frozen=True)
class _Status:
    """A study at the time of reading.

    Args:
        notes: see `Store.notes`.
        parts: part -> its trials.
        holder: the process that drives it, or drove it last.
    """

    name: str
    notes: Mapping[str, Any]
    parts: Mapping[str, Sequence[TrialRecord]]
    holder: Holder | None

    @classmethod
    def at(cls, store: Store) -> _Status:
        parts = {part: store.open_part(part).records() for part in PARTS}
        return cls(store.study, store.notes(), parts, store.lease.holder())

    @property
    def metric(self) -> str:
        return self.notes["settings"]["space.objective.metric"]

    @property
    def is_finished(self) -> bool:
        return bool(self.notes.get("result"))

    @property
    def is_driven(self) -> bool:
        return not self.is_finished and self.holder is not None and self.holder.is_alive

    @property
    def state(self) -> str:
        """The state as text."""
        if self.is_driven:
            assert self.holder is not None
            return f"driven by process {self.holder.owner.pid} on {self.holder.owner.host}"
        return "finished" if self.is_finished else "not running"

    def total(self, part: str) -> int:
        """Number of trials that the part has or will have, as far as is known."""
        if part == CONFIRMATION and self.parts[part]:
            return self._num_arms() * len(json.loads(self.notes["settings"]["space.confirmation.seeds"]))
        return self.notes["num_trials"] if part == SEARCH else len(self.parts[part])

    def _num_arms(self) -> int:
        """How many arms `bft_ray.study.confirm.candidates.arms_of` would choose."""
        baselines = tuned(self.parts[BASELINES], self.metric)
        complete = {record.key for record in self.parts[SEARCH] if record.state == "complete"}
        candidates = complete - {record.key for record in baselines.values()}
        return len(baselines) + min(len(candidates), self.notes["settings"]["space.confirmation.top_k"])


def _line(look: _Status) -> str:
    """`medical_qa/medical_qa  finished  search 36 of 36, best choices/probability 0.51`."""
    counted = [
        f"{part} {sum(record.is_finished for record in records)} of {look.total(part)}"
        for part, records in look.parts.items()
        if records or part == SEARCH
    ]
    top = best([*look.parts[BASELINES], *look.parts[SEARCH]], look.metric)
    found = f", best {look.metric} {format_value(look.metric, top.value)}" if top and top.value is not None else ""
    return f"{look.name}  {look.state}  {', '.join(counted)}{found}"


def _part_text(look: _Status, part: str, records: Sequence[TrialRecord]) -> str:
    settings, now = look.notes["settings"], time.time()
    if part == CONFIRMATION:
        return _arms(records, look.metric, look.total(part), now)
    limit = settings.get("space.budget.worker_hours")
    return status_text(
        records,
        look.metric,
        look.total(part),
        now=now,
        time_s=settings.get("space.budget.time_s") if part == SEARCH else None,
        hours=(used_hours(look.parts, now), limit) if limit and part == SEARCH else None,
        rung_metric=settings.get("space.scheduler.metric") or look.metric,
        baselines=look.parts[BASELINES] if part == SEARCH else (),
    )


def _arms(records: Sequence[TrialRecord], metric: str, total: int, now: float) -> str:
    """The progress of each arm, failed runs, and what is left; the comparison is shown when all runs have finished."""
    done = sum(record.is_finished for record in records)
    parts = ", ".join(f"{count} {status}" for status, count in counts(records).items() if count)
    lines = [f"runs     {done} of {total} finished: {parts}"]
    end = expected_s(records, total, now)
    if done < total:
        lines.append(f"left     {total - done}" + (f", the end is expected in {span(end)}" if end is not None else ""))
    failed = [record for record in records if record.state == "failed" and not record.duplicate_of]
    lines += [f"failed   {record.name}, seed {record.seeds[0]}: {record.reason}" for record in failed[:_NUM_FAILED]]
    if len(failed) > _NUM_FAILED:
        lines.append(f"         and {len(failed) - _NUM_FAILED} more")
    rows = [["arm", "seeds", metric]]
    for name in dict.fromkeys(record.name for record in records):
        own = [record for record in records if record.name == name]
        values = [record.value for record in own if record.value is not None]
        found = format_value(metric, mean(values)) if values else ""
        rows.append([name, f"{len(values)} of {len(own)}", found])
    return "\n".join([*lines, "", as_text(rows)])


def cancel_study(source: str, config: str | None, overrides: Sequence[str], database: str) -> str:
    """Ask the driver of a study to end: it does so within seconds while trials run. The study can be resumed.

    Raises:
        BadInput: no such database or study.
    """
    name = study_name(source, config, overrides)
    with Database(database, make=False) as opened:
        store = Store.find(opened, name)
        holder = store.lease.holder()
        if holder is None or not holder.is_alive:
            return f"no driver of {name} runs"
        store.note("cancel", True)
    return f"asked the driver of {name} to end: within seconds while trials run. The same command resumes the study"
