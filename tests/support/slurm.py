"""A Slurm of one node on loopback, from Debian's packages, for as long as a context lasts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.local.service import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel", "squeue")
START_S = 60


@dataclass
class Slurm:
    """Where its files are, and the environment that its commands need."""

    folder: Path
    env: dict[str, str]

    def call(self, *command: str) -> str:
        """The output of one of its commands; fails where that fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=180, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED ..."""
        words = dict(word.split("=", 1) for word in self.call("scontrol", "show", "job", job).split() if "=" in word)
        return words["JobState"]


@contextmanager
def slurm(num_cpus: int = 4) -> Iterator[Slurm]:
    """munged, slurmctld and slurmd as root, with folders, keys and ports of their own; at the end they are stopped."""
    folder = Path(tempfile.mkdtemp(prefix="slurm_", dir="/tmp"))
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = f"{folder}/munge/socket"
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    (folder / "slurm.conf").write_text(_config(folder, munge, num_cpus))
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}"]
        + [f"--{name}={folder}/munge/{name}" for name in ("pid-file", "log-file", "seed-file")],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    ]
    running = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("w") as out:
                running.append(subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=folder))
            time.sleep(1)
        found = Slurm(folder, env)
        end = time.monotonic() + START_S
        while (
            "idle" not in subprocess.run(["sinfo", "-h"], env=env, capture_output=True, text=True, timeout=180).stdout
        ):
            logs = "\n".join(path.read_text()[-1500:] for path in folder.glob("*.out"))
            assert time.monotonic() < end and all(process.poll() is None for process in running), logs
            time.sleep(0.5)
        yield found
    finally:
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _config(folder: Path, munge: str, num_cpus: int) -> str:
    name = socket.gethostname().partition(".")[0]
    return "\n".join(
        [
            "ClusterName=test",
            f"SlurmctldHost={name}(127.0.0.1)",
            "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",  # listens on loopback alone
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            f"AuthInfo=socket={munge}",
            f"StateSaveLocation={folder}/state",
            f"SlurmdSpoolDir={folder}/spool",
            f"SlurmctldPidFile={folder}/slurmctld.pid",
            f"SlurmdPidFile={folder}/slurmd.pid",
            f"SlurmctldPort={free_port()}",
            f"SlurmdPort={free_port()}",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "MpiDefault=none",
            "ReturnToService=2",
            "KillWait=10",
            "SlurmdParameters=config_overrides",  # more CPUs than the machine has
            f"NodeName={name} NodeAddr=127.0.0.1 CPUs={num_cpus} State=UNKNOWN",
            "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO",
            "",
        ]
    )
