"""What was made of a data set is found wherever it lies, listed with its size, and gone when its user says so; nothing else is."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from bft_ray.cli import main
from bft_ray.config import load_config, make_config
from bft_ray.data.dataset import prepare
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.start_logps import StartLogps, write
from bft_ray.operate.clean import found_places, size_text
from bft_ray.study.records.database import Database
from bft_ray.study.records.lease import Lease
from bft_ray.study.records.store import SEARCH, studies
from bft_ray.train.record import only_one, write_record
from tests.support.executor import make_study
from tests.support.noted import trial
from tests.support.written import write_study


@pytest.fixture
def config(make_tree, tiny_data, tmp_path, monkeypatch) -> Path:
    """Two data sets with tokens, a run and a study each, and a profile of the first; returns the config of the first."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        rows = tmp_path / f"{name}.jsonl"
        rows.write_text(tiny_data.read_text() + "\n" + json.dumps({"id": name, "prompt": name, "completion": name}))
        tree = make_tree(name=name)
        tree["data"]["train"], tree["data"]["validation"] = [{"path": str(rows)}], []
        tree["evaluation"], tree["checkpoint"] = {}, {"export": "last"}
        own = make_config(tree)
        prepare(own.data.train, load_tokenizer(own.model), own.data)
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        write_record(str(folder), own, "run", {})
        (folder / "weights.bin").write_bytes(bytes(5000))
        study = make_study(tmp_path, {"data": {"train": [{"path": str(rows)}]}}, name=f"{name}-study")
        Path(study.folder).mkdir(exist_ok=True)
        write_study(f"sqlite:///{tmp_path}/studies.db", study, {SEARCH: [trial(0, 0.3)]})
        if name == "mine":
            (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    (tmp_path / "results" / "profiles" / "test").mkdir(parents=True)
    (tmp_path / "results" / "profiles" / "tests_of_another").mkdir(parents=True)
    return tmp_path / "mine.yaml"


def words(config: Path) -> list[str]:
    return ["clean", str(config), "--database", f"sqlite:///{config.parent}/studies.db"]


def test_it_lists_what_is_of_this_data_alone(config, tmp_path, capsys):
    places = found_places(load_config(str(config)), f"sqlite:///{tmp_path}/studies.db")
    assert [place.kind for place in places] == ["tokens", "profile", "run", "study", "records"]
    run = next(place for place in places if place.kind == "run")
    assert run.name == f"{tmp_path}/results/mine" and run.num_bytes == sum(
        f.stat().st_size for f in Path(run.name).iterdir()
    )
    assert not any("other" in place.name for place in places)
    assert main(words(config)) == 0  # nobody is there to say yes
    said = capsys.readouterr().out
    assert (
        "nothing was removed; --yes removes all of it" in said
        and "5 places" in said
        and "runs, models and artifacts in MLflow" in said
    )
    assert (tmp_path / "results" / "mine" / "weights.bin").exists()


def test_it_asks_first_and_then_removes_that_alone(config, tmp_path, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("no\n"))
    assert main(words(config)) == 0
    assert "nothing was removed" in capsys.readouterr().out and (tmp_path / "results" / "mine").exists()
    monkeypatch.setattr("sys.stdin", Terminal("yes\n"))
    assert main(words(config)) == 0
    assert "removed 5 places" in capsys.readouterr().out
    assert not (tmp_path / "results" / "mine").exists() and (tmp_path / "results" / "other").exists()
    assert sorted(path.name for path in (tmp_path / "results" / "profiles").iterdir()) == ["tests_of_another"]
    with Database(f"sqlite:///{tmp_path}/studies.db") as database:
        assert studies(database) == ["other-study/test"]
    (kept,) = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/meta.json")]
    assert kept["report"]["sources"][0]["path"] == str(tmp_path / "other.jsonl")
    assert main(words(config)) == 0
    assert "nothing made of this data was found" in capsys.readouterr().out


def test_rows_that_were_changed_since_are_found_too(config, tmp_path):
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"id": "new", "prompt": "w1", "completion": "w2"}))
    assert "tokens" in [place.kind for place in found_places(load_config(str(config)), "sqlite:///none.db")]


def test_rows_that_were_moved_since_are_found_too(config, tmp_path, monkeypatch):
    """The tokens are found by what the rows hold: two files share them, and they go with either."""
    (tmp_path / "moved").mkdir()
    (tmp_path / "mine.jsonl").rename(tmp_path / "moved" / "mine.jsonl")
    loaded = load_config(str(config), ["data.train.0.path=mine.jsonl"])
    monkeypatch.chdir(tmp_path / "moved")
    dataset = prepare(loaded.data.train, load_tokenizer(loaded.model), loaded.data)
    assert dataset.report.sources[0].path == "mine.jsonl"
    assert len(list(dataset.folder.parent.glob("*/tokens.bin"))) == 2  # none was made for the new place
    monkeypatch.chdir(tmp_path)
    for path in ("moved/mine.jsonl", str(tmp_path / "mine.jsonl")):
        own = load_config(str(config), [f"data.train.0.path={path}"])
        assert str(dataset.folder) in [place.name for place in found_places(own, "sqlite:///none.db")]


def test_tokens_of_unknown_data_are_listed_too(config, tmp_path):
    """A damaged record could be that of these rows."""
    loaded = load_config(str(config))
    (meta, *_) = sorted(Path(str(loaded.data.cache_dir)).glob("*/meta.json"))
    meta.write_text("{")
    places = found_places(loaded, f"sqlite:///{tmp_path}/studies.db")
    assert [place.name for place in places if "unknown" in place.kind] == [str(meta.parent)]


def test_log_probabilities_are_listed_with_the_tokens(config, tmp_path):
    """Those of these rows, and those that do not say whose they are; not those of other rows that are known."""
    loaded = load_config(str(config))
    cache = Path(str(loaded.data.cache_dir))
    tokens = StartLogps(["a"], np.zeros(2, dtype=np.float32), np.array([2]))
    of = {
        json.loads(meta.read_text())["report"]["sources"][0]["path"]: meta.parent.name
        for meta in cache.glob("*/meta.json")
    }
    made = {"mine": of[str(tmp_path / "mine.jsonl")], "other": of[str(tmp_path / "other.jsonl")], "gone": "0" * 64}
    for name, fingerprint in made.items():
        write(cache / "profiles" / f"{name}.parquet", tokens, fingerprint)
    (cache / "profiles" / "damaged.parquet").write_text("?")
    places = found_places(loaded, "sqlite:///none.db")
    found = {Path(place.name).stem: place.kind for place in places if "log-prob" in place.kind}
    unknown = "log-probabilities of unknown data"
    assert found == {"mine": "log-probabilities", "gone": "log-probabilities", "damaged": unknown}


def test_a_database_that_cannot_be_read_is_no_empty_one(config):
    with pytest.raises(BadInput, match="`database` is"):
        found_places(load_config(str(config)), "mysql://127.0.0.1/studies")


def test_a_study_that_runs_is_kept(config, tmp_path, capsys):
    with Database(f"sqlite:///{tmp_path}/studies.db") as database:
        Lease(database, "mine-study/test").take()
        assert main([*words(config), "--yes"]) == 2
        assert "End it first: `bft-ray search --cancel`." in capsys.readouterr().err
        assert "mine-study/test" in studies(database)
    assert (tmp_path / "results" / "mine").exists()  # all or nothing


def test_what_export_and_report_left_in_the_working_folder_is_named(config, tmp_path, capsys):
    for name in ("bft-test-1", "bft-test-2", "bft-tested-1"):
        (tmp_path / name).mkdir()
    for file in ("bft-test-1/sha256.json", "bft-tested-1/sha256.json", "study-test.html", "study-tested.html"):
        (tmp_path / file).write_text("{}")
    assert main(words(config)) == 0
    said = capsys.readouterr().out
    named = [line.split(" ")[1] for line in said.splitlines() if "was made in this folder" in line]
    assert named == ["bft-test-1", "study-test.html"]  # bft-test-2 is no export of ours


def test_a_run_that_trains_is_kept(config, tmp_path, capsys):
    run = tmp_path / "results" / "mine"
    with only_one(str(run), "mine"):
        assert main([*words(config), "--yes"]) == 2
        assert "no other command is at work on; one is in" in capsys.readouterr().err
        assert (run / "weights.bin").exists() and (tmp_path / "results" / "profiles").exists()
        with Database(f"sqlite:///{tmp_path}/studies.db") as database:
            assert "mine-study/test" in studies(database)
    assert main([*words(config), "--yes"]) == 0 and not run.exists()


@pytest.mark.parametrize(
    ("num", "text"), [(0, ""), (1, "1 kB"), (1500, "2 kB"), (2_340_000, "2.3 MB"), (12e9, "12.0 GB")]
)
def test_sizes_are_short(num, text):
    assert size_text(int(num)) == text


def test_rows_that_are_gone_are_told_and_what_was_made_of_them_is_found(config, tmp_path, capsys):
    """By the path that the config names, from the folder where it was meant."""
    tree = yaml.safe_load(config.read_text())
    tree["data"]["train"] = [{"path": "mine.jsonl"}, {"path": "lab/cohort"}]  # the second is one of a hub
    config.write_text(yaml.safe_dump(tree))
    (tmp_path / "mine.jsonl").unlink()
    assert main(words(config)) == 0
    said = capsys.readouterr().out
    assert f"note: mine.jsonl is not in {tmp_path}: what was made of it is looked for by that path" in said
    assert "note: lab/cohort" not in said
    places = found_places(load_config(str(config)), f"sqlite:///{tmp_path}/studies.db")
    assert [place.kind for place in places] == ["tokens", "profile", "run", "study", "records"]


def test_a_study_whose_folder_was_moved_says_so(config, tmp_path, capsys):
    places = found_places(load_config(str(config)), f"sqlite:///{tmp_path}/studies.db")
    folder = next(place.name for place in places if place.kind == "study")
    assert main(words(config)) == 0
    assert "if it was moved" not in capsys.readouterr().out
    Path(folder).rename(tmp_path / "away")
    assert main(words(config)) == 0
    assert f"its folder {folder} is not there: if it was moved, remove it yourself" in capsys.readouterr().out


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_working_folder_that_was_copied_or_moved_is_cleaned_itself(config, tmp_path, capsys, monkeypatch, is_copied):
    """Its records name the folder of before, which is the original's, or is not there."""
    before = tmp_path / "before"
    study = make_study(tmp_path, {"data": {"train": [{"path": str(tmp_path / "mine.jsonl")}]}}, name="own")
    study = replace(study, folder=str(before / "results" / "studies" / "test" / "own-1234"))
    Path(study.folder).mkdir(parents=True)
    (Path(study.folder) / "tokens").write_text("t")
    write_study(f"sqlite:///{before}/studies.db", study, {SEARCH: [trial(0, 0.3)]})
    now = tmp_path / "now"
    shutil.copytree(before, now) if is_copied else before.rename(now)
    monkeypatch.chdir(now)
    words = ["clean", str(config), "--database", "sqlite:///studies.db", "--yes"]
    assert main([*words, "cluster.storage_path=results"]) == 0
    said = capsys.readouterr().out
    assert not (now / "results" / "studies" / "test" / "own-1234").exists()
    assert (Path(study.folder) / "tokens").exists() == is_copied == ("of which this is a copy, stays" in said)
    with Database(f"sqlite:///{now}/studies.db") as database:
        assert studies(database) == []


def test_a_database_that_is_not_there_is_told(config, tmp_path, capsys):
    assert main(["clean", str(config), "--database", f"sqlite:///{tmp_path}/none.db"]) == 0
    assert f"there is no database of studies at {tmp_path}/none.db" in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "{"])
def test_a_run_that_does_not_say_whose_data_it_is_of_is_named_and_stays(config, tmp_path, capsys, text):
    record = tmp_path / "results" / "mine" / "run.json"
    record.unlink() if text is None else record.write_text(text)
    (tmp_path / "results" / "mine" / "step-00000004").mkdir()
    (tmp_path / "results" / "empty").mkdir()
    assert main([*words(config), "--yes"]) == 0
    said = capsys.readouterr().out
    assert f"note: {tmp_path}/results/mine does not say whose data it is of" in said and "empty" not in said
    assert (tmp_path / "results" / "mine" / "weights.bin").exists()
