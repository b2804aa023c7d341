"""What studies found, as files of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.measured import FOLDER, file_of


def test_each_domain_of_a_study_has_a_file_of_its_own():
    names = ["ablation/cell_type", "ablation/gene_interaction", "ablation", "ablation/cell-type-2"]
    files = [file_of(Path("out"), name) for name in names]
    assert len(set(files)) == len(names) and files[1] == Path("out/ablation_gene_interaction.json")
    assert all(re.fullmatch(r"\w+", file.stem) for file in files)  # as the pages name their parts
    assert file_of(FOLDER, names[1]).is_file()
