"""The study's driver without Ray: it chooses the next segment, promotes or stops trials at rungs, and records results.

It decides from the records alone, and writes each event there first. So it may be killed at any moment, and another
driver resumes the study.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from bft_ray.config import Config
from bft_ray.errors import BadInput, BftError, DiskFull
from bft_ray.places import storage
from bft_ray.places.disk import full_place
from bft_ray.places.kept import is_damaged
from bft_ray.space.grid import num_trials
from bft_ray.space.parts import Asha
from bft_ray.study.agenda import PARTS, next_segment, next_trial
from bft_ray.study.confirm.items import items_of
from bft_ray.study.definition import Study
from bft_ray.study.propose.duplicates import key_of, original_of, why_duplicate
from bft_ray.study.propose.halving import promotes
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records import clock
from bft_ray.study.records.ranking import ranked
from bft_ray.study.records.record import TrialRecord, begun_segment, by_id, ended_segment, last_s, why_no_score
from bft_ray.study.records.segment import Run, Segment
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, BySeed, Store

#: a study ends when this many trials have failed and none has another result
_HOPELESS = 3

Over = Literal["over"]
OVER: Over = "over"
#: called when a trial begins or ends
Listener = Callable[[Literal["begun", "ended"], TrialRecord], None]


class Controller:
    """Drives a study, segment by segment. All calls come from one thread.

    Args:
        store: of the search part.
        num_slots: how many segments the cluster runs at a time; called often, because the cluster may grow.
        listen: called with each trial that begins or ends.
        ahead: segments given out beyond `num_slots`, so that a worker that becomes free has one at once.
        max_failures: how often a trial is run again after its worker died.

    Attributes:
        ahead: may be changed while the study runs.
        is_held: set it to give out no more segments.
        messages: lines on what an earlier driver left: trials that were changed, damaged files.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        num_slots: Callable[[], int],
        listen: Listener = lambda event, record: None,
        *,
        ahead: int = 0,
        max_failures: int = 3,
    ):
        self.study, self._space = study, study.space
        self._num_slots, self._listen, self._max_failures = num_slots, listen, max_failures
        self.ahead, self._wants_more, self.is_held = ahead, True, False
        self.parts = {BASELINES: store.open_part(BASELINES), SEARCH: store, CONFIRMATION: store.open_part(CONFIRMATION)}
        self.messages = [line for part in PARTS for line in self.parts[part].reconcile()]
        clock.start_after(last_s(record for part in PARTS for record in self.records(part)))
        self._uncharge()
        self._active: dict[tuple[str, int], Segment] = {}  # (trial, seed) -> segment that was given out
        self._running: set[tuple[str, int]] = set()  # those of them that a worker has begun
        self.num_saved = 0  # segments whose state a worker has saved since no more are given out
        self._configs: dict[str, Config] = {}
        self._dropped: set[str] = set()  # trials of the search whose weights are deleted
        self._settle()
        self._judge()
        self.messages += self._damaged()

    # ---- records ----------------------------------------------------------------------------------------------------

    def records(self, part: str) -> list[TrialRecord]:
        """Trials of a part, by number."""
        return self.parts[part].records()

    def all_records(self) -> dict[str, list[TrialRecord]]:
        """Part -> its trials."""
        return {part: self.records(part) for part in PARTS}

    # ---- the next segment -------------------------------------------------------------------------------------------

    def next(self) -> Segment | Over | None:
        """The next segment to run; None: none now, until another segment has ended; OVER: nothing is left to run.

        Raises:
            BftError: all trials fail.
        """
        for store in self.parts.values():
            store.lease.hold()
        if self.is_held:
            return None
        slots = max(1, self._num_slots())
        if len(self._active) >= slots + self.ahead:
            self._wants_more = True
            return None
        if 0 < slots - len(self._running) <= len(self._active) - len(self._running):
            return None  # those that no worker has begun come first: a free worker needs no new suggestion
        segment = self._waiting_segment()
        while segment is None and self._add():
            self._judge()  # a batch may be complete now, so its rungs can be decided
            segment = self._waiting_segment()
        if segment is not None:
            self._active[segment.trial, segment.seed] = segment
            return segment
        self._wants_more = False
        if not self._active and (left := self._open()):  # an error is better than to wait for ever
            raise BftError(
                f"{len(left)} trials, {left[0].id} among them, wait for each other: this is a fault of bft-ray"
            )
        return None if self._active else OVER

    @property
    def num_wanted(self) -> float:
        """How many segments could run now, if there were room; infinity: more than there is."""
        return math.inf if self._wants_more else len(self._active)

    @property
    def num_running(self) -> int:
        """Segments that a worker has begun."""
        return len(self._running)

    def _open(self) -> list[TrialRecord]:
        return [record for part in PARTS for record in self.records(part) if not record.is_finished]

    def _waiting_segment(self) -> Segment | None:
        for record in self._open():
            if record.duplicate_of:
                continue
            for seed in record.seeds:
                if (record.id, seed) in self._active or seed in _runs(record):
                    continue
                if (segment := next_segment(self.study, record, seed, self._config(record))) is not None:
                    return segment
        return None

    def _config(self, record: TrialRecord) -> Config:
        if record.id not in self._configs:
            others = by_id([*self.records(BASELINES), *self.records(SEARCH)])
            self._configs[record.id] = self.study.config(record, record.seeds[0], others)
        return self._configs[record.id]

    # ---- new trials -------------------------------------------------------------------------------------------------

    def _add(self) -> bool:
        """Insert the next trial, if there is one now; a duplicate takes the result of its original."""
        new = next_trial(self._space, self.all_records())
        if new is None:
            return False
        if new.part == CONFIRMATION and new.number == 0:
            self.parts[SEARCH].note("confirmed_after", num_trials(self._space))
        config = self._config(new)
        longest = self.study.longest_of(config)
        key = key_of(config, new.seeds, longest)
        elsewhere = self.records(BASELINES) if new.part == SEARCH else []
        original = original_of(elsewhere, key) or original_of(self.records(new.part), key)
        record = self.parts[new.part].add(
            replace(new, key=key, planned_steps=self.study.steps(config)),
            space=self._space if new.part == SEARCH else None,
            original=original,
            duplicate_because=why_duplicate(config, self._config(original), longest) if original else "",
        )
        if record.is_finished:
            self._listen("ended", record)
        return True

    # ---- events of a segment ----------------------------------------------------------------------------------------

    def begun(self, segment: Segment, num_workers: int | None = None) -> None:
        """Record that workers have begun the segment.

        Args:
            num_workers: that run it; None: `cluster.num_workers`.
        """
        self._running.add((segment.trial, segment.seed))
        store, number = self._at(segment)
        num_workers = num_workers or self._config(store.record(number)).cluster.num_workers
        store.keep(number, **begun_segment(store.record(number), segment.seed, clock.now(), num_workers))
        if store.record(number).state == "waiting":
            store.start(number)
            self._listen("begun", store.record(number))

    def put_back(self, segment: Segment) -> None:
        """Take back a segment that no worker has begun; it is given out again."""
        self._active.pop((segment.trial, segment.seed), None)

    def is_promoted(self, segment: Segment, run: Run) -> bool:
        """Whether a segment that waits at a rung in its process is promoted. If not, its trial has ended."""
        store, number = self._at(segment)
        if store.record(number).is_finished:
            return False
        if not self._at_rung(segment, run):
            return False
        record = store.record(number)
        if self._promotes(record, run.num_steps):
            return True
        self._charge(segment, run)
        self._prune(record, run.num_steps)
        return False

    def ended(self, segment: Segment, run: Run) -> None:
        """Record that a worker has finished a segment, or was stopped at a rung.

        Raises:
            DiskFull: the worker had no room. Its trial waits, to be run again by the next driver.
            BftError: all trials fail.
        """
        self._forget(segment, run)
        self.num_saved += self.is_held and run.status in ("saved", "paused")
        store, number = self._at(segment)
        if store.record(number).is_finished or run.status == "running":
            return  # it was stopped, or another seed of it has failed
        if run.status == "stopped":
            store.release(number, run.reason)
            raise DiskFull(f"{segment.trial} was stopped, and the study with it: {run.reason}")
        if run.status == "saved":
            store.release(number, f"saved after step {run.num_steps}")
            return
        if run.status == "failed" and not run.is_lasting:
            self._retry(store, number, run.reason)
        elif run.status == "failed":
            self._fail(store, number, run.reason, run.num_steps)
        elif run.status == "paused":
            self._at_rung(segment, run)
        else:
            self._complete(segment, store, number, run)
        self._judge()

    def broke(self, segment: Segment, reason: str) -> None:
        """Record that the process of a segment ended without a result. The trial is run again, unless it failed too often.

        Raises:
            DiskFull: a disk that workers need has no room.
            BftError: all trials fail.
        """
        self._forget(segment)
        store, number = self._at(segment)
        if full := full_place(storage.places(segment.folder, segment.cache_dir)):
            store.release(number, str(full))
            raise DiskFull(f"a worker ended without a message, and {full}")
        if not store.record(number).is_finished:
            self._retry(store, number, reason)

    def _retry(self, store: Store, number: int, reason: str) -> None:
        """Run the trial again, unless it failed too often."""
        breaks = store.record(number).extra.get("breaks", 0) + 1
        store.keep(number, breaks=breaks)
        if breaks > self._max_failures:
            why = f"it failed {breaks} time{'s' * (breaks > 1)}, and cluster.max_failures is {self._max_failures}: {reason}"
            self._fail(store, number, why, 0)
        else:
            store.release(number, reason)

    def release(self, reason: str) -> None:
        """Release all trials that run: the driver ends."""
        for segment in self._active.values():
            self._charge(segment)
            store, number = self._at(segment)
            store.release(number, reason)
        self._active.clear()
        self._running.clear()

    def _charge(self, segment: Segment, run: Run | None = None) -> None:
        """Add the time of a segment that has ended to the trial's, the types of the cards that computed it, and its warnings."""
        store, number = self._at(segment)
        told = (run.cards, run.warnings) if run is not None else ()
        store.keep(number, **ended_segment(store.record(number), segment.seed, clock.now(), *told))

    def _charge_all(self, record: TrialRecord) -> None:
        """Add the time of a trial's segments so far: it ends while other seeds of it run."""
        for segment in [segment for (trial, _), segment in self._active.items() if trial == record.id]:
            self._charge(segment)

    def _uncharge(self) -> None:
        """Forget segments that ran when the last driver was killed: nobody knows when they ended."""
        for record in self._open():
            if record.extra.get("since"):
                self.parts[record.part].keep(record.number, since={})

    def _forget(self, segment: Segment, run: Run | None = None) -> None:
        self._charge(segment, run)
        self._active.pop((segment.trial, segment.seed), None)
        self._running.discard((segment.trial, segment.seed))

    def _at(self, segment: Segment) -> tuple[Store, int]:
        part, _, number = segment.trial.partition("/")
        return self.parts[part], int(number)

    def _at_rung(self, segment: Segment, run: Run) -> bool:
        """Record the value that was measured at a rung; a trial without a finite value has failed."""
        store, number = self._at(segment)
        metric = rung_metric(self._space)
        if flaw := why_no_score(metric, run.last.get(metric)):
            self._fail(store, number, f"{flaw} at step {run.num_steps} (seed {segment.seed})", run.num_steps)
            return False
        store.report(number, run.num_steps, {segment.seed: run.last[metric]})
        return True

    def _judge(self) -> None:
        """Promote or stop the trials that wait at a rung, where that can be decided now."""
        if self.study.is_judged_in_place or not isinstance(self._space.scheduler, Asha):
            return
        for record in self.records(SEARCH):
            if record.is_finished or record.duplicate_of or record.last_rung is None:
                continue
            step = record.last_rung[0]
            if record.extra.get("passed", 0) >= step:
                continue
            promoted = self._promotes(record, step)
            if promoted:
                self.parts[SEARCH].keep(record.number, passed=step)
            elif promoted is not None:
                self._prune(record, step)

    def _promotes(self, record: TrialRecord, step: int) -> bool | None:
        rungs = self.study.rungs(SEARCH, self._config(record))
        return promotes(self._space, self.records(SEARCH), record.number, step, rungs)

    def _prune(self, record: TrialRecord, step: int) -> None:
        assert isinstance(self._space.scheduler, Asha)
        why = f"not among the best 1 of {self._space.scheduler.reduction} at step {step}"
        self._charge_all(record)
        self.parts[SEARCH].prune(record.number, step * len(record.seeds), why)
        for seed in record.seeds:
            storage.remove_folder(self.study.files_of(record, seed).state)
        self._finished(self.parts[SEARCH], record.number)

    def _fail(self, store: Store, number: int, reason: str, num_steps: int) -> None:
        self._charge_all(store.record(number))
        store.fail(number, reason, num_steps)
        for seed in store.record(number).seeds:
            files = self.study.files_of(store.record(number), seed)
            storage.remove_folder(files.state)
            storage.remove_folder(files.weights)
        self._finished(store, number)
        ran = [
            record for part in PARTS for record in self.records(part) if record.is_finished and not record.duplicate_of
        ]
        if len(ran) >= _HOPELESS and all(record.state == "failed" for record in ran):
            counted = Counter(record.reason for record in ran)
            raise BftError(f"all of the first {len(ran)} trials failed: {counted.most_common(1)[0][0]}")

    def _complete(self, segment: Segment, store: Store, number: int, run: Run) -> None:
        """Record the run of one seed; the trial is complete with the last one."""
        record = store.record(number)
        runs = _runs(record) | {segment.seed: {"metrics": run.last, "num_steps": run.num_steps}}
        if record.part == CONFIRMATION:
            whole = Run.read(segment.files, segment.key)
            if whole is None and is_damaged(segment.files.result):
                return self._retry(store, number, f"{segment.files.result}, the file of its result, is damaged")
            if whole is None:
                raise BftError(
                    f"{segment.folder} has no file of {segment.trial}: all nodes must share cluster.storage_path"
                )
            try:
                store.keep(number, **items_of(self._space.objective.metric, self._space.claimed_metrics, whole.records))
            except BadInput as error:  # such as a score that is not finite
                return self._fail(store, number, str(error), run.num_steps)
        if len(runs) < len(record.seeds):
            store.keep(number, runs={str(seed): one for seed, one in runs.items()})
            return
        by_seed: BySeed = {seed: one["metrics"] for seed, one in runs.items()}
        store.complete(number, by_seed, sum(one["num_steps"] for one in runs.values()))
        self._finished(store, number)

    def _finished(self, store: Store, number: int) -> None:
        self._listen("ended", store.record(number))
        self._settle()
        if store.part == SEARCH:
            self._drop_weights()

    def _settle(self) -> None:
        """Give duplicates the results of their originals that have ended."""
        for part in PARTS:
            if any(record.duplicate_of and not record.is_finished for record in self.records(part)):
                for record in self.parts[part].settle(self.records(BASELINES)):
                    self._listen("ended", record)

    def _drop_weights(self) -> None:
        """Delete weights of the search, except those of the best `checkpoint.keep` trials."""
        metric = self._space.objective.metric
        done = [record for record in ranked(self.records(SEARCH), metric) if record.ran_to_end]
        keep = self._config(done[0]).checkpoint.keep if done else 0
        for record in done[keep:]:
            if record.id not in self._dropped:
                storage.remove_folder(self.study.files_of(record, record.seeds[0]).weights)
                self._dropped.add(record.id)

    def _damaged(self) -> list[str]:
        """A line for each damaged file of an unfinished trial: the workers that find it print nothing for the user."""
        unfinished = [record for record in self._open() if not record.duplicate_of]
        files = [self.study.files_of(record, seed).result for record in unfinished for seed in record.seeds]
        return [f"{file} is damaged: that run starts again" for file in files if is_damaged(file)]


def segments_ahead(config: Config) -> int:
    """How many segments to give out beyond the slots: 1 keeps warm workers busy; 0 where the number of workers may change,
    because a segment that waits has the number of an earlier time.
    """
    return int(config.cluster.least_workers == config.cluster.num_workers)


def _runs(record: TrialRecord) -> dict[int, Any]:
    """Seed -> result of its finished run, of a trial that still runs with other seeds."""
    return {int(seed): run for seed, run in record.extra.get("runs", {}).items()}
