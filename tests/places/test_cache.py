"""Folders of a machine where there is no home, or none that can be written."""

from __future__ import annotations

import getpass
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from bft_ray.config import make_config
from bft_ray.errors import BadInput
from bft_ray.places.cache import cache_folder, check_out, ensure_home


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """TMPDIR, and the private folder below it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"bft_ray_{os.getuid()}"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")  # what Path.home says of a user id without an entry


def test_the_cache_is_in_the_home_or_private_in_the_temporary_folder(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("spool") == tmp_path / "home" / ".cache" / "bft_ray" / "spool"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    assert cache_folder("spool") == temporary / "spool"
    assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder() == temporary


def test_another_user_s_folder_is_not_taken(temporary, monkeypatch):
    temporary.mkdir()
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(os, "getuid", lambda: os.stat(temporary).st_uid + 1)
    other = temporary.with_name(f"bft_ray_{os.getuid()}")
    other.mkdir()  # made by somebody else before
    found = cache_folder("spool")
    assert other not in found.parents and found.parent == temporary.parent and found.is_dir()


def test_a_process_without_a_home_gets_one(temporary, tmp_path, monkeypatch):
    """As in a container that is run under any user id: getpass and Path.home both raise there."""

    def no_entry(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        Path.home()
    with pytest.raises(KeyError):
        getpass.getuser()
    ensure_home()
    assert Path.home() == temporary and getpass.getuser() == f"uid{os.getuid()}"


def test_a_home_stays(temporary, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "new"))
    for _ in range(2):
        ensure_home()
        assert os.environ["HOME"] == str(tmp_path / "new") and (tmp_path / "new").is_dir()


def test_where_results_go_is_tried_before_they_are_made(tmp_path):
    check_out(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(
            BadInput, match=r"`--out` is .*a folder that can be written, or that can be made: Not a dir"
        ):
            check_out(place)


def test_a_uri_is_no_folder_of_this_machine(make_tree, tmp_path, monkeypatch):
    """`Path` would make a folder `s3:` of it, here."""
    from bft_ray.places.cache import check_out
    from bft_ray.train.pins import pin_paths

    monkeypatch.chdir(tmp_path)
    rule = "must be a folder of this machine, not a URI. Name a local folder"
    with pytest.raises(BadInput, match=f"`--out` is .*{rule}"):
        check_out(Path("s3://bucket/x"))
    with pytest.raises(BadInput, match=f"`data.cache_dir` is 's3://bucket/x', but {rule}"):
        pin_paths(make_config(make_tree(data={"cache_dir": "s3://bucket/x"})))
    assert not list(tmp_path.glob("s3*"))
    check_out(tmp_path / "a:b")
