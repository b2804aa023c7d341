"""`bft-ray ui`: MLflow's page over a database, for its user alone, also on a machine that others log in to."""

from __future__ import annotations

import contextlib
import os
import secrets

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.places.addresses import absolute_uri, redact, sqlite_path
from bft_ray.tracking.serve import HOST, listen, serve
from bft_ray.tracking.server import artifact_root, check_server, connect


def show(uri: str, port: int = 0) -> None:
    """Serve the page until Ctrl-C, and print a link to it; the next one whenever a browser has used it up.

    Raises:
        BadInput: no database that is there, or a port that is taken.
    """
    uri = absolute_uri(uri)
    if uri.startswith("http"):
        raise BadInput(
            "--uri", redact(uri), "a database: a server has a page of its own", "Open its address in a browser."
        )
    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        remedy = "Start this where the runs were started, or name it: --uri sqlite:///FOLDER/mlflow.db."
        raise BadInput("--uri", uri, "a database that is there; runs make one", remedy)
    check_server(TrackingConfig(uri=uri))
    connect(uri)  # says what to do about one of another version of MLflow
    with listen(port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}/?token="
        print(f"{redact(uri)} (Ctrl-C ends this). Each link lets one browser in:", flush=True)
        artifacts = artifact_root(uri) or os.path.abspath("mlartifacts")
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            serve(
                uri, artifacts, listener, secrets.token_hex(32), tell=lambda token: print(address + token, flush=True)
            )
