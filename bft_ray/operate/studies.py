"""`bft-ray search`: start a study, look at it, end it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bft_ray.config.cost import describe
from bft_ray.config.study import find_space, load_study
from bft_ray.errors import BadInput
from bft_ray.metrics import format_value
from bft_ray.search.agenda import PARTS
from bft_ray.search.database import DEFAULT_DATABASE, Database
from bft_ray.search.drive import search
from bft_ray.search.leaderboard import as_text, status_text
from bft_ray.search.lease import Owner
from bft_ray.search.ready import look_at
from bft_ray.search.record import TrialRecord, mean
from bft_ray.search.store import CONFIRMATION, SEARCH, Store, studies


def run_study(source: str, config: str | None, overrides: Sequence[str], database: str, *, profile: bool = True) -> str:
    """Run a study to its end, or go on with it; returns what was found.

    Raises:
        BadInput, BadConfig, BftError: see `search`.
    """
    if database == DEFAULT_DATABASE and "_ray_pkg_" in os.getcwd():
        rule = "an address outside of the job's working directory, which ends with the job"
        raise BadInput("--database", database, rule, "Give sqlite:////SHARED/FOLDER/studies.db or postgresql://...")
    space, base = load_study(source, config, overrides)
    result = search(space, base, database, profile=profile)
    return result.text


def dry_run(source: str, config: str | None, overrides: Sequence[str]) -> str:
    """What a study would run and cost; its data are read and tokenised, for the longest sample decides what is merged.

    Raises:
        BadInput, BadConfig: for everything that can be known before a worker starts.
    """
    space, base = load_study(source, config, overrides)
    facts = look_at(space, base)
    return describe(space, base, facts.longest, facts.num_samples)


def status_of(source: str | None, config: str | None, overrides: Sequence[str], database: str) -> str:
    """How a study stands; without a source, the names of all that the database holds."""
    if source is None:
        with Database(database) as opened:
            names = studies(opened)
        return "\n".join(names) or "the database holds no study"
    name = _name_of(source, config, overrides)
    with Database(database) as opened:
        store = Store.find(opened, name)
        parts, notes = {part: store.open_part(part).records() for part in PARTS}, store.notes()
        holder = store.lease.holder()
    settings = notes["settings"]
    metric, time_s = settings["space.objective.metric"], settings.get("space.budget.time_s")
    rung_metric = settings.get("space.scheduler.metric") or metric
    text = [f"study    {name}{_driven(holder, notes)}"]
    totals = {SEARCH: notes["num_trials"]}
    for part in PARTS:
        records = parts[part]
        if records or part == SEARCH:
            if part == CONFIRMATION:
                text += ["", f"--- {part}", _arms(records, metric)]
                continue
            limit = time_s if part == SEARCH else None
            total = totals.get(part, len(records))
            text += [
                "",
                f"--- {part}",
                status_text(records, metric, total, now=time.time(), time_s=limit, rung_metric=rung_metric),
            ]
    if "result" in notes:
        text += ["", notes["result"]["text"]]
    return "\n".join(text)


def _arms(records: Sequence[TrialRecord], metric: str) -> str:
    """How far each arm is; what they come to is told when all are done."""
    rows = [["arm", "seeds", metric]]
    for name in dict.fromkeys(record.name for record in records):
        own = [record for record in records if record.name == name]
        done = [record.value for record in own if record.value is not None]
        rows.append([name, f"{len(done)} of {len(own)}", format_value(metric, mean(done)) if done else ""])
    return as_text(rows)


def _driven(holder: tuple[Owner, float] | None, notes: Mapping[str, Any]) -> str:
    if "result" in notes:
        return ", finished"
    if holder is None or not holder[0].is_alive(holder[1]):
        return ", not running: the same `bft-ray search` goes on with it"
    return f", driven by process {holder[0].pid} on {holder[0].host}"


def cancel_study(source: str, config: str | None, overrides: Sequence[str], database: str) -> str:
    """Ask the driver of a study to end; it does so within seconds, and the study can be gone on with.

    Raises:
        BadInput: no such study.
    """
    name = _name_of(source, config, overrides)
    with Database(database) as opened:
        store = Store.find(opened, name)
        holder = store.lease.holder()
        if holder is None or not holder[0].is_alive(holder[1]):
            return f"no driver of {name} runs"
        store.note("cancel", True)
    return f"asked the driver of {name} to end; it does so within seconds, and the same command goes on with the study"


def _name_of(source: str, config: str | None, overrides: Sequence[str]) -> str:
    """`NAME/DOMAIN`: as it is given, or of a search space."""
    try:
        find_space(source)
    except BadInput:
        if "/" in source:
            return source
        raise
    space, base = load_study(source, config, overrides)
    return f"{space.name}/{space.domain or base.domain}"
