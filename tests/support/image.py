"""The image of cluster/container, built without a registry and run without a daemon, by root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PROGRAMS = ("debootstrap", "buildah", "unshare")
FILE = ROOT / "cluster" / "container" / "Containerfile"
LIMIT_S = 1800
_INSIDE = """
set -eu
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,ro,bind "$root"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot --userspec=1000:1000 "$root" env -i HOME=/tmp/home PYTHONPATH=/opt/bft-ray bash -lc "mkdir /tmp/home && cd /tmp && $2"
"""


class Builder:
    """buildah with a store of its own, which `close` removes."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        store = folder / "storage.conf"
        store.write_text(f'[storage]\ndriver = "vfs"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/store"\n')
        self._env = os.environ | {"CONTAINERS_STORAGE_CONF": str(store), "BUILDAH_ISOLATION": "chroot"}

    def call(self, *words: str) -> str:
        log = self.folder / f"{words[0]}.log"
        with log.open("w") as output:
            done = subprocess.run(
                ["buildah", *words], env=self._env, stdout=subprocess.PIPE, stderr=output, text=True, timeout=LIMIT_S
            )
        assert done.returncode == 0, log.read_text()[-3000:] + done.stdout[-3000:]
        return done.stdout.strip()

    def debian(self) -> str:
        """An image of Debian 12 with nothing in it."""
        root = self.folder / "debian"
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", str(root)], capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        name = self.call("from", "scratch")
        self.call("add", name, str(root), "/")
        self.call("commit", "--rm", name, "localhost/debian")
        shutil.rmtree(root)
        return "localhost/debian"

    def build(self, **arguments: str) -> Path:
        """Build the Containerfile, with pip set up as it is here; returns the root of a container."""
        words = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        words += [f"--volume={mount}:ro" for mount in self._pip()]
        self.call("bud", "--pull-never", "--format=docker", *words, "-t", "bft-ray", "-f", str(FILE), str(ROOT))
        return Path(self.call("mount", self.call("from", "--pull-never", "localhost/bft-ray")))

    def _pip(self) -> list[str]:
        """Mounts that give the pip of a build the indexes and certificates of this machine's."""
        listed = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True)
        settings: dict[str, str] = {}  # those of the environment come first, and win
        mounts: list[str] = []
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            key, value = name.split(".")[-1], value.strip("'").replace("\\n", " ")
            if key not in ("cert", "find-links", "index-url", "extra-index-url", "trusted-host"):
                continue
            found = []
            for word in value.split():
                path = Path(word.removeprefix("file://"))
                if path.is_absolute():
                    source = path.parent if path.is_file() else path
                    if key == "cert":  # copied: the build itself installs certificates where this one may lie
                        source = self.folder / "certificates"
                        source.mkdir(exist_ok=True)
                        shutil.copy(path, source)
                    place = f"/mnt/host{len(mounts)}"
                    mounts.append(f"{source}:{place}")
                    scheme = "file://" if word.startswith("file://") else ""
                    # an index beside its files: pages of `simple` name ../files
                    if key.endswith("index-url"):
                        mounts[-1] = f"{source.parent}:{place}"
                        place = f"{place}/{source.name}"
                    word = scheme + (f"{place}/{path.name}" if path.is_file() else place)
                found.append(word)
            settings.setdefault(key, " ".join(found))
        lines = [f"{key} = {value}\n" for key, value in settings.items()]
        (self.folder / "pip.conf").write_text("[global]\n" + "".join(lines))
        return [*mounts, f"{self.folder / 'pip.conf'}:/etc/pip.conf"]

    def run(self, root: Path, command: str) -> str:
        """What a login shell prints: user 1000, a read-only root, an empty /tmp, the loopback of this machine."""
        words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", _INSIDE, "inside", str(root)]
        done = subprocess.run([*words, command], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def close(self) -> None:
        subprocess.run(["buildah", "rm", "--all"], env=self._env, capture_output=True, timeout=900)
        shutil.rmtree(self.folder, ignore_errors=True)
