"""The MLflow server of a local cluster, behind its login: `mlflow_start.py PORT FOLDER_OF_ARTIFACTS FILE_OF_PASSWORD`.

The database, whose address has a password, comes by MLFLOW_BACKEND_STORE_URI: everybody can read arguments.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bft_ray.tracking.serve import listen, serve

if __name__ == "__main__":
    port, artifacts, password = sys.argv[1:]
    store = os.environ["MLFLOW_BACKEND_STORE_URI"]
    serve(store, artifacts, listen(int(port)), Path(password).read_text(), is_confined=True)
