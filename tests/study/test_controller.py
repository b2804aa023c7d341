"""The driver of a study without Ray: segments are carried out here, in any order, and it may be killed between any two."""

from __future__ import annotations

import errno
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bft_ray import saving
from bft_ray.errors import BftError, DiskFull
from bft_ray.places import disk
from bft_ray.study.agenda import PARTS, totals, used_hours
from bft_ray.study.confirm.candidates import arms_of, confirmed, plan_of
from bft_ray.study.confirm.choose import choose
from bft_ray.study.execute.ending import ending
from bft_ray.study.records import clock
from bft_ray.study.records.record import TrialRecord, trained_s, worker_hours
from bft_ray.study.records.segment import Run, Segment
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from tests.support.damage import damage
from tests.support.executor import METRIC, STEPS, Executor, make_study


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def timeless(records: list[TrialRecord]) -> list[TrialRecord]:
    """Without what depends on when and where it was run."""
    where = {"created": None, "started": None, "finished": None, "attempts": 0, "reason": "", "key": ""}
    spent = ("ran", "since", "worker_s")
    extras = [{name: value for name, value in one.extra.items() if name not in spent} for one in records]
    return [replace(one, extra=extra, **where) for one, extra in zip(records, extras, strict=True)]


def test_the_workers_of_these_tests_tell_what_workers_tell(tmp_path, url):
    """At the same places as the real ones in test_segments.py, with other rungs."""
    executor = Executor(make_study(tmp_path), url)
    tree = executor.study.base.model_dump(mode="json")

    def stages(name: str, *until: int | None) -> list[list[tuple[int, str]]]:
        segments = [
            Segment("study", "search/0", 42, tree, str(tmp_path / name), rungs=(4, 12), until=step) for step in until
        ]
        return [[(reached.num_steps, reached.status) for reached in executor.walk(segment)] for segment in segments]

    assert stages("whole", None, None) == [[(4, "running"), (12, "running"), (24, "complete")], [(24, "complete")]]
    paused = [[(4, "paused")], [(12, "paused")], [(4, "paused")], [(24, "complete")]]
    assert stages("parts", 4, 12, 4, None) == paused


@pytest.mark.slow
def test_a_whole_study(tmp_path, url):
    executor = Executor(make_study(tmp_path), url, ahead=1)
    assert executor.run()
    baselines, search, runs = (executor.records(part) for part in PARTS)
    assert [record.name for record in baselines] == [
        f"{name} lr{rate}" for name in ("sft", "dft", "bft") for rate in ("0.0001", "0.001")
    ]
    assert all(record.state == "complete" and record.num_steps == STEPS for record in baselines)
    assert len(search) == 20 and all(record.is_finished for record in search)
    pruned = [record for record in search if record.status == "pruned"]
    assert pruned and all(record.value is None and record.num_steps in (4, 12) for record in pruned)
    merged = [record for record in search if record.duplicate_of]
    assert any(record.duplicate_of.startswith("baselines/") for record in merged)  # bft at 256
    assert not {one.id for one in merged} & {trial for trial, *_ in executor.trained}
    # each (trial, seed) was trained once, without a gap
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for trial, seed, begin, end in executor.trained:
        spans.setdefault((trial, seed), []).append((begin, end))
    for each in spans.values():
        assert [begin for begin, _ in each] == [0, *[end for _, end in each[:-1]]]
    # two candidates and three baselines with five seeds each, on the other data
    arms = arms_of(executor.study.space, baselines, search)
    assert [arm.name for arm in arms[:3]] == ["sft", "dft", "bft"] and len(arms) == 5
    assert all(arm.trial.assignment["optimizer.learning_rate"] == 1e-3 for arm in arms[:3])  # tuned
    assert len(runs) == 25 and {record.seeds for record in runs} == {(seed,) for seed in range(101, 106)}
    choice = choose(confirmed(executor.study.space, runs), plan_of(executor.study.space, arms, None))
    assert choice.verdict == "candidate" and "bft_inverse" in choice.champion and choice.num_items == 30
    # weights: of the best two trials, and of the first seed of each arm
    kept = sorted(str(path.relative_to(tmp_path / "study")) for path in (tmp_path / "study").glob("*/*/weights-*"))
    best = sorted((one for one in search if one.value and not one.duplicate_of), key=lambda one: -one.value)[:2]
    assert [name for name in kept if name.startswith("search")] == sorted(
        f"search/{record.number:04d}/weights-0" for record in best
    )
    assert len([name for name in kept if name.startswith("confirmation")]) == 5
    begun = [trial for event, trial in executor.events if event == "begun"]
    ended = [trial for event, trial in executor.events if event == "ended"]
    assert len(set(begun)) == len(begun) and sorted(ended) == sorted(r.id for r in [*baselines, *search, *runs])
    groups = {str(item): [f"patient {item // 2}"] for item in range(10)}  # of which the statistics must know
    assert all(record.extra["groups"] == groups for record in runs if not record.duplicate_of)
    assert not any("groups" in record.extra for record in (*baselines, *search))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deterministic", "asynchronous", "seeds"])
def test_killed_at_any_moment(tmp_path, kind):
    more = {"deterministic": kind == "deterministic"} | ({"seeds": [0, 1]} if kind == "seeds" else {})
    killed = Executor(make_study(tmp_path / "killed", **more), f"sqlite:///{tmp_path}/killed.db", seed=7, slots=2)
    kills = 0
    while not killed.run(killed.draw.randint(2, 12)):
        kills += 1
    assert kills > 5
    for part in PARTS:
        records = killed.records(part)
        assert all(record.is_finished for record in records)
        assert [record.number for record in records] == list(range(len(records)))
    assert len(killed.records(SEARCH)) == 20
    # no result is there twice, and each is that of its own setting: a solo run would have come to the same
    for record in [*killed.records(BASELINES), *killed.records(SEARCH)]:
        for seed, metrics in record.by_seed.items():
            config = killed.study.config(record, seed, {})
            segment = Segment("an-id", record.id, seed, config.model_dump(mode="json"), "")
            alone = killed._records(segment, STEPS)
            assert metrics[METRIC] == sum(one["probability"] for one in alone) / 30
    ends = [trial for event, trial in killed.events if event == "ended"]
    assert len(set(ends)) == len(ends)
    if kind == "deterministic":  # as if nothing had happened, but for what was lost and done again
        calm = Executor(make_study(tmp_path / "calm", **more), f"sqlite:///{tmp_path}/calm.db")
        assert calm.run()
        for part in PARTS:
            assert timeless(calm.records(part)) == timeless(killed.records(part))


@pytest.mark.slow
def test_rungs_of_several_seeds_wait_for_each_other(tmp_path, url):
    executor = Executor(make_study(tmp_path, seeds=[0, 1, 2], confirmation=None, baselines=[]), url)
    assert executor.run()
    for record in executor.records(SEARCH):
        if record.status == "pruned":
            assert record.num_steps in (12, 36) and all(set(at) == {0, 1, 2} for at in record.rungs.values())
        elif record.status == "complete":
            assert set(record.by_seed) == {0, 1, 2} and record.num_steps == 3 * STEPS


def test_a_dead_worker_is_replaced_until_it_is_too_much(tmp_path, url):
    executor = Executor(make_study(tmp_path, confirmation=None, baselines=[]), url)
    executor.broken = {"search/1": 2, "search/3": 9}
    assert executor.run()
    records = executor.records(SEARCH)
    assert records[1].status in ("complete", "pruned") and records[1].attempts == 3
    assert records[3].status == "failed" and "failed 4 times" in records[3].reason


def test_what_may_pass_is_tried_again(tmp_path, url):
    """A failure that need not come again, such as a hub that is away, is no result."""
    executor = Executor(make_study(tmp_path, confirmation=None, baselines=[]), url)
    failed = []

    def worker(segment, plain):
        if segment.trial == "search/1" and len(failed) < 2:
            failed.append(segment)
            return iter(
                [
                    Run(
                        status="failed",
                        num_steps=0,
                        metrics={0: {}},
                        reason="OSError: the hub is away",
                        is_lasting=False,
                    )
                ]
            )
        return plain(segment)

    executor.worker = worker
    assert executor.run()
    record = executor.records(SEARCH)[1]
    assert len(failed) == 2 and record.status in ("complete", "pruned") and record.attempts == 3


@pytest.mark.slow
def test_a_damaged_result_of_a_confirmation_is_made_again(tmp_path):
    """The driver reads its items from the file; before, it said that the nodes shared no folder."""
    executor = Executor(make_study(tmp_path), f"sqlite:///{tmp_path}/study.db")
    hurt = []

    def worker(segment, plain):
        for reached in plain(segment):
            if segment.trial.startswith("confirmation") and reached.status == "complete" and not hurt:
                hurt.append(segment)
                damage(Path(segment.files.result), "half")
            yield reached

    executor.worker = worker
    assert executor.run()
    (record,) = [record for record in executor.records(CONFIRMATION) if record.id == hurt[0].trial]
    assert record.state == "complete" and record.extra["breaks"] == 1
    assert sum(trial == record.id and begin == 0 for trial, _, begin, _ in executor.trained) == 2


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_a_full_disk_ends_the_study_and_fails_no_trial(tmp_path, url, seeds):
    """Ten times, at any moment; the records are those of a study that was not disturbed."""
    more = {"deterministic": True, "seeds": seeds}
    calm = Executor(make_study(tmp_path / "calm", **more), f"sqlite:///{tmp_path}/calm.db")
    assert calm.run()
    executor = Executor(make_study(tmp_path / "full", **more), url)
    for number in range(10):
        left = [number % 5]

        def worker(segment, plain, left=left):
            for reached in plain(segment):
                left[0] -= 1
                if left[0] < 0:
                    Path(segment.folder, f"run-{segment.seed}.json").unlink(missing_ok=True)  # what it was to write
                    yield Run(
                        status="stopped",
                        num_steps=reached.num_steps,
                        metrics={reached.num_steps: {}},
                        reason="the disk that holds /x is full",
                    )
                    return
                yield reached

        executor.worker = worker
        with pytest.raises(DiskFull, match=r"/\d+ was stopped, and the study with it: the disk that holds /x is full"):
            executor.run()
        records = [record for part in PARTS for record in executor.records(part)]
        assert not [record for record in records if record.state == "failed"]
        assert any(record.reason == "the disk that holds /x is full" for record in records)
    executor.worker = lambda segment, plain: plain(segment)
    assert executor.run()
    for part in PARTS:
        assert seedless(executor.records(part)) == seedless(calm.records(part))


def seedless(records: list[TrialRecord]) -> list[TrialRecord]:
    """As `timeless`, and without what was noted of the seed that happened to be the first."""
    return [
        replace(record, extra={name: value for name, value in record.extra.items() if name != "runs"})
        for record in timeless(records)
    ]


@pytest.mark.slow
def test_a_worker_that_dies_while_the_disk_is_full_is_no_failure(tmp_path, url, monkeypatch):
    executor = Executor(make_study(tmp_path, confirmation=None, baselines=[]), url)
    executor.broken = {"search/1": 9}
    with monkeypatch.context() as patch:
        patch.setattr(disk, "try_folder", full_folder)
        with pytest.raises(DiskFull, match=f"holds {tmp_path}/study/search/0001 "):
            executor.run()
    assert executor.records(SEARCH)[1].status == "waiting" and executor.broken["search/1"] == 8


def full_folder(folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_damaged_files_of_trials_that_go_on_are_told(tmp_path):
    """By the driver, for a worker's log is far from the user; and the study comes to its end."""
    executor = Executor(make_study(tmp_path), f"sqlite:///{tmp_path}/study.db")
    turns = 0
    while not (
        files := [
            Path(segment.files.result) for segment in unfinished(executor) if Path(segment.files.result).is_file()
        ]
    ):
        turns += 5
        assert not executor.run(turns=5) and turns < 100
    for file in files:
        damage(file, "half")
    assert executor.run()
    assert [line for line in executor.controller.messages if line == f"{files[0]} is damaged: that run starts again"]
    assert not [record for record in executor.records(SEARCH) if record.state == "failed"]


def unfinished(executor: Executor) -> list[Segment]:
    """Of the baselines and the search."""
    if not hasattr(executor, "controller"):
        return []
    return [
        Segment(executor.study.id, record.id, seed, {}, executor.study.folder_of(record))
        for part in (BASELINES, SEARCH)
        for record in executor.records(part)
        if not record.is_finished
        for seed in record.seeds
    ]


def test_a_failure_is_no_score_and_only_failures_end_the_study(tmp_path, url):
    study = make_study(tmp_path, confirmation=None, baselines=[])
    executor = Executor(study, url)
    executor.worker = lambda segment, plain: iter(
        [Run(status="failed", num_steps=3, metrics={3: {}}, reason="a loss is not finite")]
    )
    with pytest.raises(BftError, match="all of the first 3 trials failed: a loss is not finite"):
        executor.run()
    assert {record.state for record in executor.records(SEARCH)} >= {"failed"}
    assert all(record.value is None for record in executor.records(SEARCH))


@pytest.mark.slow
def test_a_value_that_is_not_finite_fails_at_its_rung(tmp_path, url):
    executor = Executor(make_study(tmp_path, confirmation=None, baselines=[]), url)
    executor.worker = lambda segment, plain: (
        iter(
            [
                Run(status="running", num_steps=4, metrics={4: {METRIC: math.nan}}),
                Run(status="running", num_steps=4, metrics={4: {METRIC: math.nan}}),
            ]
        )
        if segment.trial == "search/2"
        else plain(segment)
    )
    assert executor.run()
    record = executor.records(SEARCH)[2]
    assert record.status == "failed" and record.reason == f"{METRIC} is nan at step 4 (seed 0)"


def test_after_usr1_only_what_was_saved_is_told_as_saved(tmp_path, url):
    """Of four segments that run when USR1 comes one is saved, one waits at its rung, one is complete and one is killed."""
    executor = Executor(make_study(tmp_path, confirmation=None, baselines=[]), url, slots=4)
    asked = []

    def drive(controller, turns):
        segments = [controller.next() for _ in range(4)]
        for segment in segments:
            controller.begun(segment)
        look = ending(controller, lambda: asked.append(True))
        look()
        assert not asked and not controller.is_held
        saving.on_signal()
        ends = [
            Run(status="saved", num_steps=2),
            Run(status="paused", num_steps=4, metrics={4: {METRIC: 0.5}}),
            Run(status="complete", num_steps=STEPS, metrics={STEPS: {METRIC: 0.5}}),
        ]
        for segment, end in zip(segments, ends, strict=False):
            look()  # waits: some still run
            controller.ended(segment, end)
        look()
        controller.broke(segments[3], "killed")
        assert controller.next() is None and len(asked) == 4
        with pytest.raises(saving.Saved, match=r"^USR1: the state of 2 trials is saved; the same command resumes"):
            look()
        return True

    executor.drive = drive
    with saving.listening():
        assert executor.run()


def make_turns_take_a_second(executor: Executor, now: list[float]) -> None:
    plain = executor._turn

    def turn(running):
        now[0] += 1.0
        plain(running)

    executor._turn = turn


@pytest.mark.slow
def test_time_ends_the_search_and_not_the_confirmation(tmp_path, url, monkeypatch):
    now = [1e9]
    monkeypatch.setattr("bft_ray.study.records.clock.now", lambda: now[0])
    endless = {
        "loss.method": {"kind": "categorical", "values": ["bft_inverse"]},
        "loss.epsilon": {"kind": "float", "low": 0.01, "high": 0.5},
    }
    budget = {"trials": 500, "steps": STEPS, "time_s": 60}
    executor = Executor(make_study(tmp_path, budget=budget, parameters=endless), url)
    make_turns_take_a_second(executor, now)
    assert executor.run()
    searched = len(executor.records(SEARCH))
    assert 20 < searched < 90
    assert len(executor.records(CONFIRMATION)) == 25
    now[0] -= 1e4  # whatever the clock says: what the confirmation has seen steers no search
    assert executor.run() and len(executor.records(SEARCH)) == searched


@pytest.mark.slow
def test_worker_hours_end_the_search_and_a_killed_driver_spent_what_it_spent(tmp_path, url, monkeypatch):
    """3 slots of 2 workers, 6 s a turn: the sum over turns of what ran is what the records say, before and after a kill."""
    now = [1e9]
    monkeypatch.setattr("bft_ray.study.records.clock.now", lambda: now[0])
    budget = {"trials": 500, "steps": STEPS, "worker_hours": 1.0}
    endless = {
        "loss.method": {"kind": "categorical", "values": ["bft_inverse"]},
        "loss.epsilon": {"kind": "float", "low": 0.01, "high": 0.5},
    }
    cluster = {"storage_path": str(tmp_path), "num_workers": 2}
    study = make_study(tmp_path, budget=budget, parameters=endless, base={"cluster": cluster})
    executor, busy = Executor(study, url), [0.0]
    turn = executor._turn

    def timed(running):
        now[0] += 6
        busy[0] += 6 * 2 * len(running) / 3600
        turn(running)

    executor._turn = timed
    assert not executor.run(60)
    before = used_hours(executor.controller.all_records(), now[0])
    assert before == pytest.approx(busy[0]) and 0.05 < before < 1
    assert executor.run()
    found = executor.controller.all_records()
    assert 1.0 <= used_hours(found, now[0]) < 1.2 and len(found[SEARCH]) < 500
    assert sum(worker_hours(one, now[0]) for own in found.values() for one in own) == pytest.approx(busy[0], abs=0.1)
    assert len(found[CONFIRMATION]) == 25 and totals(study.space, found)[SEARCH] == len(found[SEARCH])


def test_a_system_clock_that_jumps_takes_nothing_from_the_budget(tmp_path, url, monkeypatch):
    """An hour ahead at each turn, and a day back for the next driver, which writes to the records that the first one left."""
    now = [2e9]
    monkeypatch.setattr("time.time", lambda: now[0])
    budget = {"trials": 9, "steps": STEPS, "time_s": 600, "worker_hours": 0.5}
    executor = Executor(make_study(tmp_path, budget=budget, baselines=[], confirmation=None), url)
    plain = executor._turn

    def turn(running):
        now[0] += 3600.0
        plain(running)

    executor._turn = turn
    assert not executor.run(4)
    now[0] -= 86400.0
    began = time.monotonic()
    assert executor.run()
    records = executor.records(SEARCH)
    assert len(records) == 9 and all(record.is_finished for record in records)
    took = time.monotonic() - began
    assert (
        trained_s(records, clock.now()) < 60 + took and used_hours(executor.controller.all_records(), clock.now()) < 0.1
    )
    spans = [span for record in records for span in record.extra.get("ran", ())]
    assert spans and all(began <= ended for began, ended in spans)


@pytest.mark.parametrize("seconds", [7, 11, 18])
def test_time_ends_a_deterministic_search_with_a_whole_batch(tmp_path, url, monkeypatch, seconds):
    now = [1e9]
    monkeypatch.setattr("bft_ray.study.records.clock.now", lambda: now[0])
    budget = {"trials": 60, "steps": STEPS, "time_s": seconds}
    executor = Executor(make_study(tmp_path, budget=budget, deterministic=True, baselines=[], confirmation=None), url)
    make_turns_take_a_second(executor, now)
    assert executor.run()
    records = executor.records(SEARCH)
    assert len(records) % 9 == 0 and all(record.is_finished for record in records)


@pytest.mark.slow
def test_baselines_that_are_one_run_share_their_scores(tmp_path, url):
    """On samples of 200 tokens a window of 256 is one of 1024: the confirmation trains it once."""
    bft = [{"name": name, "overrides": {"loss.window": window}} for name, window in (("wide", 1024), ("bft", 256))]
    executor = Executor(replace(make_study(tmp_path, baselines=bft), longest=200), url)
    assert executor.run()
    runs, parts = executor.records(CONFIRMATION), [executor.records(part) for part in PARTS[:2]]
    assert {record.duplicate_of is None for record in runs if record.extra["arm"] == "bft"} == {False}
    plan = plan_of(executor.study.space, arms_of(executor.study.space, *parts), None)
    choice = choose(confirmed(executor.study.space, runs), plan)
    assert choice.champion is not None and choice.arm("wide").gain.gain == 0
