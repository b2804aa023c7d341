"""Records in a real database, SQLite and PostgreSQL: what stands where, who may write, and what a killed driver leaves."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from bft_ray.errors import BadConfig, BadInput
from bft_ray.study.propose.duplicates import key_of, original_of, why_duplicate
from bft_ray.study.records.database import Database, DatabaseAway
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, Store, studies
from jobs.bench.store import DoNothing
from tests.support.records import BASE, METRIC, SPACE, A, B, add, make_base, make_space, new
from tests.support.servers import HAS_POSTGRES, postgres, restart_postgres

#: a process that has this one's modules loaded: it begins at once
FORK = multiprocessing.get_context("fork")


DETERMINISTIC = pytest.param("postgresql", "yes", marks=HAS_POSTGRES)


def native(url: str, study: str = "small/test/search") -> list[optuna.trial.FrozenTrial]:
    """The trials as anybody reads them with Optuna."""
    return optuna.load_study(study_name=study, storage=url).trials


def timeless(records: list[TrialRecord]) -> list[TrialRecord]:
    return [replace(record, created=None, started=None, finished=None) for record in records]


# ---- what stands where -----------------------------------------------------------------------------------------------


def test_a_study_as_optuna_reads_it(url):
    store = new(url)
    for number, assignment in enumerate([A, B, A, B, A, B]):
        add(store, number, assignment, name=f"trial {number}")
    for number in range(5):
        store.start(number)
        store.report(number, 8, {0: 0.25 + number})
    store.complete(0, {0: {METRIC: 0.5, "validation/nll": 1.5}}, 24)
    store.prune(1, 8, "not among the best at step 8")
    store.complete(2, {0: {METRIC: math.inf}}, 24)
    store.fail(3, "the loss of step 3 is not finite, at postgresql://me:secret@host/db", 3)
    add(store, 6, A, key="key 0", original=store.record(0), duplicate_because="the same settings")
    trials = native(url)
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING,
        TrialState.WAITING, TrialState.COMPLETE,
    ]  # fmt: skip
    assert [trial.values for trial in trials] == [[0.5], None, None, None, None, None, [0.5]]
    assert [trial.params for trial in trials] == [A, B, A, B, A, B, A]
    assert [trial.intermediate_values for trial in trials] == [{8: 0.25 + n} for n in range(5)] + [{}, {8: 0.25}]
    assert trials[6].user_attrs["merged_with"] == "search/0"
    assert trials[0].datetime_complete is not None and trials[0].duration is not None

    other = Store.find(Database(url), "small/test")  # what another machine sees is what the driver knows
    assert timeless(other.records()) == timeless(store.records())
    for seen, own in zip(other.records(), store.records(), strict=True):
        assert (seen.finished is None) == (own.finished is None)
        assert seen.finished is None or abs(seen.finished - (own.finished or 0)) < 5
    records = other.records()
    assert [record.status for record in records] == [
        "complete",
        "pruned",
        "failed",
        "failed",
        "running",
        "waiting",
        "duplicate",
    ]
    assert records[0].metrics == {METRIC: 0.5, "validation/nll": 1.5} and records[0].value == 0.5
    assert records[2].reason == "choices/probability is inf (seed 0)" and records[2].by_seed == {0: {METRIC: math.inf}}
    assert records[3].reason == "the loss of step 3 is not finite, at postgresql://me:***@host/db"
    assert (records[6].value, records[6].num_steps) == (0.5, 24)
    assert (records[1].num_steps, records[1].rung_values, records[1].value) == (8, {8: 1.25}, None)
    assert "secret" not in repr(trials)


def test_seeds_rungs_and_truncation(tmp_path):
    store = new(f"sqlite:///{tmp_path}/study.db")
    add(store, 0, seeds=[0, 1])
    store.start(0)
    store.report(0, 8, {0: 0.5})
    assert store.record(0).rung_values == {} and native(store.database.url)[0].intermediate_values == {}
    store.report(0, 8, {1: 0.75})
    store.report(0, 8, {0: 0.1, 1: 0.1})  # another attempt: what others were judged by stands
    assert store.record(0).rung_values == {8: 0.625} == native(store.database.url)[0].intermediate_values
    with pytest.raises(BadInput, match=r"`search/0.seeds` is \[0\], but must be those of the trial: \[0, 1\]"):
        store.complete(0, {0: {METRIC: 0.5}}, 48)
    with pytest.raises(BadInput, match=r"`search/0\.num_steps` is 47, but must be all of its 48 steps, to be complete"):
        store.complete(0, {0: {METRIC: 0.5}, 1: {METRIC: 0.75}}, 47)
    assert store.record(0).state == "running"
    store.complete(0, {1: {METRIC: 0.75, "a": 1.0}, 0: {METRIC: 0.5, "a": math.nan, "b": 2.0}}, 48)
    record = store.record(0)
    assert (record.value, record.num_steps, list(record.by_seed)) == (0.625, 48, [0, 1])
    assert math.isnan(record.metrics["a"]) and "b" not in record.metrics
    store.fail(0, "too late")  # the first result stands
    assert store.record(0) is record
    add(store, 1)
    store.start(1)
    store.complete(1, {0: {"validation/nll": 1.0}}, 24)
    assert store.record(1).reason == "choices/probability was not measured (seed 0)"
    add(store, 2)
    store.start(2)
    store.report(2, 8, {0: math.nan})
    assert math.isnan(Store.find(Database(store.database.url), "small/test").records()[2].rung_values[8])


def test_numbers_come_in_order_and_are_given_once(tmp_path):
    store = new(f"sqlite:///{tmp_path}/study.db")
    first = add(store, 0)
    assert add(store, 0) is first and len(store.records()) == 1
    with pytest.raises(BadInput, match="but must be proposed as before: number 0 is"):
        add(store, 0, B)
    with pytest.raises(BadInput, match="`trial` is 'search/2', but must be the next one, search/1"):
        add(store, 2)
    with pytest.raises(BadInput, match="`trial` is 'search/7', but must be one of the 1 trials of small/test"):
        store.start(7)
    with pytest.raises(BadInput, match=r"`loss\.window` is 63, but must be one of the values of the space"):
        add(store, 1, A | {"loss.window": 63})


def test_moments_are_read_the_same_in_every_time_zone(tmp_path, monkeypatch):
    """The driver's clock is on Tokyo's time, that of whoever looks on New York's."""
    url = f"sqlite:///{tmp_path}/study.db"
    zone(monkeypatch, "Asia/Tokyo")
    store, began = new(url), time.time()
    for number, assignment in enumerate([A, B, A | {"loss.gamma": 2.0}]):
        add(store, number, assignment)
        store.start(number)
    store.complete(0, {0: {METRIC: 0.5}}, 24)
    store.release(1, "its node is gone")
    add(store, 3, A, key="key 0", original=store.record(0), duplicate_because="the same settings")
    zone(monkeypatch, "America/New_York")
    for records in (Store.find(Database(url), "small/test").records(), store.records()):
        done, back, runs, merged = records
        for moment in (done.started, done.finished, back.started, runs.started, merged.created, merged.finished):
            assert moment is not None and abs(moment - began) < 30
        assert back.finished is None and runs.finished is None
    zone(monkeypatch, None)


def zone(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    if name:
        monkeypatch.setenv("TZ", name)
    else:
        monkeypatch.undo()
    time.tzset()


def test_notes_and_extra(tmp_path):
    store = new(f"sqlite:///{tmp_path}/study.db")
    add(store, 0, extra={"run_id": "a"})
    store.keep(0, checkpoint="c")
    assert store.record(0).extra == {"run_id": "a", "checkpoint": "c"}
    reader = Store.find(Database(store.database.url), "small/test")
    reader.note("cancel", True)
    assert store.notes()["cancel"] is True
    assert reader.records()[0].extra == {"run_id": "a", "checkpoint": "c"}
    with pytest.raises(BadInput, match="`study` is 'small/test', but must be reconciled before it is written to"):
        reader.start(0)


# ---- the same study, and others --------------------------------------------------------------------------------------


def test_two_studies_on_one_database(url):
    one, two = new(url), new(url, name="other")
    for number in range(3):
        add(one, number, A)
        add(two, number, B)
        one.start(number)
    baselines = one.open_part(BASELINES)
    baselines.reconcile()
    baselines.add(TrialRecord(BASELINES, 0, {"loss.method": "sft"}, key="b"))
    one.complete(1, {0: {METRIC: 0.5}}, 24)
    assert [record.state for record in two.records()] == ["waiting"] * 3
    database = Database(url)
    assert studies(database) == ["other/test", "small/test"]
    assert [record.assignment for record in Store.find(database, "other/test").records()] == [B] * 3
    assert [record.state for record in Store.find(database, "small/test").records()] == [
        "running",
        "complete",
        "running",
    ]
    part = Store.find(database, "small/test").open_part(BASELINES)
    assert [(record.id, record.assignment) for record in part.records()] == [("baselines/0", {"loss.method": "sft"})]
    with pytest.raises(
        BadInput, match=r"`study` is 'third/test', but must be a study of .*It holds other/test, small/test"
    ):
        Store.find(database, "third/test")


def test_other_settings_or_data_are_refused(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/study.db")
    Store.create(database, SPACE, BASE, {"train": "f1"})
    base = make_base(optimizer={"learning_rate": 1e-3}, cluster={"num_workers": 2})
    space = make_space(sampler={"kind": "random"}, budget={"trials": 48, "steps": 24})
    with pytest.raises(BadConfig) as caught:
        Store.create(database, space, base, {"train": "f2"})
    assert caught.value.problems == [
        "`config.optimizer.learning_rate` was 0.0001, and is now 0.001",
        "`data.train` was 'f1', and is now 'f2'",
        "`space.sampler.kind` was 'tpe', and is now 'random'",
        "`space.sampler.startup_trials` was 6, and is now 8",
    ]
    assert "the study `small/test` exists with other settings" in str(caught.value)
    more = make_space(budget={"trials": 48, "steps": 24, "time_s": 60.0})  # a larger budget, elsewhere: it goes on
    moved = make_base(cluster={"num_workers": 2}, tracking={"uri": "postgresql://me:secret@host/db"})
    store = Store.create(database, more, moved, {"train": "f1"})
    assert store.notes()["settings"]["space.budget.trials"] == 24  # until it drives the study
    store.reconcile()
    assert store.notes()["settings"]["space.budget.trials"] == 48
    assert store.notes()["settings"]["config.tracking.uri"] == "postgresql://me:***@host/db"
    exact = make_space(name="exact", deterministic=True)
    Store.create(database, exact, BASE, {})
    with pytest.raises(BadConfig, match=r"`space\.budget\.trials` was 24, and is now 48"):
        Store.create(
            database, make_space(name="exact", deterministic=True, budget={"trials": 48, "steps": 24}), BASE, {}
        )


def open_new(url: str, name: str) -> None:
    Store.create(Database(url), SPACE, BASE, {}).note(name, 1)


def test_processes_that_open_a_new_database_at_once(url):
    processes = [FORK.Process(target=open_new, args=(url, str(number))) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert {"0", "1", "2", "3", "settings"} <= set(Store.find(Database(url), "small/test").notes())


# ---- equal trials ----------------------------------------------------------------------------------------------------


def test_equal_trials_are_found():
    from bft_ray.space.assign import config_of

    def key(assignment, longest=350, seeds=(0,), base=BASE):
        return key_of(config_of(base, SPACE, assignment, seed=seeds[0]), seeds, longest)

    large, whole = A | {"loss.window": 512}, A | {"loss.window": 400}
    assert key(A | {"loss.window": 256}) != key(large)
    assert key(A | {"loss.window": 256}, longest=200) == key(large, longest=200) != key(A, longest=200)
    assert key(large, longest=None) != key(A | {"loss.window": 256}, longest=None)
    assert key(A) == key(A, base=make_base(seed=5)) != key(A, seeds=(0, 1))
    assert key(A) != key(A, base=make_base(optimizer={"learning_rate": 1e-3})) and whole
    configs = [config_of(BASE, SPACE, A | {"loss.window": window}) for window in (256, 512)]
    assert (
        why_duplicate(configs[0], configs[1], 200)
        == "windows 256 and 512 both hold the longest sample (200 tokens) whole"
    )
    assert why_duplicate(configs[0], configs[0], 200) == "the same settings"
    records = [
        TrialRecord("search", 2, {}, key="k"),
        TrialRecord("search", 0, {}, key="k", duplicate_of="search/9"),
        TrialRecord("search", 1, {}, key="k", state="failed"),
    ]
    found = original_of(records, "k")
    assert found is not None and found.number == 1
    assert original_of(records, "other") is None


def end(store: Store, number: int, state: str) -> None:
    """Trial `number`, after a rung."""
    store.report(number, 8, {0: 0.25})
    if state == "complete":
        store.complete(number, {0: {METRIC: 0.5}}, 24)
    elif state == "pruned":
        store.prune(number, 8, "stopped")
    else:
        store.fail(number, "not finite", 3)


@pytest.fixture(scope="module", params=["complete", "pruned", "failed"])
def merged(tmp_path_factory, request) -> Store:
    """Trial 0, which ended so, and two duplicates of it: 1 was there before it ended, 2 came after. To be read alone."""
    store = new(f"sqlite:///{tmp_path_factory.mktemp('merged')}/study.db")
    add(store, 0, key="k")
    store.start(0)
    add(store, 1, key="k", original=store.record(0), duplicate_because="the same settings")
    end(store, 0, request.param)
    add(store, 2, key="k", original=store.record(0), duplicate_because="the same settings")
    assert [record.number for record in store.settle()] == [1]  # the other has its result already
    return store


def test_a_duplicate_waits_while_its_trial_runs(tmp_path):
    store = new(f"sqlite:///{tmp_path}/study.db")
    add(store, 0, key="k")
    store.start(0)
    add(store, 1, key="k", original=store.record(0), duplicate_because="the same settings")
    assert store.settle() == [] and store.record(1).status == "waiting"


def test_a_duplicate_is_never_started(tmp_path):
    store = new(f"sqlite:///{tmp_path}/study.db")
    add(store, 0, key="k")
    add(store, 1, key="k", original=store.record(0), duplicate_because="the same settings")
    with pytest.raises(BadInput, match=r"`search/1` is 'waiting'.* Duplicates are"):
        store.start(1)
    assert store.record(1).attempts == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_duplicate_takes_the_result_of_its_trial_and_costs_nothing(merged, number):
    record, trial = merged.record(number), merged.record(0)
    assert record.status == "duplicate" and record.state == trial.state
    assert (record.value, record.metrics, record.rung_values) == (trial.value, trial.metrics, trial.rung_values)
    assert (record.reason, record.num_steps) == (trial.reason, trial.num_steps)
    assert record.attempts == 0


@pytest.mark.parametrize("number", [1, 2])
def test_a_duplicate_says_of_which_trial_and_why(merged, number):
    record = merged.record(number)
    assert (record.duplicate_of, record.duplicate_because) == ("search/0", "the same settings")


def test_others_read_the_same_of_duplicates(merged):
    assert timeless(Store.find(Database(merged.database.url), "small/test").records()) == timeless(merged.records())


def test_optuna_shows_a_duplicate_as_its_trial(merged):
    original, *duplicates = native(merged.database.url)
    for trial in duplicates:
        assert (trial.state, trial.value) == (original.state, original.value)
        assert trial.intermediate_values == original.intermediate_values


# ---- who drives ------------------------------------------------------------------------------------------------------


# ---- what a killed driver leaves -------------------------------------------------------------------------------------


class Killed(BaseException):
    """In the place of SIGKILL, between two writes."""


@contextmanager
def dies_after(store: Store, num_writes: int):
    """The store's process ends after so many writes to the database."""
    left = [num_writes]
    names = ("create_new_trial", "set_trial_state_values", "set_trial_user_attr", "set_trial_intermediate_value")
    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        for name in names:
            real = getattr(store.database.storage, name)

            def write(*args, real=real, **kwargs):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return real(*args, **kwargs)

            patch.setattr(store.database.storage, name, write)
        yield


def four_trials(store: Store) -> None:
    """Complete, pruned, failed, and merged with the first."""
    for number, assignment in enumerate([A, B, A | {"loss.gamma": 2.0}]):
        add(store, number, assignment)
    add(store, 3, A, key="key 0", original=store.record(0), duplicate_because="the same settings")
    for number in range(3):
        if not store.record(number).is_finished:
            store.start(number)
            store.report(number, 8, {0: 0.25})
    store.complete(0, {0: {METRIC: 0.5}}, 24)
    store.prune(1, 8, "stopped")
    store.fail(2, "not finite", 9)
    store.settle()


@pytest.mark.slow
def test_a_driver_that_dies_between_any_two_writes(tmp_path):
    """After each of the writes of a study: the next driver ends at the same records."""
    url = f"sqlite:///{tmp_path}/study.db"
    store = new(url)
    four_trials(store)
    whole = timeless(store.records())
    for num_writes in range(24):
        first = Store.create(store.database, make_space(name=f"after{num_writes}"), BASE, {"train": "f1"})
        first.reconcile()
        with dies_after(first, num_writes):
            four_trials(first)
        first.lease.drop()  # in this process it would count as alive
        second = new(url, name=f"after{num_writes}")
        assert not [record for record in second.records() if record.state == "running"]
        before = {record.number: record for record in second.records() if record.is_finished}
        four_trials(second)
        assert all(second.record(number) is record for number, record in before.items())
        plain = [replace(record, attempts=0) for record in timeless(second.records())]
        assert plain == [replace(record, attempts=0) for record in whole], num_writes
        assert all(record.attempts <= 2 for record in second.records())
        read = Store.find(second.database, second.study)
        assert timeless(read.records()) == timeless(second.records())
    assert num_writes == 23


def drive(url: str, deterministic: str, seed: int, num_moves: Any) -> None:
    """A driver in a process of its own; counts its moves."""
    space = make_space(deterministic=deterministic == "yes")
    store = Store.create(Database(url), space, BASE, {"train": "f1"})

    def count() -> None:
        num_moves.value += 1

    DoNothing(store, space, BASE, slots=4, seed=seed, longest=200).run(count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "deterministic"), [("sqlite", "yes"), ("sqlite", "no"), DETERMINISTIC], indirect=["url"]
)
def test_sigkill_at_random_moments(url, deterministic, tmp_path, monkeypatch):
    """Ten drivers of a study of 24 trials are killed by SIGKILL, each while it makes one of its moves; then one ends it."""
    monkeypatch.setattr("bft_ray.study.records.lease.LEASE_S", 0.5)  # the drivers are forks of this process
    monkeypatch.setattr("bft_ray.study.records.lease.RENEW_S", 0.1)
    draw = random.Random(f"{url[:5]} {deterministic}")
    log: list[dict[int, TrialRecord]] = []
    kills = 0
    for turn in range(14):
        num_moves = FORK.Value("i", 0)
        process = FORK.Process(target=drive, args=(url, deterministic, turn, num_moves))
        process.start()
        if kills < 10:
            last_move = draw.randint(1, 10)
            while process.is_alive() and num_moves.value < last_move:
                time.sleep(0.0005)
            time.sleep(draw.uniform(0, 0.02))
            kills += process.is_alive()
            process.kill()
        process.join()
        with Database(url) as database:
            records = Store.find(database, "small/test").records() if "small/test" in studies(database) else []
        log.append({record.number: record for record in records if record.is_finished})
        if len(log[-1]) == 24:
            break
    assert kills >= 10, "the study was over too soon"
    last = log[-1]
    assert sorted(last) == list(range(24))
    for earlier in log:  # nothing that had finished was touched again
        assert {number: last[number] for number in earlier} == earlier
    assert max(record.attempts for record in last.values()) > 1
    for record in last.values():
        original = last[int((record.duplicate_of or record.id).removeprefix("search/"))]
        assert (record.value, record.state, record.rungs) == (original.value, original.state, original.rungs)
        assert record.duplicate_of or record.key not in {r.key for r in last.values() if r.number < record.number}
    if deterministic == "yes":
        space = make_space(deterministic=True)
        with Database(
            "sqlite:///" + str(Path(os.environ.get("TMPDIR", "/tmp")) / f"plain{time.time_ns()}.db")
        ) as database:
            plain = DoNothing(Store.create(database, space, BASE, {}), space, BASE, slots=2, longest=200).run()

        def result(record):
            return record.assignment, record.status, record.value, record.rungs, record.num_steps, record.duplicate_of

        assert [result(last[number]) for number in range(24)] == [result(record) for record in plain]


# ---- a database that is away -----------------------------------------------------------------------------------------


@pytest.mark.slow
@HAS_POSTGRES
def test_a_database_that_is_away_for_a_while(tmp_path):
    """Writes wait for it; nothing is lost or doubled. When it stays away the error says so, without the password."""
    folder = tmp_path / "pg"
    folder.mkdir()
    with postgres(folder) as url:
        store = Store.create(Database(url, wait_s=30), SPACE, BASE, {})
        store.reconcile()
        add(store, 0)
        server = int((folder / "pg" / "postmaster.pid").read_text().splitlines()[0])
        os.kill(server, signal.SIGINT)
        while psutil.pid_exists(server) and psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
        done = threading.Event()

        def write() -> None:
            store.start(0)
            add(store, 1, B)
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(1.0)
        again = restart_postgres(folder, url)
        assert done.wait(20)
        thread.join()
        assert [trial.state for trial in native(url)] == [TrialState.RUNNING, TrialState.WAITING]
        store.database.wait_s = 0.5
        again.send_signal(signal.SIGINT)  # does not wait for clients
        again.wait(20)
        with pytest.raises(DatabaseAway) as caught:
            store.complete(0, {0: {METRIC: 0.5}}, 24)
        assert "was away for 0.5 s while" in str(caught.value) and "secret" not in str(caught.value)
        again = restart_postgres(folder, url)
        store.database.wait_s = 30
        store.complete(0, {0: {METRIC: 0.5}}, 24)
        assert [record.state for record in Store.find(Database(url), "small/test").records()] == ["complete", "waiting"]
        again.send_signal(signal.SIGINT)  # does not wait for clients
        again.wait(20)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("mlflow.db", r"an address that begins with sqlite:/// \(a file\) or postgresql://"),
        ("sqlite://", "an address that begins with sqlite:/// "),
        *((f"{kind}://me:secret@host/db", "sqlite:/// .* or postgresql:// ") for kind in ("mysql", "mssql", "oracle")),
        ("postgresql+pg_none://me:secret@host/db", "an address that SQLAlchemy reads"),
        ("postgresql://me:sec{ret}@127.0.0.1:1/db", "was away for 0.3 s while opening it"),
    ],
)
def test_bad_addresses(url, text):
    with pytest.raises((BadInput, DatabaseAway), match=text) as caught:
        Database(url, wait_s=0.3)
    assert "sec" not in str(caught.value).replace("seconds", "")


def test_a_look_makes_nothing(tmp_path):
    """Whoever looks at a study may have mistyped its address, and the right to read alone."""
    for name in ("nowhere/study.db", "study.db"):
        with pytest.raises(BadInput, match="a file that exists, to be read"):
            Database(f"sqlite:///{tmp_path}/{name}", make=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty.db").touch()
    with pytest.raises(BadInput, match=r"a database that holds studies\. Is the address right\?"):
        Database(f"sqlite:///{tmp_path}/empty.db", make=False)
    assert not (tmp_path / "empty.db").stat().st_size
    url = f"sqlite:///{tmp_path}/study.db"
    Store.create(Database(url), SPACE, BASE, {})
    with Database(url, make=False) as database:
        store = Store.find(database, "small/test")
        assert store.records() == store.open_part(BASELINES).records() == [] and store.lease.holder() is None
        assert studies(database) == ["small/test"]
    assert optuna.get_all_study_names(url) == ["small/test/search"]


@HAS_POSTGRES
def test_a_user_who_may_only_read(server):
    import psycopg

    plain = server.rpartition("/")[0].replace("postgresql+psycopg", "postgresql") + "/postgres"
    name = f"db{time.time_ns()}"
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        connection.execute(f"CREATE USER reader_{name} PASSWORD 'secret'")
    url = server.rpartition("/")[0] + f"/{name}"
    reader = "postgresql" + url.partition("postgresql")[2].partition("://")[0] + f"://reader_{name}:secret@"
    reader += url.rpartition("@")[2]
    with pytest.raises(BadInput, match="a database that holds studies"):
        Database(reader, make=False)
    store = new(url)
    add(store, 0)
    store.start(0)
    with psycopg.connect(plain.rpartition("/")[0] + f"/{name}", autocommit=True) as connection:
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{name}")
    with Database(reader, make=False) as database:
        found = Store.find(database, "small/test")
        assert [record.state for record in found.records()] == ["running"] and found.lease.holder() is not None
        assert found.open_part(BASELINES).records() == [] and found.notes()["num_trials"] == 24
        with pytest.raises(BadInput, match="permission denied"):
            found.note("cancel", True)


@HAS_POSTGRES
def test_a_wrong_address_is_told_within_seconds():
    began = time.monotonic()
    with pytest.raises(DatabaseAway, match="was away for 10 s while opening it"):
        Database("postgresql://me:secret@127.0.0.1:1/db")
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="in a folder that can be written"):
        Database(f"sqlite:///{tmp_path}/file/study.db", wait_s=0.3)
    (tmp_path / "text.db").write_text(json.dumps({"not": "a database"}) * 100)
    with pytest.raises(BadInput, match="not a database"):
        Database(f"sqlite:///{tmp_path}/text.db", wait_s=0.3)
