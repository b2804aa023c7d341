"""Types of accelerator: told before a study where nodes differ, recorded with each trial, and told where trials differ."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace

import pytest
import torch

from bft_ray.places.kept import write_kept
from bft_ray.study.checks.cards import card_lines, card_types
from bft_ray.study.execute import card
from bft_ray.study.records.database import Database
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.segment import Run
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH, Store
from bft_ray.study.report.cards import differ
from bft_ray.study.report.diagnoses import diagnose
from bft_ray.study.report.recorder import Recorder
from tests.support.executor import STEPS, Executor, make_study
from tests.support.noted import space, trial

H100 = {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}
A100 = {"CPU": 8.0, "GPU": 8.0, "accelerator_type:A100": 1.0}
PLAIN = {"CPU": 8.0}
NEED = {"CPU": 1.0, "GPU": 1.0}


def test_only_nodes_that_could_run_a_worker_count():
    assert card_types([H100, A100, PLAIN, H100], NEED) == {"A100": 1, "H100": 2}
    assert card_types([H100, PLAIN], {"CPU": 1.0}) == {"H100": 1, "none": 1}


def test_types_that_differ_are_told_with_what_to_do():
    first, note = card_lines([H100, A100, H100], NEED, deterministic=True)
    assert first == "trials may run on different accelerators: A100 (1 node), H100 (2 nodes)"
    assert "do not give equal bits" in note and '{"accelerator_type:A100": 0.001}' in note
    assert "equal bits" not in card_lines([H100, A100], NEED, deterministic=False)[1]
    assert card_lines([H100, H100, PLAIN], NEED, deterministic=True) == []


def test_the_remedy_leaves_one_type():
    assert card_types([H100, A100, H100], NEED | {"accelerator_type:A100": 0.001}) == {"A100": 1}


def ran(number: int, cards: list[str], part: str = SEARCH, seed: int = 0, **more) -> TrialRecord:
    return trial(number, 0.5, part=part, extra={"cards": cards}, **more | {"seeds": (seed,)})


def test_trials_that_are_compared_and_ran_on_different_types_are_told():
    search = [ran(0, ["A100"]), ran(1, ["H100"]), ran(2, ["H100"]), trial(3, 0.5)]  # the last: of an earlier version
    found = differ({SEARCH: search}, space())
    assert found is not None and "1 on A100, 2 on H100 of baselines and search." in found.text
    assert "deterministic" not in found.text
    assert "deterministic" in differ({SEARCH: search}, space(deterministic=True)).text
    assert found in diagnose({SEARCH: search}, space(), None)
    assert differ({SEARCH: [ran(0, ["A100", "H100"])]}, space()) is not None  # it has moved
    assert differ({SEARCH: search[1:]}, space()) is None and differ({SEARCH: [trial(0, 0.5)]}, space()) is None


def test_types_that_differ_within_a_pair_of_a_confirmation_are_told_by_seed():
    where = [(101, "A100"), (101, "A100"), (102, "A100"), (102, "H100")]
    own = [ran(number, [card], CONFIRMATION, seed) for number, (seed, card) in enumerate(where)]
    found = differ({CONFIRMATION: own}, space())
    assert "3 on A100, 1 on H100 of the confirmation" in found.text and "The arms of seed 102 were" in found.text


@pytest.mark.slow
def test_the_cards_of_all_segments_stand_in_the_record_of_a_trial(tmp_path):
    cards = iter(["A100", "H100"] * 100)

    def worker(segment, plain):
        return (replace(run, cards=[next(cards)]) for run in plain(segment))

    study = make_study(tmp_path, budget={"trials": 8, "steps": STEPS}, deterministic=True, confirmation=None)
    executor = Executor(study, f"sqlite:///{tmp_path}/study.db", worker=worker)
    assert executor.run()
    with Database(executor.url) as database:  # as another process reads them
        own = Store.find(database, "small/test")
        records = {part: own.open_part(part).records() for part in (BASELINES, SEARCH)}
    ran_ones = [record for own in records.values() for record in own if not record.duplicate_of]
    assert {record.cards for record in ran_ones} == {("A100",), ("H100",), ("A100", "H100")}
    assert differ(records, study.space) is not None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("processor : 0\nmodel name  : A  CPU @ 2 GHz\n", "A CPU @ 2 GHz"),
        (
            "processor : 0\nCPU part : 0xd0c\n",
            platform.processor() or platform.machine(),
        ),  # of ARM, which names no model
        (None, platform.processor() or platform.machine()),
    ],
)
def test_the_type_of_a_cpu(tmp_path, monkeypatch, text, wanted):
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(card, "_CPUS", tmp_path / "cpuinfo")
    assert wanted and card.cards_of_ranks(torch.device("cpu")) == [wanted] == [card.card_of(torch.device("cpu"))]


def test_an_earlier_run_file_names_no_type(tmp_path):
    run = Run("key", "complete", num_steps=3, metrics={3: {}}, cards=["A CPU"])
    run.save(str(tmp_path / "new.json"))
    assert Run.load(str(tmp_path / "new.json")) == run and run.report.cards == ["A CPU"]
    tree = asdict(run)
    del tree["cards"]
    write_kept(str(tmp_path / "old.json"), tree)
    assert Run.load(str(tmp_path / "old.json")) == replace(run, cards=[])


def test_the_cards_of_a_trial_are_a_tag_of_its_run(tmp_path):
    recorder = Recorder(make_study(tmp_path), None)
    assert recorder._tags(ran(0, ["A100", "H100"]))["bft.cards"] == "A100, H100"
    assert "bft.cards" not in recorder._tags(trial(0, 0.5))
