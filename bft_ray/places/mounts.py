"""Which file system holds a path, from the kernel's table of mounts; SQLite is refused on one that machines share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bft_ray.errors import BadInput

TABLE = Path("/proc/self/mountinfo")
#: file systems of other machines, as the table names them. SQLite locks its file through them, and the lock may not be
#: seen elsewhere, or may be lost with a server
_SHARED = {
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "smbfs", "ceph", "9p", "afs", "coda", "glusterfs",
    "ocfs2", "gfs2", "panfs", "pvfs2", "orangefs", "wekafs", "dvs", "ncpfs", "vboxsf", "prl_fs", "vmhgfs",
    "fuse.sshfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone",
    "fuse.juicefs", "fuse.mfs", "fuse.quobyte", "fuse.seaweedfs", "fuse.dfuse", "fuse.orangefs", "fuse.davfs", "fuse.davfs2",
    "fuse.vmhgfs-fuse", "fuse.beegfs", "fuse.lustre", "fuse.blobfuse", "fuse.blobfuse2", "fuse.mountpoint-s3",
}  # fmt: skip
#: beginnings of those about which the name alone says too little
_UNSURE = ("fuse", "virtiofs", "autofs")
#: an option that gVisor alone shows; the files of a sandbox are 9p to it, and its own kernel keeps their locks
_OF_A_SANDBOX = "rfdno="


@dataclass(frozen=True)
class Mount:
    """A file system in the tree of folders.

    Args:
        point: the folder that it covers.
        kind: such as `ext4` or `nfs4`; of a bind mount, that of the file system whose folder it shows.
        options: of the file system, separated by commas.
    """

    point: str
    kind: str
    options: str = ""

    @property
    def is_shared(self) -> bool:
        """Whether it is known to belong to other machines too."""
        return self.kind in _SHARED and not (self.kind == "9p" and _OF_A_SANDBOX in self.options)

    @property
    def is_own(self) -> bool:
        """Whether it is known to belong to this machine alone."""
        return not self.is_shared and not self.kind.startswith(_UNSURE)


def mount_of(path: Path, table: str) -> Mount | None:
    """The file system that holds a path.

    The table is walked as the kernel walks a path: from the root, at each folder into what is mounted on it. A mount
    that a later one hides is so left out, which the longest matching path alone would not do.

    Args:
        path: absolute and without symbolic links; it need not exist.
        table: text of the form of /proc/self/mountinfo, described in proc(5).

    Returns:
        None where the table says nothing of it.
    """
    left = [row for line in table.splitlines() if (row := _row(line))]
    numbers = {number for number, _, _ in left}
    inside: str | None = None  # number of the mount that the walk is in
    found: Mount | None = None

    def is_over(row: tuple[str, str, Mount], folder: str) -> bool:
        number, parent, mount = row
        if mount.point != folder:
            return False
        return parent == inside if inside is not None else parent == number or parent not in numbers

    for folder in map(str, [*reversed(path.parents), path]):
        while over := next((row for row in left if is_over(row, folder)), None):
            left.remove(over)  # so that the walk ends, whatever the table says
            inside, _, found = over
    return found


def require_lockable(path: Path, field: str, shown: str) -> None:
    """Refuse an SQLite file on a file system that machines share. Where the table cannot be read, nothing is refused.

    Args:
        path: of the file, which need not exist.
        field: dotted name of the setting that names the file.
        shown: its value, for the message.

    Raises:
        BadInput: it lies on NFS, Lustre or another of the known ones.
    """
    mount = _mount_here(path)
    if mount is None or not mount.is_shared:
        return
    rule = (
        f"a PostgreSQL, or an SQLite file on a disk of this machine: {mount.point} is {mount.kind}, which machines share, "
        "and SQLite's locks do not hold there"
    )
    remedy = (
        "Start a PostgreSQL within the allocation (cluster/slurm/README.md has the lines) and give its address, "
        "postgresql://...; where this machine alone uses the file, name a folder of its own disk."
    )
    raise BadInput(field, shown, rule, remedy)


def is_own_disk(path: Path) -> bool:
    """Whether a path is on a file system that this machine alone has; False where that is not known."""
    mount = _mount_here(path)
    return mount is not None and mount.is_own


def _mount_here(path: Path) -> Mount | None:
    real = path.expanduser().resolve()  # before the table is read: looking at a folder may mount it
    try:
        return mount_of(real, TABLE.read_text())
    except OSError:  # no Linux
        return None


def _row(line: str) -> tuple[str, str, Mount] | None:
    """(number, number of the mount that it is in, mount) of a line; None for one of another form."""
    left, separator, right = line.partition(" - ")  # between them lie fields of any number
    own, of_system = left.split(" "), right.split(" ")
    if not separator or len(own) < 6 or len(of_system) < 2:
        return None
    options = of_system[2] if len(of_system) > 2 else ""
    return own[0], own[1], Mount(_unescaped(own[4]), of_system[0], options)


def _unescaped(text: str) -> str:
    r"""A path of the table, in which a blank is `\040`, a tab `\011`, a line end `\012` and a backslash `\134`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
