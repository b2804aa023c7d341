"""`bft-ray report`: by name, by space, all domains, and what it says where there is nothing to show."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bft_ray.cli import main
from bft_ray.study.records.store import BASELINES, CONFIRMATION, SEARCH
from tests.support.executor import make_study
from tests.support.noted import baseline, trial
from tests.support.written import write_study

SEEDS = (101, 102, 103)


@pytest.fixture
def database(tmp_path, monkeypatch) -> str:
    """Two studies: one that runs, and one whose default stays, with a profile."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/studies.db"
    tuned = [
        baseline(n, name, 0.3, rate)
        for n, (name, rate) in enumerate((b, r) for b in ("sft", "dft", "bft") for r in (1e-4, 1e-3))
    ]
    write_study(url, make_study(tmp_path, name="early"), {SEARCH: [trial(0, 0.37)], BASELINES: tuned[:2]})
    confirm = {
        "top_k": 1,
        "seeds": list(SEEDS),
        "min_seeds_waived": True,
        "overrides": {"evaluation.tasks.0.path": "other.jsonl"},
    }
    arms = {"sft": ("baselines/1", -0.01), "dft": ("baselines/3", 0.0), "bft": ("baselines/5", 0.0)}
    arms["w64 lr0.001"] = ("search/0", -0.02)
    runs = []
    for arm, (of, up) in arms.items():
        for seed in SEEDS:
            items = {f"i{i}": i / 30 + up * (i % 5) + seed / 1e6 * (i % 3) for i in range(30)}
            extra = {"arm": arm, "of": of, "items": items}
            runs.append(trial(len(runs), 0.5, part=CONFIRMATION, name=arm, seeds=(seed,), extra=extra))
    done = make_study(
        tmp_path, name="done", budget={"trials": 1, "steps": 24}, sampler={"kind": "random"}, confirmation=confirm
    )
    write_study(
        url, done, {SEARCH: [trial(0, 0.37, key="own")], BASELINES: tuned, CONFIRMATION: runs}, result={"text": ""}
    )
    return url


def test_a_page_by_name_for_its_user_alone(database, tmp_path, capsys):
    assert main(["report", "early", "--database", database]) == 0
    assert capsys.readouterr().out.strip() == "early-test.html"
    page = tmp_path / "early-test.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600 and "<strong>No answer yet</strong>" in page.read_text()
    assert main(["report", "done/test", "--database", database, "--out", str(tmp_path / "x" / "a.html")]) == 0
    assert "<strong>The default <code>bft</code> stays</strong>" in (tmp_path / "x" / "a.html").read_text()


def test_a_page_is_replaced_as_a_whole(database, tmp_path):
    """Who reads it, or copies it, while it is written anew has the old one to its end."""
    page = tmp_path / "page.html"
    page.write_text("old")
    with page.open() as reader:
        assert main(["report", "early", "--database", database, "--out", str(page)]) == 0
        assert reader.read() == "old" and page.read_text().startswith("<!doctype html>")


def test_all_domains_side_by_side(database, tmp_path):
    assert main(["report", "--domains", "--database", database]) == 0
    text = (tmp_path / "domains.html").read_text()
    assert (
        "<strong>1 of 2 studies have an answer</strong>: the default with window 256 stays in 1, and is beaten in 0."
        in text
    )
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    cells = {name: re.sub(r"<.*?>", "|", rest) for name, rest in rows}
    assert "|yes: nothing beats it|" in cells["done/test"] and "|256|" in cells["done/test"]
    assert "|no answer yet|" in cells["early/test"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["report"], "one study, or --domains for all"),
        (["report", "early", "--domains"], "one study, or --domains for all"),
        (["report", "none/such"], "It holds done/test, early/test."),
        (["report", "noise1"], "`study` is 'noise1'"),
        (["report", "noise1"], "It holds done/test, early/test."),
        (["report", "early", "--out", "."], "Name the HTML file."),
        (["report", "early", "--out", "studies.db"], "another file than those that are read"),
        (["report", "--domains", "--out", "studies.db"], "another file than those that are read"),
    ],
)
def test_what_cannot_be_shown(database, capsys, words, says):
    assert main([*words, "--database", database]) == 2
    assert says in capsys.readouterr().err
    assert not list(Path().glob("*.html"))
    assert Path("studies.db").read_bytes().startswith(b"SQLite format 3")


def test_a_name_in_two_domains_is_asked_for_with_its_domain(database, tmp_path, capsys):
    write_study(database, make_study(tmp_path, name="early", domain="other"), {SEARCH: [trial(0, 0.37)]})
    assert main(["report", "early", "--database", database]) == 2
    assert "It holds done/test, early/other, early/test." in capsys.readouterr().err


@pytest.mark.slow
def test_it_needs_neither_torch_nor_ray_nor_mlflow(database):
    """So that a page is made in seconds."""
    code = (
        "import sys; from bft_ray.cli import main; "
        f"status = main(['report', 'done', '--database', {database!r}]); "
        "print(status, *[name for name in ('torch', 'ray', 'mlflow', 'matplotlib') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=360, check=True)
    assert found.stdout.split() == ["done-test.html", "0"]
