"""What studies found, as files of the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bft_ray.operate.after_rl.record import Run
from jobs.measured import FOLDER, file_of, found_of, markdown


def test_each_domain_of_a_study_has_a_file_of_its_own():
    names = ["ablation/cell_type", "ablation/gene_interaction", "ablation", "ablation/cell-type-2"]
    files = [file_of(Path("out"), name) for name in names]
    assert len(set(files)) == len(names) and files[1] == Path("out/ablation_gene_interaction.json")
    assert all(re.fullmatch(r"\w+", file.stem) for file in files)  # as the pages name their parts
    assert file_of(FOLDER, names[1]).is_file()


def test_the_page_has_what_a_study_of_grpo_has_found_so_far(tmp_path, monkeypatch):
    """One run of fifteen: its rewards stand in the table, and nothing is claimed."""
    monkeypatch.chdir(tmp_path)
    items = {f"item-{number}": float(number % 2) for number in range(4)}
    run = Run("sft", 101, 0.5, before=items, after=dict.fromkeys(items, 0.75), course=[0.5], mixed=1.0, seconds=36.0)
    run.write(str(tmp_path / "bft_results" / "after_rl" / "starter"))
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found_of("after-rl/starter", "")), encoding="utf-8")
    text = markdown(path)
    assert "1 of 15 runs" in text and "1 runs, 0.01 hours" in text
    assert re.search(r"\| sft \| 0\.5000 \| 0\.5000 \| 0\.7500 \|", text)
    assert "cannot be told (`sft` has 4 of 5 runs to go)" in text
