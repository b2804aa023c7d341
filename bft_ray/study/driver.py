"""`bft-ray search`: a study from its search space to a champion in the registry. The same call resumes it after any end."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from bft_ray.config import Config
from bft_ray.config.metrics import higher_is_better
from bft_ray.data.passing import tokens_pass
from bft_ray.data.tokenise import with_date
from bft_ray.errors import BadInput, BftError, DiskFull
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.places import storage
from bft_ray.places.addresses import redacted_yaml
from bft_ray.places.kept import read_kept
from bft_ray.places.modes import kept_for, settle
from bft_ray.places.scratch import scratch
from bft_ray.profile.run import log_files, profile_data
from bft_ray.space.assign import config_of, with_overrides
from bft_ray.space.cost import cost_of
from bft_ray.space.definition import LEARNING_RATE, SearchSpace
from bft_ray.space.grid import num_trials, representatives
from bft_ray.study.agenda import part_of, time_is_over, totals
from bft_ray.study.answer import answer
from bft_ray.study.checks.expect import caveats, local_slots, requirements
from bft_ray.study.checks.packing import settle_packing
from bft_ray.study.checks.ready import Facts, inspect_study
from bft_ray.study.conclude import StudyResult, conclude, known_now, require_left
from bft_ray.study.controller import Controller, segments_ahead
from bft_ray.study.definition import Study
from bft_ray.study.execute.measure import measure as measured_on
from bft_ray.study.kept import note_study, profile_folder
from bft_ray.study.place import OnRay, Place
from bft_ray.study.propose.sampler import rung_metric
from bft_ray.study.records import clock
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import all_of
from bft_ray.study.records.store import CONFIRMATION, Store
from bft_ray.study.report.live import Live
from bft_ray.study.report.recorder import Recorder, params_of
from bft_ray.tracking.begin import RUN_KEY
from bft_ray.tracking.run import Tracker
from bft_ray.train.pins import pin_paths
from bft_ray.waits import waiting
from bft_ray.workers.connect import require_cluster

_PATIENCE_S = 120.0  # for a tracking server that is away at the end
_LOOK_S = 2.0  # between two checks whether the study is cancelled


class Cancelled(BftError):
    """The study was cancelled."""


def search(
    space: SearchSpace,
    base: Config,
    database_url: str,
    *,
    profile: bool = True,
    measure: bool = True,
    live: Live | None = None,
    place: Place | None = None,
) -> StudyResult:
    """Run a study, or resume it: baselines, search, confirmation, choice, test, registry.

    Args:
        space, base: as `load_study` gives them.
        database_url: of the study: `sqlite:///FILE` or the address of a PostgreSQL.
        profile: also draw the window profile of the training data.
        measure: first print how much time, disk and memory the study needs, measured on a few steps.
        place: where its segments run; default: on Ray, as `base.cluster` says.

    Raises:
        BadConfig, BadInput: before any worker starts, for every fault that can be found by then; also for a study that
            exists with other settings, that another driver runs, or that is finished and has lost its files.
        Cancelled: by `cancel`.
        DiskFull: a disk has no room. No trial has failed because of it, and the same call resumes the study.
        BftError: all trials failed, or the default to compare with has no result; or MLflow did not store all of the
            answer, and the same call tries that again.
    """
    base, place = base.model_copy(update={"name": None}), place or OnRay()
    title = f"{space.name}, domain {space.domain_of(base)}"
    with (
        tokens_pass(),
        kept_for(base.cluster.file_mode),
        Database(database_url) as database,
        live or Live(title, space.objective.metric, rung_metric=rung_metric(space)) as shown,
    ):
        known, first = _notes(database, space, base), config_of(base, space, representatives(space, 1)[0])
        _require_a_node(first)
        if known.get("result") is None:  # a finished study is shown, also without the cluster that it ran on
            require_cluster(first.cluster)
        base = _with_date(known, first, base)
        facts = inspect_study(space, pin_paths(base), shown.note)
        store = Store.create(database, space, base, facts.fingerprints)
        if (done := _finished(store, space)) is not None:
            shown.note(f"the study {store.study} is finished")
            require_left(done, facts.first.tracking, database.shown)
            return done
        store.lease.take()
        with store.lease.kept():
            store.note("cancel", False)
            store.note("result", None)  # that of a smaller budget, if any
            # fields given with the command, such as tracking.uri, are in the trials' config
            cost = cost_of(space, base, facts.longest, facts.samples_per_source)
            for text in caveats(space, cost, facts):
                shown.note(text)
            study = _study(store, space, base.model_copy(update={"tracking": facts.first.tracking}), facts)
            with place.connected(facts.first.cluster):
                for text in place.told(facts.first.cluster, deterministic=space.deterministic):
                    shown.note(text)
                study, facts = settle_packing(study, facts, store, shown.note)
                note_study(store, study)
                if measure and not store.records():  # only when the study begins
                    found, slots = measured_on(facts.first, shown.note), local_slots(facts.first.cluster)
                    for text in requirements(space, facts.first, cost, found, slots):
                        shown.note(text)
                if profile:
                    _profile(study, facts.first, shown.note)
                return _run(study, store, facts.first, shown, place)


def _notes(database: Database, space: SearchSpace, base: Config) -> dict[str, Any]:
    """The notes of the study so far; {} where it has not begun."""
    with contextlib.suppress(BadInput):
        return Store.find(database, space.study_of(base)).notes()
    return {}


def _with_date(known: Mapping[str, Any], first: Config, base: Config) -> Config:
    """The base config with the date that all trials give to a chat template: that of the study's first start.

    Args:
        known: notes of the study.
        first: config of its first trial.
    """
    dated = with_date(first.data, load_tokenizer(first.model), known.get("settings", {}).get("config.data.date"))
    return base.model_copy(update={"data": base.data.model_copy(update={"date": dated.date})})


def _require_a_node(first: Config) -> None:
    """Raise BadInput for the address of a Ray client: Tune would run the driver on another machine, without the database."""
    address = first.cluster.address or ""
    if address.startswith("ray://"):
        remedy = "Submit it as a job (ray job submit -- python -m jobs.search ...), or run it on a node of the cluster."
        raise BadInput("cluster.address", address, "the address of a cluster that this machine is a node of", remedy)


def _study(store: Store, space: SearchSpace, base: Config, facts: Facts) -> Study:
    """The study, with the id that it got when it began."""
    found = store.notes().get("id")
    if found is None:
        store.note("id", found := uuid.uuid4().hex)
    name = f"{space.name}-{found[:8]}"  # a study of the same name in another database has another id
    folder = storage.join(facts.first.cluster.storage_path, "studies", space.domain_of(base), name)
    return Study(found, space, base, facts.longest, facts.samples_per_source, folder)


def _finished(store: Store, space: SearchSpace) -> StudyResult | None:
    """The result of the study with this budget; None where it has more to do.

    Raises:
        BadInput: another budget than that with which the confirmation has begun.
    """
    notes = store.notes()
    # as the last driver had them: a driver that resumes with another budget removes the result first
    limits = {f"budget.{name}": getattr(space.budget, name) for name in ("time_s", "worker_hours")}
    before = {"budget.trials": notes["num_trials"]}
    before |= {field: notes["settings"].get(f"space.{field}") for field in limits}
    asked = {"budget.trials": num_trials(space), **limits}
    changed = [field for field in asked if asked[field] != before[field]]
    if changed and "confirmed_after" in notes:
        field = changed[0]
        rule = f"{before[field]} as before: the confirmation has begun, and its results must not influence a search"
        remedy = "Keep it, or give the study another `name`, and fresh data for its confirmation."
        raise BadInput(field, asked[field], rule, remedy)
    done = notes.get("result")
    return None if changed or done is None else StudyResult(**done)


def _run(study: Study, store: Store, first: Config, shown: Live, place: Place) -> StudyResult:
    """The steps that need the cluster and MLflow."""
    notes, num_slots = store.notes(), place.num_slots(first.cluster)
    with Tracker.start(
        study.base.tracking,
        experiment=first.experiment,
        run_name=study.space.name,
        run_id=notes.get("run_id"),
        params=params_of(study, first),
        tags={
            RUN_KEY: study.id,  # finds the run if a driver is killed before it notes the run's id
            "bft.kind": "study",
            "bft.domain": study.domain,
            "bft.study": study.name,
            "bft.study_id": study.id,
        },
    ) as tracker:
        store.note("run_id", tracker.run_id)
        shown.note(f"study {study.name}: MLflow run {tracker.run_id} in experiment {first.experiment}")
        tracker.prefer(study.space.objective.metric, higher_is_better(study.space.objective.metric))
        _log_inputs(tracker, study, first, notes["settings"]["data.train"])
        recorder = Recorder(study, tracker)
        controller = Controller(
            study,
            store,
            num_slots,
            recorder,
            ahead=segments_ahead(first),
            max_failures=first.cluster.max_failures,
        )
        reason = "the driver ended"
        storage.remove_parts(study.folder)  # of a driver or workers that were killed
        try:
            for line in controller.messages:
                shown.note(line)
            recorder.catch_up(all_of(controller.all_records()))
            look = _looks(store, controller, shown, num_slots)
            place.run(controller, first, look)
            look()
            with waiting("choosing"):
                found = answer(study, controller.parts, shown.note)
            with waiting("recording the answer"):
                result = conclude(study, store, found, tracker, recorder, shown.note)
            if tracker.flush(_PATIENCE_S) and tracker.finish(
                "FAILED" if result.failed else "FINISHED", result.failed or None
            ):
                store.note("result", vars(result))  # last of all: who finds it sends MLflow nothing more
            else:
                shown.note("MLflow is away: the same command records what it lacks")
            return result
        except Cancelled as error:
            reason = str(error)
            recorder.describe(known_now(study, store, is_finished=False))
            tracker.finish("KILLED", reason)
            raise
        except DiskFull:
            reason = "a disk was full"
            storage.remove_parts(study.folder)  # of workers that ended with the study
            raise
        finally:
            with contextlib.suppress(BftError):  # the database is away, or another driver has taken over
                controller.release(reason)
            settle(study.folder)  # with what libraries have written


def _looks(store: Store, controller: Controller, shown: Live, slots: Callable[[], int]) -> Callable[[], None]:
    """A function for the driver to call often: it updates the display, and raises Cancelled if the study was cancelled."""
    looked, is_over = time.monotonic(), False

    def look() -> None:
        nonlocal looked, is_over
        records = controller.all_records()
        part = part_of(controller.study.space, records)
        shown.part(part, totals(controller.study.space, records)[part])
        shown.show(records, slots(), time.time())
        if time.monotonic() - looked >= _LOOK_S:
            looked = time.monotonic()
            if not is_over and part != CONFIRMATION and time_is_over(controller.study.space, records, clock.now()):
                is_over = True
                shown.note("the budget of time is used up: no trial of the search starts; those that run go on")
            if store.notes().get("cancel"):
                raise Cancelled("cancelled; the same command resumes the study")

    return look


def _log_inputs(tracker: Tracker, study: Study, first: Config, fingerprint: str) -> None:
    tracker.log_text(redacted_yaml(study.base), "config.yaml")
    tracker.log_text(redacted_yaml(study.space), "search_space.yaml")
    paths = ", ".join(source.path for source in first.data.train)
    if study.num_samples is not None:
        tracker.log_dataset("train", paths, fingerprint, study.num_samples, "train")
    with scratch("profile") as temporary, contextlib.suppress(FileNotFoundError):  # a study without one
        log_files(tracker, storage.fetch_folder(profile_folder(study), temporary))


def _profile(study: Study, first: Config, line: Callable[[str], None]) -> None:
    """The window profile of the training data; its forward pass is done once for the same data and model."""
    place = profile_folder(study)
    if read_kept(storage.join(place, "profile.json")) is not None:
        return
    line("profile of the training data")
    config = first
    if LEARNING_RATE in study.space.parameters:  # the proposed rates are around the study's, not the first trial's
        config = with_overrides(first, {LEARNING_RATE: study.base.optimizer.learning_rate}, "the profile")
    with scratch("profile") as temporary:
        out = temporary / "profile"  # which `profile_data` makes
        for finding in profile_data(config, out, source=study.space.config, track=False).findings:
            line(f"  {finding}")
        storage.put_folder(out, place)
