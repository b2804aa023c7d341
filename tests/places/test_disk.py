"""A full disk: recognised whatever the writer says, told with its place, and nothing half written stays on it."""

from __future__ import annotations

import errno
import pickle
import sqlite3
from pathlib import Path

import pytest

from bft_ray.errors import BftError, DiskFull
from bft_ray.places import disk, storage
from bft_ray.places.disk import free_bytes, full_disk, full_place, is_full
from bft_ray.train.failure import explain, retry_of
from tests.support.ranks import run_ranks
from tests.support.segments import make_segment
from tests.support.small_disk import small_disk


@pytest.fixture
def small(tmp_path):
    """A file system of 4 MB."""
    with small_disk(tmp_path / "small", 4) as folder:
        yield folder


def no_room(monkeypatch, *full: Path) -> None:
    """As if these folders lay on full disks."""

    def try_folder(folder: Path) -> None:
        if any(folder.is_relative_to(one) for one in full):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "try_folder", try_folder)


SAYS_SO = [
    OSError(errno.ENOSPC, "No space left on device", "/nowhere/a"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("write(): fd 3 failed with No space left on device"),
    Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    sqlite3.OperationalError("database or disk is full"),
]
MAY_BE = [
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    sqlite3.OperationalError("disk I/O error"),
]


@pytest.mark.parametrize("error", SAYS_SO, ids=str)
def test_what_says_so_is_believed(error, tmp_path):
    found = full_disk(error, {"cluster.storage_path": tmp_path})
    assert found is not None and "is full" in str(found) and "give the same command again" in str(found)
    assert isinstance(pickle.loads(pickle.dumps(found)), DiskFull)
    wrapped = BftError("a trial failed")
    wrapped.__cause__ = error
    assert str(error).splitlines()[0].rstrip(".") in str(full_disk(wrapped)) and "a trial" not in str(
        full_disk(wrapped)
    )
    assert retry_of(explain(error, 0)) == "never" and isinstance(explain(error, 0), DiskFull)


@pytest.mark.parametrize("error", MAY_BE, ids=str)
def test_where_a_write_was_cut_short_the_disk_is_asked(error, tmp_path, monkeypatch):
    places = {"cluster.storage_path": tmp_path / "not" / "there", "TMPDIR": "/"}
    assert full_disk(error, places) is None and full_disk(error) is None
    no_room(monkeypatch, tmp_path)
    assert f"the disk that holds {tmp_path}/not/there (cluster.storage_path)," in str(full_disk(error, places))
    assert full_disk(ValueError("unexpected position"), places) is None


def test_no_place_is_named_that_is_not_known(tmp_path, monkeypatch):
    error = RuntimeError("No space left on device")
    assert str(full_disk(error)).startswith("a disk is full or its quota used up: RuntimeError")
    both = {"cluster.storage_path": tmp_path, "TMPDIR": "/"}
    assert "probably" in str(full_disk(error, both))
    assert "probably" not in str(full_disk(error, {"TMPDIR": "/"}))
    assert "holds /a/b, " in str(full_disk(OSError(errno.ENOSPC, "No space", "/a/b"), both))
    assert full_place(both) is None
    no_room(monkeypatch, tmp_path)
    assert "(cluster.storage_path)" in str(full_place(both))
    assert "s3" not in str(full_disk(error, {"cluster.storage_path": "s3://bucket/x"}))


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    target = tmp_path / "weights"
    with storage.whole_folder(target) as made:
        made.mkdir()
        (made / "a").write_text("1")
    no_room(monkeypatch, tmp_path)
    with pytest.raises(DiskFull, match=f"holds {target} "), storage.whole_folder(target) as made:
        made.mkdir()
        (made / "a").write_text("half")
        raise MAY_BE[0]
    assert [path.name for path in tmp_path.rglob("*")] == ["weights", "a"] and (target / "a").read_text() == "1"


def test_what_killed_processes_left_half_written_is_removed(tmp_path):
    kept = tmp_path / "search" / "0000" / "state-0"
    for folder in (kept, kept.with_name("weights-0.part")):
        folder.mkdir(parents=True)
        (folder / "a").write_text("1")
    (kept.parent / ".x3.part").write_text("{")
    storage.write_text(str(kept.parent / "run-0.json"), "{}")
    storage.remove_parts(str(tmp_path))
    assert sorted(path.name for path in kept.parent.iterdir()) == ["run-0.json", "state-0"]
    storage.remove_parts(str(tmp_path / "nothing"))


@pytest.mark.privileged
def test_a_real_disk_that_is_full(small):
    """Each writer, on a file system of 4 MB."""
    import torch
    from safetensors.torch import save_file

    large = {"a": torch.zeros(3_000_000)}
    assert not is_full(small) and 3e6 < free_bytes(small) < 5e6
    for write in (lambda at: torch.save(large, at), lambda at: save_file(large, at)):
        with pytest.raises(DiskFull) as caught, storage.whole_folder(small / "weights") as made:
            made.mkdir()
            write(made / "model")
        assert f"holds {small}/weights (cluster.storage_path)" in str(caught.value)
        assert list(small.iterdir()) == []
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(str(small / "a.json"), "x" * (5 << 20))
    assert list(small.iterdir()) == []
    (small / "filler").write_bytes(bytes(free_bytes(small)))
    with pytest.raises(DiskFull, match=r"\(cluster.storage_path\), with 0.0 MB free"):
        storage.check_writable(str(small / "results"))


@pytest.mark.privileged
def test_a_database_on_a_full_disk(small):
    from bft_ray.study.records.database import Database

    with Database(f"sqlite:///{small}/studies.db") as database:
        (small / "filler").write_bytes(bytes(free_bytes(small)))
        study = None
        with pytest.raises(DiskFull, match=r"adding a study failed, for the disk that holds .*studies.db"):
            for number in range(1000):
                study = database.retry(
                    "adding a study", lambda number=number: database.storage.create_new_study([1], f"s{number}")
                )
        (small / "filler").unlink()
        assert database.retry("adding a study", lambda: database.storage.create_new_study([1], "x")) != study


def stopped_and_gone_on_with(tree: dict, folder: str) -> list:
    """What a segment comes to whose state, and whose weights, find no room, one after the other; and one in peace."""
    import torch

    from bft_ray.study.execute.segments import run_segment
    from bft_ray.study.execute.warm import Warm

    warm, told = Warm(torch.device("cpu")), []
    filler = Path(folder) / "filler"
    for until, room in ((2, 0), (2, 60_000), (2, None), (None, 0), (None, 60_000), (None, None)):
        segment = make_segment(tree, f"{folder}/0", until=until, keep=True)
        filler.unlink(missing_ok=True)
        if room is not None:
            filler.write_bytes(bytes(max(0, free_bytes(folder) - room)))
        *_, last = run_segment(segment, warm)
        told.append((last, sorted(path.name for path in Path(folder, "0").glob("*"))))
    *_, calm = run_segment(make_segment(tree, f"{folder}/1", keep=True), warm)
    return [*told, calm]


@pytest.mark.slow
@pytest.mark.privileged
def test_a_leg_without_room_is_stopped_and_goes_on(make_tree, small):
    (told,) = run_ranks(stopped_and_gone_on_with, 1, make_tree(), str(small))
    *stages, calm = told
    assert [last.status for last, _ in stages] == ["stopped", "stopped", "paused", "stopped", "stopped", "complete"]
    paused, complete = ["run-42.json", "state-42"], ["run-42.json", "weights-42"]
    assert [files for _, files in stages][2:] == [paused, paused, paused, complete]
    for last, _ in (stages[0], stages[1], stages[3], stages[4]):
        assert f"holds {small}/0" in last.reason and "(cluster.storage_path)" in last.reason, last.reason
    assert stages[-1][0].metrics == calm.metrics and calm.num_steps == 6
