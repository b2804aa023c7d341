"""What is known of a local cluster: its folder, addresses, secrets, processes; and what a user exports."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.tracking.login import USER as LOGIN
from cluster.local.processes import Process, boot_id, family, find
from cluster.local.ray_start import LOOPBACK

HOST = "127.0.0.1"
USER, ADMIN = "bft", "postgres"  # of the databases; MLflow and studies know the first, which rules nothing else


@dataclass
class State:
    """A local cluster. `save` and `load` keep all of it but the secrets, which are in files of their own.

    Args:
        folder: absolute; what outlives a stop: databases, artifacts, secrets, logs.
        ports: by what listens there.
        processes: the first process of each service, in the order of their start.
        ray_folder: Ray's own, short because sockets are below it; removed at the stop.
        is_whole: whether all of it has come up.
    """

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    ray_folder: str = ""
    is_whole: bool = False

    @property
    def token(self) -> Path:
        """File of Ray's token."""
        return self.folder / "ray_token"

    @property
    def password(self) -> Path:
        """File of the databases' password."""
        return self.folder / "postgres_password"

    @property
    def admin_password(self) -> Path:
        """File of the password of PostgreSQL's superuser, whom `up` alone needs."""
        return self.folder / "postgres_admin_password"

    @property
    def mlflow_password(self) -> Path:
        """File of the password of the tracking server."""
        return self.folder / "mlflow_password"

    @property
    def dashboard(self) -> str:
        """Address of Ray's dashboard and job server."""
        return f"http://{HOST}:{self.ports['dashboard']}"

    @property
    def mlflow(self) -> str:
        """Address of the tracking server and its page."""
        return f"http://{HOST}:{self.ports['mlflow']}"

    def database(self, name: str, user: str = USER) -> str:
        """Address of a database, with the password."""
        password = self.admin_password if user == ADMIN else self.password
        return f"postgresql://{user}:{password.read_text()}@{HOST}:{self.ports['postgres']}/{name}"

    def log(self, service: str) -> Path:
        """Where the output of a service goes."""
        return self.folder / "logs" / f"{service}.log"

    def ray_client(self) -> dict[str, str]:
        """The environment in which Ray's commands and drivers reach it."""
        return LOOPBACK | {
            "RAY_ADDRESS": f"{HOST}:{self.ports['gcs']}",
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
        }

    def services(self) -> dict[str, str]:
        """The environment of a job, by which it finds both servers; passwords are in it."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_TRACKING_USERNAME": LOGIN,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow_password.read_text(),
            "STUDY_DATABASE": self.database("studies"),
        }

    def exports(self) -> dict[str, str]:
        """The environment of a user."""
        return self.ray_client() | self.services()

    def living(self) -> list[str]:
        """Services whose first process runs."""
        return [name for name, process in self.processes.items() if find(process.pid) == process]

    def is_gone(self) -> bool:
        """Whether nothing of it runs, children included."""
        return not family(self.processes.values())

    def save(self) -> None:
        """Write it, whole or not at all."""
        tree = asdict(self) | {"boot": boot_id()}
        del tree["folder"]
        new = self.folder / "state.json.new"
        new.write_text(json.dumps(tree, indent=1))
        os.replace(new, self.folder / "state.json")

    @classmethod
    def load(cls, folder: Path) -> State:
        """What `save` wrote; without processes where that was before the machine last started."""
        try:
            tree = json.loads((folder / "state.json").read_text())
        except FileNotFoundError:
            return cls(folder)
        except ValueError:
            remedy = "If no process of it runs, remove the file."
            raise BadInput(str(folder / "state.json"), "no JSON", "what `up` wrote", remedy) from None
        if tree.pop("boot") != boot_id():
            tree["processes"] = {}
        tree["processes"] = {name: Process(*ids) for name, ids in tree["processes"].items()}
        return cls(folder, **tree)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder for this process alone; it is made where it is missing.

    Raises:
        BadInput: another process starts or stops this cluster now.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    if os.geteuid() == 0:
        folder.chmod(0o711)  # PostgreSQL runs as another user and must get to its own folder
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "a folder in which no other command starts or stops a cluster"
            raise BadInput("--folder", str(folder), rule, "Wait for that one.") from None
        yield


def make_secret(path: Path) -> None:
    """A random secret in a file that only its owner reads; one that is there stays."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32))


def export_lines(variables: dict[str, str]) -> list[str]:
    """For a shell's `eval`."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
