"""Which file system holds a path, on tables of mounts that are made up, and on mounts of this machine."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from pathlib import Path

import pytest

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.operate.configured import check_database, check_tracking
from bft_ray.places import mounts
from bft_ray.places.mounts import is_own_disk, mount_of, require_lockable
from bft_ray.study.records.database import Database
from bft_ray.tracking.server import check_server

SITE = r"""
21 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
22 21 0:5 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw,size=131G
23 21 0:44 / /home rw,relatime shared:3 master:9 - nfs4 filer:/vol/home rw,vers=4.2,addr=127.0.0.1
24 23 259:3 / /home/ana/local rw,relatime - xfs /dev/nvme1n1 rw
25 21 0:50 / /lustre/site rw,relatime shared:4 - lustre 127.0.0.2@o2ib:/site rw,flock
26 21 0:50 /lab/bft /data rw,relatime shared:4 - lustre 127.0.0.2@o2ib:/site rw,flock
27 21 0:61 / /mnt/my\040share\134x\011y rw - cifs //nas/share rw,vers=3.1
28 21 0:62 / /net/keys rw - fuse.sshfs ana@host:/ rw
29 21 0:63 / /opt/image rw - fuse.squashfuse image.sif rw
30 21 0:64 / /gpfs rw - gpfs fs1 rw
31 30 259:2 /scratch/local /gpfs/local rw - ext4 /dev/nvme0n1p2 rw
32 21 0:65 / /host rw - 9p host rw,trans=virtio
33 21 0:66 / /sandbox rw - 9p none rw,trans=fd,rfdno=4,wfdno=4,aname=/
34 21 0:67 / /stack rw - nfs old:/ rw
35 34 259:9 / /stack rw - ext4 /dev/sdb1 rw
36 21 0:68 / /deep/down/here rw - nfs filer:/h rw
37 21 259:9 / /cover rw - ext4 /dev/sdb1 rw
38 99 0:69 / /cover/inner rw - nfs filer:/inner rw
"""
WHOSE = {  # path -> type, whether other machines have it too, whether this one alone has it
    "/tmp/a.db": ("ext4", False, True),
    "/home": ("nfs4", True, False),
    "/home/ana/a.db": ("nfs4", True, False),
    "/homes/a.db": ("ext4", False, True),
    "/home/ana/local/a.db": ("xfs", False, True),  # a disk within the home
    "/lustre/a.db": ("ext4", False, True),
    "/lustre/site/x/y/a.db": ("lustre", True, False),
    "/data/a.db": ("lustre", True, False),  # a bind mount
    "/mnt/my share\\x\ty/a.db": ("cifs", True, False),
    "/mnt/my": ("ext4", False, True),
    "/net/keys/a.db": ("fuse.sshfs", True, False),
    "/opt/image/a.db": ("fuse.squashfuse", False, False),
    "/gpfs/a.db": ("gpfs", True, False),
    "/gpfs/local/a.db": ("ext4", False, True),  # a folder of the root's disk, bound into it
    "/host/a.db": ("9p", True, False),
    "/sandbox/a.db": ("9p", False, True),  # gVisor's own
    "/stack/a.db": ("ext4", False, True),  # the later of two on one folder
    "/cover/inner/a.db": ("ext4", False, True),  # its mount is in another tree: what covers /cover hides it
    "/deep/down/here/a.db": ("nfs", True, False),
}


def test_the_file_system_of_a_path_on_a_site():
    found = {path: mount_of(Path(path), SITE) for path in WHOSE}
    assert {path: (mount.kind, mount.is_shared, mount.is_own) for path, mount in found.items() if mount} == WHOSE


@pytest.mark.parametrize(
    "kind",
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "cifs",
        "smb3",
        "ceph",
        "9p",
        "fuse.sshfs",
        "fuse.glusterfs",
        "afs",
        "panfs",
    ],
)
def test_each_file_system_of_several_machines_is_refused(kind):
    mount = mount_of(Path("/x/a.db"), f"1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / /x rw - {kind} source rw")
    assert mount and mount.is_shared and not mount.is_own


def test_a_table_that_says_nothing_or_nonsense():
    assert mount_of(Path("/a"), "") is None
    assert mount_of(Path("/a"), "no table\n1 2\n1 0 0:1 / / rw - \n\x00 - ext4 x") is None
    loop = "1 2 0:1 / / rw - ext4 d rw\n2 1 0:2 / / rw - nfs d rw"  # each in the other: no root to begin at
    assert mount_of(Path("/a"), loop) is None
    self_made = "1 1 0:1 / / rw - rootfs rootfs rw\n2 1 0:2 / / rw - nfs d rw"  # the first is its own parent
    assert getattr(mount_of(Path("/a"), self_made), "kind", None) == "nfs"
    inner = "5 4 0:1 / /site rw - lustre d rw"  # after chroot the mount of / is not in the table
    assert getattr(mount_of(Path("/site/a"), inner), "kind", None) == "lustre"
    assert mount_of(Path("/a"), inner) is None


@pytest.fixture
def on_nfs(monkeypatch, tmp_path):
    """A folder that the kernel, as far as this process sees, has from another machine."""
    folder = tmp_path / "shared"
    folder.mkdir()
    table = tmp_path / "mountinfo"
    table.write_text(f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:9 / {folder.resolve()} rw - nfs4 filer:/v rw\n")
    monkeypatch.setattr(mounts, "TABLE", table)
    return folder


def refusal(field: str, file: Path) -> str:
    return (
        f"`{field}` is 'sqlite:///{file}', but must be a PostgreSQL, or an SQLite file on a disk of this machine: "
        f"{file.parent} is nfs4, which machines share, and SQLite's locks do not hold there. Start a PostgreSQL within the "
        "allocation (cluster/slurm/README.md has the lines) and give its address, postgresql://...; where this machine "
        "alone uses the file, name a folder of its own disk."
    )


def test_both_databases_refuse_it_and_leave_nothing(on_nfs, monkeypatch):
    studies, runs = on_nfs / "studies.db", on_nfs / "mlflow.db"
    with pytest.raises(BadInput) as of_study:
        Database(f"sqlite:///{studies}")
    with pytest.raises(BadInput) as of_runs:
        check_server(TrackingConfig(uri=f"sqlite:///{runs}"))
    assert (str(of_study.value), str(of_runs.value)) == (refusal("database", studies), refusal("tracking.uri", runs))
    monkeypatch.setenv("STUDY_DATABASE", f"sqlite:///{studies}")
    with pytest.raises(BadInput) as of_doctor:
        list(check_database())
    assert str(of_doctor.value) == refusal("database", studies)
    assert not list(on_nfs.iterdir())


def test_a_link_to_it_is_seen_through(on_nfs, tmp_path):
    (tmp_path / "link").symlink_to(on_nfs)
    with pytest.raises(BadInput, match="which machines share"):
        require_lockable(tmp_path / "link" / "new" / "a.db", "database", "a.db")
    require_lockable(tmp_path / "a.db", "database", "a.db")
    assert is_own_disk(tmp_path / "a.db") and not is_own_disk(on_nfs / "a.db")


def test_what_lies_there_already_can_be_read(on_nfs, tmp_path):
    """Such as a report of a study whose file was copied to a home."""
    with Database(f"sqlite:///{tmp_path / 'made.db'}"):
        pass
    (on_nfs / "made.db").write_bytes((tmp_path / "made.db").read_bytes())
    with Database(f"sqlite:///{on_nfs / 'made.db'}", make=False) as opened:
        assert opened.storage.get_all_studies() == []
    with contextlib.closing(sqlite3.connect(on_nfs / "runs.db")):
        check_server(TrackingConfig(uri=f"sqlite:///{on_nfs / 'runs.db'}"), writes=False)


def test_the_doctor_fails_on_it(on_nfs):
    from bft_ray.config import make_config

    tree = {"domain": "x", "model": {"path": "starter"}, "tracking": {"uri": f"sqlite:///{on_nfs / 'mlflow.db'}"}}
    with pytest.raises(BadInput, match=r"`tracking.uri` .* is nfs4, which machines share"):
        list(check_tracking(make_config(tree, for_training=False)))


@pytest.mark.privileged
def test_mounts_of_this_machine(tmp_path):
    """A bind mount, a blank in a name, and a mount that a later one hides, as the kernel writes them."""
    made: list[Path] = []

    def mount(point: Path, *options: str) -> None:
        point.mkdir(parents=True, exist_ok=True)
        if os.geteuid() or subprocess.run(["mount", *options, str(point)], capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        made.append(point)

    def kind(path: Path) -> str:
        found = mount_of(path, mounts.TABLE.read_text())
        return found.kind if found else ""

    below, ram, bound, outer = kind(tmp_path), tmp_path / "a b", tmp_path / "bound", tmp_path / "outer"
    try:
        mount(ram, "-t", "tmpfs", "tmpfs")
        (ram / "inner").mkdir()
        mount(bound, "--bind", str(ram / "inner"))
        mount(outer / "inner", "-t", "ramfs", "ramfs")
        kinds = [kind(ram / "x"), kind(bound / "x"), kind(outer / "inner/x"), kind(outer / "x")]
        assert kinds == ["tmpfs", "tmpfs", "ramfs", below]
        mount(outer, "--bind", str(bound))
        assert kind(outer / "inner/x") == "tmpfs"
    finally:
        for point in reversed(made):
            subprocess.run(["umount", "-l", str(point)], check=True)
