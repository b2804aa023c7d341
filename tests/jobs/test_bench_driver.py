"""The benchmark of the driver, with fewer trials than a row of its table has; its status says whether the target is met."""

from __future__ import annotations

import pytest

from jobs.bench.driver import TARGET_S, measure, tell


@pytest.mark.long
def test_few_trials_are_measured_too(tmp_path, capsys):
    found = measure(6, 2, None, deterministic=False, folder=tmp_path)
    [row] = found["by_hundreds"]
    assert row["trials"] == found["trials"] >= 6 and 0 < found["cpu_s_a_trial"] == pytest.approx(row["cpu_s_a_trial"])
    assert tell(found | {"cpu_s_a_trial": TARGET_S}) == 0 and not capsys.readouterr().err
    assert tell(found | {"cpu_s_a_trial": 1.01 * TARGET_S}) == 1
    told = capsys.readouterr()
    assert f"error: the target of {TARGET_S} s a trial is missed" in told.err and f"to {row['trials']:5d}: " in told.out
