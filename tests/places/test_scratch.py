"""Temporary folders: gone with their process, also with one that was killed; those of others stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bft_ray.places import scratch as module
from bft_ray.places.scratch import remove_dead, scratch
from tests.support.paths import ROOT

HOLD = """
import sys, time
from pathlib import Path
from bft_ray.places.scratch import scratch
with scratch("checkpoint", Path(sys.argv[1])) as folder:
    (folder / "state").write_text("60 MB")
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(within: Path) -> tuple[subprocess.Popen, Path]:
    """A process that has such a folder, until it is killed."""
    command = [sys.executable, "-c", HOLD, str(within)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_is_gone_at_the_end_of_the_context(tmp_path):
    with scratch("segment", tmp_path) as folder:
        assert folder.parent == tmp_path and folder.name.startswith("bft_ray_segment_")
        assert folder.stat().st_mode & 0o077 == 0 and list(tmp_path.iterdir()) == [folder]
        (folder / "a").write_text("1")
        assert remove_dead(tmp_path) == 0 and (folder / "a").exists()  # its own process lives
    assert list(tmp_path.iterdir()) == []
    with scratch("data", tmp_path) as folder:
        os.rename(folder, tmp_path / "entry")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    with pytest.raises(ZeroDivisionError), scratch("segment", tmp_path):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    living, kept = holder(tmp_path)
    killed, left = holder(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert (left / "state").exists() and (kept / "state").exists()
        with scratch("segment", tmp_path):
            assert not left.exists() and (kept / "state").exists()
    finally:
        for process in (living, killed):
            process.kill()
            process.wait(10)
    assert remove_dead(tmp_path) == 1 and list(tmp_path.iterdir()) == []


def test_what_is_not_known_to_be_dead_stays(tmp_path, monkeypatch):
    mark = module._mark()
    others = [
        tmp_path / f"bft_ray_segment_{'0' * 32}_abc",
        tmp_path / "bft_ray_group_abc",
        tmp_path / f"mine_{mark}_abc",
    ]
    for folder in others:  # of another machine, of an earlier version, of somebody
        folder.mkdir()
    (tmp_path / f"bft_ray_file_{mark}_abc").write_text("")
    (tmp_path / f"bft_ray_link_{mark}_abc").symlink_to(others[0])
    before = sorted(tmp_path.iterdir())
    assert remove_dead(tmp_path) == 0 and sorted(tmp_path.iterdir()) == before
    (tmp_path / f"bft_ray_segment_{mark}_abc").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        assert remove_dead(tmp_path) == 0
        patch.undo()
        patch.setattr(module, "_lock", lambda handle: False)  # a file system without locks
        assert remove_dead(tmp_path) == 0
        with scratch("segment", tmp_path) as folder:
            assert mark not in folder.name  # or another process would take it for dead
    assert remove_dead(tmp_path) == 1 and sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_process_group_of_one_makes_no_file(tmp_path):
    code = "from bft_ray.train.engine import join_alone; join_alone(); import torch.distributed as d; d.barrier()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    assert not list(tmp_path.glob("bft_ray*"))
