"""Find, create or reopen a run, and what its params may be."""

from __future__ import annotations

import contextlib
import getpass
from typing import TYPE_CHECKING, Any, NamedTuple

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.places.addresses import absolute_uri, redact, sqlite_path
from bft_ray.tracking.resume import MAY_CHANGE
from bft_ray.tracking.retry import patiently
from bft_ray.tracking.server import connect, latest_runs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_KEY, REASON = "bft.run_key", "bft.reason"
LONGEST_VALUE = 6000  # characters of a param: MLflow cuts longer ones


class NewParams(NamedTuple):
    """Params, split by what is to be done with them."""

    values: dict[str, str]  # to be written
    texts: dict[str, str]  # artifact file -> a value too long for a param
    changed: dict[str, str]  # tags of those that differ and may


def new_params(params: dict[str, Any], held: dict[str, str], run_id: str | None = None) -> NewParams:
    """What to write, given what the run holds already (MLflow never changes a param).

    Raises:
        BadInput: a value differs from that of the run, and results depend on it.
    """
    values, texts, changed = {}, {}, {}
    for name, raw in params.items():
        value = whole = redact(str(raw))
        if len(whole) > LONGEST_VALUE:
            value = f"{whole[:200]}... ({len(whole)} characters, whole in params/{name}.txt)"
        if name not in held:
            values[name] = value
            if value != whole:
                texts[f"params/{name}.txt"] = whole
        elif held[name] != value and name.startswith(MAY_CHANGE):
            changed[f"bft.now.{name}"] = value
        elif held[name] != value:
            rule = f"{held[name]!r}, because run {run_id} began so and would go on"
            raise BadInput(name, value, rule, "Give it that value, or another `name` to begin a new run.")
    return NewParams(values, texts, changed)


def find_run(client: MlflowClient, experiment_id: str, run_name: str, key: str | None) -> Run | None:
    """The latest run of that name and run key that has not FINISHED: the one to resume."""
    if key is None:
        return None
    runs = latest_runs(client, [experiment_id], f"tags.`{RUN_KEY}` = '{key}'", 50)
    unfinished = (run for run in runs if run.info.run_name == run_name and run.info.status != "FINISHED")
    return next(unfinished, None)


def get_run(client: MlflowClient, run_id: str) -> Run:
    """The run of that id, or BadInput."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        remedy = "Was the database moved or exchanged? Give its address, or another `name` to begin a new run."
        raise BadInput("run_id", run_id, "a run of the tracking server", remedy) from None


def status_of(tracking: TrackingConfig, run_id: str) -> str | None:
    """The status of a run; None where the server has no such run, or somebody has deleted it. Makes no database.

    Raises:
        Exception: of MLflow, if the server stays away for `tracking.timeout_s`.
    """
    path = sqlite_path(absolute_uri(tracking.uri))
    if path is not None and not path.exists():
        return None
    client = connect(absolute_uri(tracking.uri))

    def read() -> str | None:
        try:
            info = get_run(client, run_id).info
        except BadInput:
            return None
        return info.status if info.lifecycle_stage == "active" else None

    return patiently(tracking.timeout_s, read)


def create_run(client: MlflowClient, experiment_id: str, run_name: str, tags: dict[str, str]) -> str:
    """A new run's id; the run key is written with it, so that a kill leaves no run that cannot be found."""
    key = {RUN_KEY: tags[RUN_KEY]} if RUN_KEY in tags else {}
    return client.create_run(experiment_id, run_name=run_name, tags=about() | key).info.run_id


def about() -> dict[str, str]:
    """Tags of every run: what made it, and whose it is."""
    tags = {"mlflow.source.name": "bft-ray"}
    with contextlib.suppress(OSError, KeyError):  # no name for this user id, as in some containers
        tags["mlflow.user"] = getpass.getuser()
    return tags


def reopen_run(client: MlflowClient, run: Run) -> str:
    """Make the run RUNNING again, without the reason of its last end; returns its id."""
    client.update_run(run.info.run_id, status="RUNNING")
    if REASON in run.data.tags:
        client.delete_tag(run.info.run_id, REASON)
    return run.info.run_id


#: MLflow's page then opens with runs and models, where it would otherwise guess, and may show chats
_KIND, _TRAINING = "mlflow.experimentKind", "custom_model_development"


def experiment_id_of(client: MlflowClient, name: str, root: str | None) -> str:
    """The experiment's id; created, with its artifacts under `root`, where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=root and f"{root}/{name}", tags={_KIND: _TRAINING})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)  # another process was quicker
        assert found is not None
    if found.lifecycle_stage != "active":
        remedy = "Restore it in MLflow, or choose another."
        raise BadInput("tracking.experiment", name, "an experiment that is not deleted", remedy)
    return found.experiment_id
