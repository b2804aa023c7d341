"""One part of a study in Optuna's storage: every call is repeated while the database is away, and a write is one transaction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from bft_ray.config.metrics import higher_is_better
from bft_ray.study.records.database import Database
from bft_ray.study.records.frozen import STATES
from bft_ray.study.records.lease import Lease
from bft_ray.study.records.record import State

_ABSENT = -1  # the id of a part that nobody has begun


class Part:
    """One part of a study, which is one Optuna study.

    Args:
        name: `NAME/DOMAIN/PART`.
        metric: of the objective, which has a direction.
        lease: held before each write to a trial.
        make: where it does not exist yet, make it; else it is empty.
    """

    def __init__(self, database: Database, name: str, metric: str, lease: Lease, *, make: bool):
        self._database, self._storage, self._lease = database, database.storage, lease
        self._id = database.retry("opening the study", partial(self._open, name, metric, make))

    def _open(self, name: str, metric: str, make: bool) -> int:
        with contextlib.suppress(KeyError):
            return self._storage.get_study_id_from_name(name)
        if not make:
            return _ABSENT
        direction = StudyDirection.MAXIMIZE if higher_is_better(metric) else StudyDirection.MINIMIZE
        with contextlib.suppress(DuplicatedStudyError):  # by another process, at this moment
            return self._storage.create_new_study([direction], name)
        return self._storage.get_study_id_from_name(name)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        if self._id == _ABSENT:
            return []
        call = partial(self._storage.get_all_trials, self._id, deepcopy=False)
        return self._database.retry("reading trials", call)

    def notes(self) -> dict[str, Any]:
        """The values of the part itself."""
        return self._database.retry("reading the study", partial(self._storage.get_study_user_attrs, self._id))

    def note(self, name: str, value: Any) -> None:
        """Write a value (JSON) of the part itself; the only write that needs no lease."""
        self._database.retry("writing a note", partial(self._storage.set_study_user_attr, self._id, name, value))

    def add(self, number: int, trial: FrozenTrial) -> FrozenTrial | None:
        """Insert the next trial, of this number. Returns what the database holds where the answer to an earlier try was lost; else None."""
        tries = 0
        self._lease.renew()  # two drivers at once would both add this number

        def write() -> None:
            nonlocal tries
            tries += 1
            if tries > 1 and len(self.trials()) > number:
                return  # an earlier try has reached the database, though its answer was lost
            self._storage.create_new_trial(self._id, trial)

        self._database.retry("adding a trial", write)
        return self.trials()[number] if tries > 1 else None

    def show_rung(self, number: int, step: int, value: float) -> None:
        """Write a value where Optuna looks for those at rungs."""
        self._write(number, lambda trial_id: self._storage.set_trial_intermediate_value(trial_id, step, value))

    def set_attribute(self, number: int, name: str, value: Any) -> None:
        """Write a value (JSON) of a trial."""
        self._write(number, lambda trial_id: self._storage.set_trial_user_attr(trial_id, name, value))

    def set_state(self, number: int, state: State, value: float | None = None) -> None:
        """Set the state of a trial, and its objective where it is complete."""
        values = None if value is None else [value]
        self._write(number, lambda trial_id: self._storage.set_trial_state_values(trial_id, STATES[state], values))

    def _write(self, number: int, call: Callable[[int], Any]) -> None:
        def write() -> None:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
            # finished already: an earlier try has reached the database
            with contextlib.suppress(UpdateFinishedTrialError):
                call(trial_id)

        self._lease.hold()
        self._database.retry("writing to a trial", write)
