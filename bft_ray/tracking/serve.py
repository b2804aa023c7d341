"""MLflow's server in this process, on loopback, behind a login."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from bft_ray.errors import BadInput
from bft_ray.tracking.login import App, Login

HOST = "127.0.0.1"


def listen(port: int, host: str = HOST) -> socket.socket:
    """A socket on a port of loopback, or of another address of this machine; 0: a free one.

    Raises:
        BadInput: somebody listens there.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        rule = f"a port of {host} that is free ({error})"
        raise BadInput("--port", port, rule, "Leave it out: a free one is taken.") from None


def serve(
    store: str,
    artifacts: str,
    listener: socket.socket,
    password: str,
    *,
    tell: Callable[[str], None] | None = None,
    is_confined: bool = False,
    names: Sequence[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        store: database of runs and models; it may hold a password.
        artifacts: folder or URI for the artifacts of experiments that are made through the server.
        listener: of `listen`.
        password, tell: of `Login`.
        is_confined: no file outside the folder `artifacts` is read, written or listed, whatever location an experiment,
            a model or a trace has, and through whatever link.
        names: HOST or HOST:PORT by which clients reach it beside 127.0.0.1 and localhost; requests to others are refused.
    """
    app = Login(mlflow_app(store, artifacts, listener.getsockname()[1], is_confined, names), password, tell)
    import uvicorn

    # no access log: the token of a link stands in an address
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)  # type: ignore[arg-type]
    uvicorn.Server(config).run(sockets=[listener])


def mlflow_app(store: str, artifacts: str, port: int, is_confined: bool, names: Sequence[str] = ()) -> App:
    """MLflow's own ASGI application, set up as `mlflow server` does it; once a process, for it reads the environment."""
    hosts = [f"{HOST}:{port}", f"localhost:{port}", *names]
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # background jobs of its own, which nothing here uses
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in hosts),
    }
    import uvicorn  # noqa: F401  (MLflow checks hosts and origins only where it finds a server loaded)
    from mlflow.server import constants, handlers

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: store,
        constants.REGISTRY_STORE_URI_ENV_VAR: store,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if is_confined:
        _confine(Path(artifacts))
    handlers.initialize_backend_stores(store, store, "mlflow-artifacts:/")
    with warnings.catch_warnings():  # of its libraries, about each other
        warnings.simplefilter("ignore")
        from mlflow.server.fastapi_app import app

    return app


def _confine(root: Path) -> None:
    """Make MLflow's server in this process refuse every artifact location but those within `root`."""
    from mlflow.exceptions import MlflowException
    from mlflow.server import handlers
    from mlflow.store.artifact import artifact_repository_registry as registry
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = root.resolve()

    class Confined(LocalArtifactRepository):
        """Files within the root. MLflow itself checks links below it, except when it deletes."""

        def __init__(self, artifact_uri: str, *args: str | None, **named: str | None):
            super().__init__(artifact_uri, *args, **named)
            self._check(Path(self.artifact_dir))

        def delete_artifacts(self, artifact_path: str | None = None) -> None:
            self._check(Path(self.artifact_dir, artifact_path or ""))
            super().delete_artifacts(artifact_path)

        @staticmethod
        def _check(path: Path) -> None:
            if not path.resolve().is_relative_to(root):
                raise MlflowException.invalid_parameter_value("Artifacts of this server lie in its own folder alone.")

    known = registry._artifact_repository_registry._registry
    inner = {
        scheme: known[scheme] for scheme in ("runs", "models", "mlflow-artifacts")
    }  # these end at one of the others
    registry._artifact_repository_registry._registry = inner | {"": Confined, "file": Confined}

    def refuse(value: str, field_name: str) -> str:
        if not value.startswith("mlflow-artifacts:/") or ".." in value:
            rule = f"`{field_name}` must be left out, or begin with mlflow-artifacts:/."
            raise MlflowException.invalid_parameter_value(rule)
        return value

    handlers._validate_storage_location_uri = refuse
