"""A series from its first study to its page: trials are pretended, all else is as it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from bft_ray.cli import main
from bft_ray.operate.series import EXPERIMENT, read_series, run_series, text_of
from bft_ray.space.claims import Claim
from bft_ray.space.series import load_series
from bft_ray.study.confirm.choice import Plan, Record
from bft_ray.study.confirm.claims import Judged
from bft_ray.study.confirm.combine import Confirmed
from bft_ray.study.report.arms import signed
from bft_ray.study.report.series import Told, sentences, values_table
from bft_ray.tracking.server import connect
from jobs.measured import markdown, of_series
from tests.support.executor import InProcess
from tests.support.noted import known, space, trial

RATE = "optimizer.learning_rate"
DATA = "starter:gene_interaction/choices_{}"
SPACE = {
    "name": "two",
    "parameters": {"optimizer.learning_rate": {"kind": "categorical", "values": [1e-4, 1e-3]}},
    "fixed": {"loss.method": "bft"},
    "objective": {"metric": "choices/probability"},
    "budget": {"steps": 24},
    "sampler": {"kind": "grid"},
    "claims": [{"better": "bft", "than": "dft"}],
    "confirmation": {
        "top_k": 0,
        "register_champion": False,
        "seeds": [101, 102, 103],
        "min_seeds_waived": True,
        "overrides": {"evaluation.tasks.0.path": DATA.format("confirmation")},
    },
}


@pytest.fixture
def series(make_tree, tmp_path):
    base = make_tree(evaluation={"tasks": [{"kind": "choice", "path": DATA.format("validation"), "limit": 6}]})
    base["data"]["validation"], base["checkpoint"] = [], {"export": "last", "keep": 2}
    del base["name"]
    base["cluster"]["storage_path"] = str(tmp_path / "results")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE | {"config": "base.yaml"}))
    tree = {
        "name": "two",
        "question": "Does it depend on the window?",
        "space": "space.yaml",
        "conditions": {
            "small": {"at": {"size": 1}, "overrides": {"data.max_length": 64}},
            "large": {"at": {"size": 4}, "overrides": {"data.max_length": 128}},
        },
        "trends": [{"better": "bft", "than": "dft", "over": "size"}],
    }
    path = tmp_path / "series.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))  # conditions run in the order of the file
    return path, base["tracking"]["uri"], f"sqlite:///{tmp_path}/studies.db"


@pytest.mark.slow
def test_a_series_to_its_page(series, tmp_path, capsys):
    """The pretended truth has 0.2 between bft and dft, under every condition alike."""
    path, uri, database = series
    assert main(["search", str(path), "--status", "--database", database]) == 2  # not begun: no database
    begun: list[str] = []

    def run() -> str:
        return run_series(path, None, (), database, begun.append, profile=False, measure=False, place=InProcess())

    text = run()
    assert begun == ["--- small (1 of 2)", "--- large (2 of 2)"]
    assert "Of 2 conditions, that bft is better than dft holds in 2." in text
    assert "Whether the gain of bft over dft moves with size cannot be told" in text
    assert run() == text  # finished studies train nothing
    found = read_series(load_series(path), None, (), database)
    assert found.is_whole and text == text_of(found)

    client = connect(uri)
    [run_] = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    assert run_.info.status == "FINISHED" and "holds in 2" in run_.data.tags["mlflow.note.content"]
    rows = json.loads(Path(client.download_artifacts(run_.info.run_id, "series.json")).read_text())
    gains = {own: choice.claims[0].gain.gain for own, choice in ((n, k.choice) for n, k in found.known.items())}
    assert {row["condition"]: row["gain"]["gain"] for row in rows} == pytest.approx(gains)
    assert not client.search_registered_models()  # an experiment registers nothing

    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["report", str(path), "--out", str(page), "--database", database]) == 0
    of_docs = of_series(str(path), database)
    trials, steps = re.findall(r"(\d+) trials, (\d+) steps", of_docs["cost"])[0]
    assert of_docs["sentences"] == sentences(found) and int(trials) == int(steps) / 24
    (tmp_path / "two.json").write_text(json.dumps(of_docs))
    written = markdown(tmp_path / "two.json")
    assert f"| small | 1 | `bft` is better than `dft` | holds | {signed(gains['small'])} |" in written
    html = page.read_text()
    assert "Does it depend on the window?" in html and all(f'value="{gain!r}"' in html for gain in gains.values())
    assert main(["search", str(path), "--status", "--database", database]) == 0
    said = capsys.readouterr().out
    assert "--- small" in said and "two-large/" in said and "finished" in said


@pytest.mark.slow
def test_a_series_that_has_begun_says_what_is_missing(series):
    path, _, database = series

    class Killed(BaseException):
        pass

    def line(text: str) -> None:
        if text.startswith("--- large"):
            raise Killed

    with pytest.raises(Killed):
        run_series(path, None, (), database, line, profile=False, measure=False, place=InProcess())
    text = text_of(read_series(load_series(path), None, (), database))
    assert "Not finished: 1 of 2 studies have an answer." in text
    assert "Of 1 condition, that bft is better than dft holds in 1." in text
    assert "too few conditions have an answer" in text


def test_the_other_metrics_of_claims_are_shown_by_arm(series):
    """Means over seeds of the mean over items; an arm whose scores are missing has an empty cell, the objective no row."""
    metric, other = "choices/probability", "choices/accuracy"
    scores = {("sft", 1): {"a": 1.0, "b": 0.0}, ("sft", 2): {"a": 1.0, "b": 1.0}, ("bft", 1): {"a": 0.0, "b": 0.0}}
    records = [Record(arm, seed, {"a": 0.5}, others={other: own}) for (arm, seed), own in scores.items()]
    records.append(Record("dft", 1, failed="NaN"))
    claims = [Claim(better="bft", than="sft", metric=other), Claim(better="bft", than="sft")]
    found = Told(
        load_series(series[0]),
        known={},
        judged={"small": [Judged(claim, "cannot be told", None) for claim in claims]},
        slopes=[],
        runs={"small": Confirmed({"size": 1}, Plan(metric, (), ("sft", "bft", "dft"), "bft", (1, 2)), records)},
    )
    assert values_table(found).texts() == [
        ["condition", "metric", "sft", "bft", "dft"],
        ["small", other, "0.750", "0.000", ""],
    ]


def test_a_claim_whose_arms_differ_in_what_was_tuned_says_so(series):
    claim = Claim(better="bft", than="sft", metric="general/bits_per_byte")
    own = space(claims=[claim.model_dump()])
    rates = {"same": (1e-3, 1e-3), "apart": (1e-3, 3e-3)}
    studies = {
        name: known(
            {
                "confirmation": [
                    trial(n, 0.4, part="confirmation", name=arm, extra={"arm": arm}, assignment={RATE: rate})
                    for n, (arm, rate) in enumerate(zip(("bft", "sft"), pair, strict=True))
                ]
            },
            own,
        )
        for name, pair in rates.items()
    }
    judged = {name: [Judged(claim, "cannot be told", None)] for name in studies}
    found = Told(load_series(series[0]), known=studies, judged=judged, slopes=[])
    assert sentences(found) == [
        f"Of 2 conditions, that {claim} cannot be told in 2.",
        "In apart the two differ in learning_rate as well, which choices/probability chose.",
    ]
