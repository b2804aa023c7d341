"""`bft-ray search` beside the search itself: addresses from the environment, and looks at a study that write nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bft_ray.cli import main
from bft_ray.errors import BadInput
from bft_ray.operate import studies
from bft_ray.operate.studies import cancel_study, dry_run, run_study, status_of
from bft_ray.study.records.database import database_url
from bft_ray.study.records.record import TrialRecord
from bft_ray.study.records.store import BASELINES, CONFIRMATION, Store
from tests.support.records import METRIC, A, B, add, new

CONFIRM = {
    "top_k": 2,
    "seeds": [101, 102, 103],
    "min_seeds_waived": True,
    "overrides": {"data.validation": [{"path": "other.jsonl"}]},
}


def a_study(url: str, **more: Any) -> Store:
    """A finished search of three trials, of which two differ, and one baseline; the confirmation is under way."""
    baseline = {"name": "bft", "overrides": {"loss.method": "bft", "loss.window": 256}}
    store = new(url, confirmation=CONFIRM, baselines=[baseline], **more)
    for number, (assignment, value) in enumerate([(A, 0.5), (B, 0.75), (A, 0.5)]):
        key = {0: "key 0", 1: "key 1", 2: "key 0"}[number]
        original = {"original": store.record(0), "duplicate_because": "the same settings"} if number == 2 else {}
        add(store, number, assignment, key=key, **original)
        if number < 2:
            store.start(number)
            store.complete(number, {0: {METRIC: value}}, 24)
    baselines = store.open_part(BASELINES)
    baselines.reconcile()
    baselines.add(TrialRecord(BASELINES, 0, {"loss.method": "bft"}, key="b", extra={"baseline": "bft"}))
    baselines.start(0)
    baselines.complete(0, {0: {METRIC: 0.25}}, 24)
    confirmation = store.open_part(CONFIRMATION)
    confirmation.reconcile()
    for number, seed in enumerate([101, 102]):
        confirmation.add(TrialRecord(CONFIRMATION, number, {}, (seed,), f"c{seed}", name="w64", extra={"arm": "w64"}))
        confirmation.start(number)
    confirmation.complete(0, {101: {METRIC: 0.625}}, 24)
    confirmation.fail(1, "the loss of step 3 is not finite")
    return store


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


def test_the_status_of_a_confirmation(url):
    store = a_study(url)
    shown = status_of("small/test", None, [], url)
    assert f"study    small/test, driven by process {os.getpid()} on " in shown
    assert shown.splitlines()[1] == "steps    96 trained: baselines 24, search 48, confirmation 24"
    search = shown.partition("--- search\n")[2].partition("--- confirmation")[0]
    assert "best     choices/probability 0.750: trial 1, " in search
    assert [line.split()[:3] for line in search.splitlines() if "baseline" in line] == [["4", "baseline", "bft"]]
    text = shown.partition("--- confirmation\n")[2].splitlines()
    assert text[0] == "runs     2 of 9 finished: 1 complete, 1 failed"  # three arms: the baseline, and two candidates
    assert text[1].startswith("left     7, the end is expected in ")
    assert text[2] == "failed   w64, seed 102: the loss of step 3 is not finite"
    assert text[4].split() == ["arm", "seeds", METRIC] and text[5].split()[:4] == ["w64", "1", "of", "2"]
    store.lease.drop()
    shown = status_of("small/test", None, [], url)
    assert "small/test, not running: the same `bft-ray search` resumes it" in shown


def test_all_studies_in_a_line_each(url):
    a_study(url)
    other = new(url, name="other")
    add(other, 0)
    other.lease.drop()
    other.note("result", {"text": "done"})
    assert "done" in status_of("other/test", None, [], url)
    first, second = status_of(None, None, [], url).splitlines()
    assert first.startswith("other/test  finished  search 0 of 24") and "best" not in first
    assert second.startswith(f"small/test  driven by process {os.getpid()} on ")
    assert "  baselines 1 of 1, search 3 of 24, confirmation 2 of 9, best choices/probability 0.75" in second


def test_a_mistyped_address_makes_nothing(tmp_path):
    wrong = f"sqlite:///{tmp_path}/nowhere/study.db"
    for look in (
        lambda: status_of(None, None, [], wrong),
        lambda: status_of("small/test", None, [], wrong),
        lambda: cancel_study("small/test", None, [], wrong),
    ):
        with pytest.raises(BadInput, match=r"`database` is .* but must be a file that exists, to be read"):
            look()
    assert not list(tmp_path.iterdir())


def test_a_look_writes_nothing(url, tmp_path):
    store = new(url)
    add(store, 0)
    store.database.close()
    before = (tmp_path / "study.db").read_bytes()
    os.chmod(tmp_path / "study.db", 0o444)
    assert "0 of 24 finished" in status_of("small/test", None, [], url)
    assert (tmp_path / "study.db").read_bytes() == before


# ---- addresses from the environment ----------------------------------------------------------------------------------


@pytest.fixture
def space(make_tree, tmp_path) -> Path:
    tree = make_tree()
    del tree["tracking"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    given = {
        "name": "small",
        "config": "config.yaml",
        "parameters": {"loss.window": {"kind": "categorical", "values": [2, 8]}},
        "objective": {"metric": "validation/nll"},
        "budget": {},
        "sampler": {"kind": "grid"},
        "scheduler": {"kind": "none"},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(given))
    return tmp_path / "space.yaml"


def test_the_database_of_the_environment(url, monkeypatch, capsys):
    a_study(url).lease.drop()
    monkeypatch.delenv("STUDY_DATABASE", raising=False)
    assert database_url(None) == "sqlite:///bft_studies.db"
    monkeypatch.setenv("STUDY_DATABASE", url)
    assert database_url(None) == url and database_url("sqlite:///given.db") == "sqlite:///given.db"
    assert main(["search", "--status"]) == 0
    assert capsys.readouterr().out.startswith("small/test  not running")
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    assert "STUDY_DATABASE" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tracking_server_of_the_environment(space, tmp_path, monkeypatch):
    """A config's own address, and the command's, win."""
    seen: list[str] = []

    def search(space, base, database, *, profile, measure, place):
        fixed = space.fixed.get("tracking.uri")
        seen.append(fixed or base.tracking.uri)
        raise BadInput("stop", 1, "seen")

    monkeypatch.setattr(studies, "search", search)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/environment.db")
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config | {"tracking": {"uri": "sqlite:///own.db"}}))
    for own, overrides in ((None, []), (str(tmp_path / "own.yaml"), []), (None, ["tracking.uri=sqlite:///given.db"])):
        with pytest.raises(BadInput, match="stop"):
            run_study(str(space), own, overrides, "sqlite:///none.db")
    assert seen == [f"sqlite:///{tmp_path}/environment.db", "sqlite:///own.db", "sqlite:///given.db"]
    assert not list(tmp_path.glob("*.db"))


@pytest.mark.slow
def test_a_dry_run_prices_gpu_hours_where_there_is_a_gpu_alone_and_makes_no_database(space, tmp_path):
    text = dry_run(str(space), None, [], price=2.0)
    told = "GPU-hours" if torch.cuda.is_available() else "not known: the speed was measured without a GPU"
    [line] = [line for line in text.splitlines() if line.startswith("price   ")]
    assert told in line and "GPU-hours" not in text.replace(line, "")
    assert not list(tmp_path.glob("*.db"))


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["search", "starter"], "interrupted; the same command resumes the study\n"),
        (
            ["train", "starter"],
            "interrupted; the same command with its name resumes from the last checkpoint\n",
        ),
        (["doctor"], "interrupted\n"),
    ],
)
def test_what_an_interrupt_says(command, said, monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"bft_ray.commands.{command[0]}.run", interrupt)
    assert main(command) == 130
    assert capsys.readouterr().err == said
