"""A study whose records were made by hand, in a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from bft_ray.study.definition import Study
from bft_ray.study.kept import note_study
from bft_ray.study.records.database import Database
from bft_ray.study.records.frozen import to_optuna
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import SEARCH, Store


def write_study(url: str, study: Study, parts: Mapping[str, Sequence[TrialRecord]], **notes: Any) -> None:
    """Write the records of each part, and notes."""
    with Database(url) as database:
        store = Store.create(database, study.space, study.base, {"train": "f1"})
        for part, records in parts.items():
            store.open_part(part)  # which makes it
            part_id = database.storage.get_study_id_from_name(f"{study.name}/{part}")
            for record in records:
                trial = to_optuna(record, study.space if part == SEARCH else None)
                if record.started is not None:
                    trial.datetime_start = datetime.fromtimestamp(record.started)
                if record.finished is not None:
                    trial.datetime_complete = datetime.fromtimestamp(record.finished)
                database.storage.create_new_trial(part_id, trial)
        note_study(store, study)
        for name, value in {"id": study.id, **notes}.items():
            store.note(name, value)
