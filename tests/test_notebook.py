"""The functions for notebooks, and the notebook of the documentation, cell by cell."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import bft_ray
from bft_ray.study.records.store import BASELINES, SEARCH
from tests.support.executor import METRIC, make_study
from tests.support.noted import baseline, trial
from tests.support.paths import ROOT
from tests.support.written import write_study


@pytest.fixture
def study(tmp_path, monkeypatch) -> str:
    """A study of six trials in the database that is looked for here."""
    monkeypatch.chdir(tmp_path)
    own = make_study(tmp_path, name="starter", domain="gene_interaction")
    search = [trial(n, 0.3 + n / 100, rungs={9: {0: 0.2 + n / 100}}) for n in range(5)]
    lost = trial(5, state="failed", reason="out of memory")
    write_study("sqlite:///bft_studies.db", own, {SEARCH: [*search, lost], BASELINES: [baseline(0, "bft", 0.3, 1e-3)]})
    return "starter/gene_interaction"


def test_records_are_a_frame(study):
    frame = bft_ray.records_of(study)
    assert list(frame.trial) == ["baselines/0", *(f"search/{n}" for n in range(6))]
    assert list(frame.value[1:6]) == pytest.approx([0.3, 0.31, 0.32, 0.33, 0.34]) == list(frame[METRIC][1:6])
    assert list(frame["loss.window"][1:]) == [64] * 6 and list(frame.seconds[:2]) == pytest.approx([60, 60])
    assert frame.iloc[6].status == "failed" and frame.iloc[6].reason == "out of memory"
    listed = bft_ray.list_studies()
    assert listed.to_dict("records") == [
        {"study": study, "finished": False, "baselines": 1, "search": 6, "confirmation": 0}
    ]


def test_figures_and_pages_show_themselves(study, tmp_path):
    figures = bft_ray.figures_of(study)
    shown = figures["history"]._repr_mimebundle_()
    assert shown["image/svg+xml"].startswith("<svg") and "0.34" in shown["text/plain"]
    points = shown["application/vnd.plotly.v1+json"]["data"][0]
    assert points["y"] == pytest.approx([0.3, 0.31, 0.32, 0.33, 0.34])
    page = bft_ray.report_of(study)
    assert page._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')
    assert "No answer yet" in page.save(tmp_path / "a.html").read_text()


def test_importing_the_package_loads_nothing():
    code = "import sys, bft_ray; print([name for name in ('numpy', 'optuna', 'torch', 'pandas', 'pydantic') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True)
    assert found.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        bft_ray.nothing  # noqa: B018


@pytest.mark.slow
def test_the_notebook_runs(study):
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text())
    names: dict[str, Any] = {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = []
    for source in cells:
        *lines, last = source.strip().splitlines()
        exec("\n".join(lines), names)
        shown.append(eval(last, names))
    assert len(cells) == 7 and all(one is not None for one in shown)
    assert "Which windows, epsilons and caps differ" in shown[-1]._repr_html_()
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # results stay out of the repository
