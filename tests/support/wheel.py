"""The wheel, built from the repository and installed in an environment of its own, away from the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.paths import ROOT

LIMIT_S = 600


def build(folder: Path) -> Path:
    """The wheel of a copy of the tracked files: a stale build folder of the repository is not in it."""
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=180
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    return wheel


class Installed:
    """A virtual environment with the wheel, and an empty folder in which its commands run.

    The dependencies are links to those of this environment, without bft_ray and the path of its editable install.
    """

    def __init__(self, folder: Path, wheel: Path):
        self.work = folder / "work"
        self.work.mkdir()
        self.env_folder = folder / "env"
        self._call(sys.executable, "-m", "venv", "--without-pip", str(self.env_folder))
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = self.env_folder / "lib" / version / "site-packages"
        for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
            if "bft_ray" not in entry.name and entry.suffix != ".pth" and not entry.name.startswith("_virtualenv"):
                (self.packages / entry.name).symlink_to(entry)
        python = self.env_folder / "bin" / "python"
        self._call(
            sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)
        )

    def _call(self, *words: str) -> None:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

    def run(self, program: str, *words: str) -> str:
        """What a program of the environment prints; the tests' own variables do not reach it."""
        keep = {"PATH", "LANG", "TMPDIR", "OMP_WAIT_POLICY", "USER"}
        env = {name: value for name, value in os.environ.items() if name in keep}
        env |= {"HOME": str(self.work), "PATH": f"{self.env_folder}/bin:{env['PATH']}"}
        done = subprocess.run(
            [self.env_folder / "bin" / program, *words],
            cwd=self.work,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout
