"""The MLflow server of services.yaml: `python -m cluster.kuberay.mlflow_start PORT ARTIFACTS FILE_OF_PASSWORD NAME ...`.

It listens on all addresses of its pod, and every route asks for the password (user `bft`). NAME: HOST:PORT by which clients
reach it. The database comes by MLFLOW_BACKEND_STORE_URI, the keys of an object store by its own variables.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bft_ray.tracking.serve import listen, serve


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM.

    Raises:
        ValueError: fewer than three arguments. KeyError: no MLFLOW_BACKEND_STORE_URI.
    """
    port, artifacts, password, *names = arguments
    address = os.environ.get("BFT_LISTEN", "0.0.0.0")  # a pod's; network.yaml says who reaches it
    secret = Path(password).read_text().strip()
    serve(os.environ["MLFLOW_BACKEND_STORE_URI"], artifacts, listen(int(port), address), secret, names=names)


if __name__ == "__main__":
    main(sys.argv[1:])
