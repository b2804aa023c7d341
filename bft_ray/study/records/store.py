"""The records of a study, in a database, as the one source of truth: a driver may be killed at any moment.

A part of a study (search, baselines, confirmation) is one Optuna study named `NAME/DOMAIN/PART`, and a trial is one
Optuna trial, so that Optuna's own tools read it; `bft_ray.study.records.frozen` lists where each field is. Each write is
one transaction, and each event takes two at most: first what is known (`outcome`, `released`, `rungs`), then the state.
After a crash in between, `reconcile` finds the state from the rest. Every write may be repeated. Numbers are given in
order, and never twice.

Only one process writes, from one thread: the driver, which holds the lease (`bft_ray.study.records.lease`). So it reads
the database once, and `records` then costs it nothing; every other process reads the database.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bft_ray.config import Config
from bft_ray.errors import BadInput
from bft_ray.places.addresses import redact
from bft_ray.space.assign import check_assignment
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import num_trials
from bft_ray.study.records.database import Database
from bft_ray.study.records.frozen import from_optuna, means, outcome_of, plain_rungs, to_optuna
from bft_ray.study.records.lease import Lease
from bft_ray.study.records.part import Part
from bft_ray.study.records.record import State, TrialRecord, by_id, why_no_score
from bft_ray.study.records.same_study import refuse_others, study_settings

BySeed = Mapping[int, Mapping[str, float]]

SEARCH, BASELINES, CONFIRMATION = "search", "baselines", "confirmation"


def studies(database: Database) -> list[str]:
    """Names (`NAME/DOMAIN`) of the studies that the database holds."""
    return sorted(_begun(database))


def _begun(database: Database) -> dict[str, dict[str, Any]]:
    """Study -> its settings; a study whose first driver was killed before it wrote them is left out."""
    ending, found = f"/{SEARCH}", database.retry("listing studies", database.storage.get_all_studies)
    return {
        study.study_name.removesuffix(ending): study.user_attrs["settings"]
        for study in found
        if study.study_name.endswith(ending) and "settings" in study.user_attrs
    }


class Store:
    """The records of one part of one study; see the head of this file. Made by `create`, `find` and `open_part`."""

    def __init__(self, database: Database, study: str, part: str, metric: str, lease: Lease, *, make: bool):
        self.database, self.study, self.part, self.metric, self.lease = database, study, part, metric, lease
        self._make, self._held = make, Part(database, f"{study}/{part}", metric, lease, make=make)
        #: settings and number of trials, to be written by the driver
        self._new: tuple[Mapping[str, Any], int] | None = None
        self._mine: dict[int, TrialRecord] | None = None  # all records, while this process drives the study

    @classmethod
    def create(cls, database: Database, space: SearchSpace, base: Config, data: Mapping[str, str]) -> Store:
        """The search part of a study: a new one, or the existing one of this name and domain.

        Args:
            data: as for `study_settings`.

        Raises:
            BadConfig: it exists with other settings or data; the message names each that changed.
        """
        study, settings = space.study_of(base), study_settings(space, base, data)
        store = cls(database, study, SEARCH, space.objective.metric, Lease(database, study), make=True)
        old = store.notes().get("settings")
        if old is not None:
            refuse_others(study, old, settings)
        if old is None:
            store._note_settings(settings, num_trials(space))
        elif old != settings:  # other processes read them: only the driver changes them
            store._new = (settings, num_trials(space))
        return store

    def _note_settings(self, settings: Mapping[str, Any], count: int) -> None:
        self.note("num_trials", count)
        self.note("settings", dict(settings))

    @classmethod
    def find(cls, database: Database, study: str) -> Store:
        """The search part of an existing study, by its name `NAME/DOMAIN`, to be read.

        Raises:
            BadInput: there is none.
        """
        known = _begun(database)
        if study not in known:
            has = f"It holds {', '.join(sorted(known))}." if known else "It holds no study."
            raise BadInput("study", study, f"a study of {database.shown}", has)
        return cls(database, study, SEARCH, known[study]["space.objective.metric"], Lease(database, study), make=False)

    def open_part(self, part: str) -> Store:
        """Another part of the same study, under the same lease. Where it does not exist yet, a store of `create` makes it,
        and for a store of `find` it is empty.
        """
        return Store(self.database, self.study, part, self.metric, self.lease, make=self._make)

    # ---- reading ----------------------------------------------------------------------------------------------------

    def records(self) -> list[TrialRecord]:
        """All trials, by number; from the database, or for the driver from what it has read and written."""
        if self._mine is not None:
            return list(self._mine.values())
        return [from_optuna(trial, self.part) for trial in self._held.trials()]

    def record(self, number: int) -> TrialRecord:
        """The trial of this number.

        Raises:
            BadInput: there is none of this number.
        """
        records = self.records()
        if not 0 <= number < len(records):
            raise BadInput("trial", f"{self.part}/{number}", f"one of the {len(records)} trials of {self.study}")
        return records[number]

    def notes(self) -> dict[str, Any]:
        """The values that the part has: `settings`, `num_trials`, and those of `note`. Always read from the database."""
        return self._held.notes()

    def note(self, name: str, value: Any) -> None:
        """Write a value (JSON) to the part, from any process: for what concerns no trial, or finished ones."""
        self._held.note(name, value)

    def delete(self) -> None:
        """Delete the study from the database: the records and notes of all of its parts. No driver can begin meanwhile.

        Raises:
            BadInput: a driver runs it.
        """
        holder = self.lease.holder()
        if holder is not None and holder.is_alive:
            remedy = "End it first: `bft-ray search --cancel`."
            raise BadInput(
                "study", self.study, f"not driven, by process {holder.owner.pid} on {holder.owner.host}", remedy
            )
        self.lease.take()  # it waits where the last renewal lies in the future: only a dead driver renews no more
        storage, retry = self.database.storage, self.database.retry
        ids = {study.study_name: study._study_id for study in retry("listing studies", storage.get_all_studies)}
        for part in (CONFIRMATION, BASELINES, SEARCH):  # the part that names the study goes last
            if (study_id := ids.get(f"{self.study}/{part}")) is not None:
                retry("deleting the study", partial(storage.delete_study, study_id))
        self.lease.drop()

    # ---- driving ----------------------------------------------------------------------------------------------------

    def reconcile(self) -> list[str]:
        """Become the driver, and repair what a killed one left. Returns one line for each trial that was changed.

        - A trial whose outcome is written but whose state is not gets its state.
        - A running trial of a dead driver is released, to be run again.
        - Values at rungs that Optuna does not see yet are written where it sees them.
        - Duplicates whose original has finished get its result.

        Raises:
            BadInput: another driver is alive.
        """
        self.lease.take()
        if self._new is not None:
            self._note_settings(*self._new)
            self._new = None
        trials = self._held.trials()
        running = {record.number for record in (self._mine or {}).values() if record.state == "running"}  # by us
        self._mine = {trial.number: from_optuna(trial, self.part) for trial in trials}
        lines = []
        for trial in trials:
            record = self._mine[trial.number]
            if record.is_finished:
                continue
            self._show_rungs(record, set(trial.intermediate_values))
            if outcome := trial.user_attrs.get("outcome"):
                self._conclude(replace(record, state=outcome["state"]))
                lines.append(f"{record.id}: its result was known, it is {outcome['state']} now")
            elif record.state == "running" and record.number not in running:
                self.release(record.number, "the driver that ran it ended")
                lines.append(f"{record.id}: released, to be run again")
        return lines + [f"{record.id}: takes the result of {record.duplicate_of}" for record in self.settle()]

    def add(
        self,
        new: TrialRecord,
        *,
        space: SearchSpace | None = None,
        original: TrialRecord | None = None,
        duplicate_because: str = "",
    ) -> TrialRecord:
        """Insert a trial in state WAITING, or, as a duplicate of a finished trial, with the result of that.

        Args:
            new: of the next number. For an existing number its record is returned, if it is the same trial.
            space: the assignment sets its parameters; None: the assignment is not from the space.
            original: the trial that ran or runs, of which this one is a duplicate; itself no duplicate.
            duplicate_because: why the two are the same run.

        Raises:
            BadInput: the number exists with another assignment, or is not the next one; or the space does not allow the
                assignment.
        """
        mine, number = self._driving(), new.number
        if number in mine:
            return self._as_before(mine[number], new)
        if number != len(mine):
            raise BadInput("trial", f"{self.part}/{number}", f"the next one, {self.part}/{len(mine)}")
        if space is not None:
            check_assignment(space, new.assignment)
        record = replace(new, created=time.time())
        if original is not None:
            record = replace(record, duplicate_of=original.id, duplicate_because=duplicate_because)
            if original.is_finished:
                record = _with_result(record, original)
        if (found := self._held.add(number, to_optuna(record, space))) is not None:
            self._as_before(from_optuna(found, self.part), new)
        mine[number] = record
        return record

    def start(self, number: int) -> None:
        """Set a waiting trial to running, by this driver.

        Raises:
            BadInput: it is finished, or a duplicate.
        """
        mine, record = self._driving(), self.record(number)
        if record.duplicate_of or record.is_finished:
            raise BadInput(record.id, record.status, "waiting, to be started", "Duplicates are not run.")
        if record.state == "waiting":
            self._held.set_state(number, "running")
            mine[number] = replace(record, state="running", attempts=record.attempts + 1, started=time.time())

    def report(self, number: int, step: int, values: Mapping[int, float]) -> None:
        """Write the metric at a rung, of some or all seeds. An existing value stays: other trials were compared with it.

        Args:
            step: of the rung, in optimizer steps.
            values: seed -> value.
        """
        mine, record = self._driving(), self.record(number)
        at = {seed: float(value) for seed, value in values.items()} | dict(record.rungs.get(step, {}))
        if record.is_finished or at == record.rungs.get(step):
            return
        shown = set(record.rung_values)
        record = replace(record, rungs={**record.rungs, step: at})
        if len(record.seeds) > 1:
            self._held.set_attribute(number, "rungs", plain_rungs(record.rungs))
        mine[number] = record
        self._show_rungs(record, shown)

    def complete(self, number: int, by_seed: BySeed, num_steps: int) -> None:
        """Finish a trial that ran to its end. Without a finite objective its state is failed.

        Args:
            by_seed: seed -> metric -> value.
            num_steps: optimizer steps over all seeds.

        Raises:
            BadInput: a seed is missing, or there are fewer steps than planned: a truncated value is no score.
        """
        record = self.record(number)
        if set(by_seed) != set(record.seeds):
            raise BadInput(f"{record.id}.seeds", sorted(by_seed), f"those of the trial: {list(record.seeds)}")
        planned = (record.planned_steps or 0) * len(record.seeds)
        if num_steps < planned:
            rule = f"all of its {planned} steps, to be complete"
            raise BadInput(f"{record.id}.num_steps", num_steps, rule, "Record it as pruned or failed.")
        for seed, metrics in sorted(by_seed.items()):
            if flaw := why_no_score(self.metric, metrics.get(self.metric)):
                return self.fail(number, f"{flaw} (seed {seed})", num_steps, by_seed)
        self._finish(number, "complete", "", by_seed, num_steps)

    def prune(self, number: int, num_steps: int, reason: str) -> None:
        """Finish a trial that was stopped early: it keeps its values at rungs, and has no score.

        Args:
            num_steps: optimizer steps over all seeds.
        """
        self._finish(number, "pruned", reason, {}, num_steps)

    def fail(self, number: int, reason: str, num_steps: int = 0, by_seed: BySeed | None = None) -> None:
        """Finish a trial without a result, for this reason; passwords in it are removed."""
        self._finish(number, "failed", redact(reason), by_seed or {}, num_steps)

    def release(self, number: int, reason: str) -> None:
        """Set a running trial to waiting, to be run again under the same number; it keeps its values at rungs."""
        mine, record = self._driving(), self.record(number)
        if record.state == "running":
            record = replace(record, state="waiting", reason=redact(reason))
            self._held.set_attribute(number, "released", {"times": record.attempts, "reason": record.reason})
            self._held.set_state(number, "waiting")
            mine[number] = record

    def keep(self, number: int, **extra: Any) -> None:
        """Add values (JSON) to the `extra` of an unfinished trial; a finished one does not change."""
        mine, record = self._driving(), self.record(number)
        values = {**record.extra, **extra}
        if not record.is_finished and values != record.extra:
            self._held.set_attribute(number, "extra", values)
            mine[number] = replace(record, extra=values)

    def settle(self, others: Iterable[TrialRecord] = ()) -> list[TrialRecord]:
        """Give waiting duplicates the results of their originals that have finished; returns their new records.

        Args:
            others: records of other parts, for duplicates whose original is in one.
        """
        self._driving()
        records = self.records()
        known = by_id([*records, *others])
        settled = []
        for record in records:
            original = known.get(record.duplicate_of or "")
            if not record.is_finished and original is not None and original.is_finished:
                for step in sorted(original.rungs):
                    self.report(record.number, step, original.rungs[step])
                self._finish(record.number, original.state, original.reason, original.by_seed, original.num_steps)
                settled.append(self.record(record.number))
        return settled

    def _driving(self) -> dict[int, TrialRecord]:
        if self._mine is None:
            raise BadInput("study", self.study, "reconciled before it is written to", "Call `reconcile`.")
        self.lease.hold()
        return self._mine

    def _as_before(self, record: TrialRecord, new: TrialRecord) -> TrialRecord:
        if record.key != new.key or dict(record.assignment) != dict(new.assignment):
            rule = f"proposed as before: number {record.number} is {dict(record.assignment)}"
            raise BadInput(record.id, dict(new.assignment), rule, "Another process writes to this study.")
        return record

    def _finish(self, number: int, state: State, reason: str, by_seed: BySeed, num_steps: int) -> None:
        """Write outcome, then state. Only the first result counts: a second one changes nothing."""
        self._driving()
        record = self.record(number)
        if not record.is_finished:
            ended = replace(record, state=state, reason=reason, by_seed=by_seed, num_steps=num_steps)
            self._held.set_attribute(number, "outcome", outcome_of(ended))
            self._conclude(ended)

    def _conclude(self, ended: TrialRecord) -> None:
        """Write the state of a trial whose outcome is written."""
        metrics = means(ended.by_seed)
        value = metrics[self.metric] if ended.state == "complete" else None
        self._held.set_state(ended.number, ended.state, value)
        assert self._mine is not None
        by_seed = {seed: dict(found) for seed, found in sorted(ended.by_seed.items())}
        self._mine[ended.number] = replace(ended, by_seed=by_seed, metrics=metrics, value=value, finished=time.time())

    def _show_rungs(self, record: TrialRecord, shown: set[int]) -> None:
        """Show Optuna the rungs that all seeds have reached."""
        for step, value in record.rung_values.items():
            if step not in shown:
                self._held.show_rung(record.number, step, value)


def _with_result(record: TrialRecord, original: TrialRecord) -> TrialRecord:
    """The record of a duplicate with the result of its finished original."""
    return replace(
        record,
        state=original.state,
        reason=original.reason,
        rungs=original.rungs,
        by_seed=original.by_seed,
        metrics=original.metrics,
        value=original.value,
        num_steps=original.num_steps,
        started=record.created,
        finished=record.created,
    )
