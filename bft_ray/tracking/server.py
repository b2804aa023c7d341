"""Where runs are recorded: a client, the page of a server, and a check that ends in time."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sqlite3
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput, first_line
from bft_ray.places.addresses import absolute_uri, driver_package, redact, sqlite_path, sqlite_uri
from bft_ray.places.modes import own_file
from bft_ray.places.mounts import require_lockable
from bft_ray.places.remote import locked
from bft_ray.places.scratch import scratch
from bft_ray.waits import bounded, waiting

if TYPE_CHECKING:
    import requests
    from mlflow import MlflowClient
    from mlflow.entities import Run

FIELD = "tracking.uri"
RULE = "a tracking server that answers"
SERVER, SENDING = "waiting for the tracking server", "sending MLflow what it lacks"  # what a command waits for
_TOKEN, _AUTHORITY = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_SERVER_CERT_PATH"
_DATABASES = ("postgresql", "mysql", "mssql")


def where(uri: str) -> tuple[str, str]:
    """How a command names the tracking server: its option ("" where it looks there by itself), and what to know of it.

    A password is not shown; the address then comes from the environment.
    """
    if absolute_uri(uri) == absolute_uri(TrackingConfig().uri):
        return "", ""
    if redact(uri) != uri:
        return ' --uri "$MLFLOW_TRACKING_URI"', f" (MLFLOW_TRACKING_URI={redact(uri)}, with its password)"
    return f" --uri {shlex.quote(uri)}", ""


def page_of(uri: str) -> str:
    """How a user gets to see what is recorded: a command for a database, the address for a server."""
    uri = absolute_uri(uri)
    if uri.startswith("http"):
        return f"open {redact(uri)}"
    option, note = where(uri)
    return f"bft-ray ui{option}{note}"


def artifact_root(uri: str) -> str | None:
    """Where artifacts go: beside an SQLite database; None where the server decides.

    A database that is used without a server has no artifact store of its own, and MLflow would take ./mlruns of
    whichever process came first: then it is the `mlartifacts` folder of the present working directory.
    """
    path = sqlite_path(uri)
    if path is not None:
        return str(path.parent / "mlartifacts")
    return None if uri.startswith("http") else os.path.abspath("mlartifacts")


def load_client(uri: str) -> None:
    """Import what a client of this address needs: two thousand modules, ten seconds and more on a busy machine. Before a bounded
    wait for an answer, which would count them as the server's silence.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
    import mlflow.store.artifact.artifact_repository_registry

    if not uri.startswith("http"):
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server or database; creates the tables of a new database, one process at a time.

    Raises:
        BadInput: the database belongs to another version of MLflow.
    """
    load_client(uri)
    import mlflow.environment_variables as settings
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    # Only the defaults of this process: the environment, where a user sets it, still wins. MLflow would retry each
    # call for four minutes (callers here retry themselves) and print the run's URL with its password.
    settings.MLFLOW_HTTP_REQUEST_MAX_RETRIES.default = 1
    settings.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.default = True
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # pages on each error, which it also raises
    path = sqlite_path(uri)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # MLflow does not lock the creation of its tables, and two processes at once break it
        with locked(path.parent) if path else contextlib.nullcontext():
            if path is not None:
                if not path.exists() or not path.stat().st_size:
                    _make_sqlite(path)
                own_file(path)
            return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        if "out-of-date database schema" not in str(error):
            raise
        remedy = "Back it up, then run `mlflow db upgrade` on it, or give another database."
        raise BadInput(FIELD, redact(uri), "a database of the installed version of MLflow", remedy) from None


def _make_sqlite(path: Path) -> None:
    """A new database, whole or not at all. MLflow makes its tables in some forty steps that SQLite does not undo: a process
    that is killed within these seconds, or a disk that is full, would leave a file that MLflow can never open again.
    """
    from mlflow import MlflowClient

    with scratch("mlflow", path.parent) as folder:
        new = folder / path.name
        own_file(new)
        MlflowClient(tracking_uri=sqlite_uri(new), registry_uri=sqlite_uri(new))
        os.replace(new, path)


def pages(call: Callable[..., Any], *args: Any, **named: Any) -> list[Any]:
    """All that a search of MLflow finds, page by page."""
    found: list[Any] = []
    token = None
    while True:
        page = call(*args, **named, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def latest_runs(client: MlflowClient, experiments: list[str], asked: str, limit: int = 1) -> list[Run]:
    """The runs that a filter finds, the latest first."""
    return client.search_runs(experiments, asked, max_results=limit, order_by=["attributes.start_time DESC"])


def check_server(tracking: TrackingConfig, *, writes: bool = True) -> None:
    """Make sure that runs can be recorded, within `tracking.timeout_s` (DNS, hanging servers and locks included).

    Args:
        writes: False where runs are only looked up: then an SQLite file may be on a file system that machines share.

    Raises:
        BadInput: unreachable or refusing server, unwritable or foreign SQLite file, or one on a file system that machines
            share, missing driver, unknown scheme.
    """
    uri = absolute_uri(tracking.uri)
    scheme = uri.partition(":")[0].partition("+")[0]
    if sqlite_path(uri) is not None:
        probe: Callable[[str, float], None] = _check_sqlite
    elif scheme in ("http", "https"):
        probe = _check_http
    elif scheme in _DATABASES:
        probe = _check_database
    else:
        remedy = "MLflow refuses the file store. Use sqlite:///mlflow.db or the address of a tracking server."
        rule = "an address that begins with sqlite:///, http://, https://, postgresql:// or mysql://"
        raise BadInput(FIELD, redact(tracking.uri), rule, remedy)
    try:
        with waiting(SERVER):
            if writes and (path := sqlite_path(uri)) is not None:
                bounded(tracking.timeout_s, require_lockable, path, FIELD, redact(uri))
            bounded(tracking.timeout_s, probe, uri, tracking.timeout_s)
    except TimeoutError:
        remedy = f"It did not within {tracking.timeout_s:g} s. Look at its log, or raise tracking.timeout_s."
        raise BadInput(FIELD, redact(uri), RULE, remedy) from None


def _check_sqlite(uri: str, timeout_s: float) -> None:
    path = sqlite_path(uri)
    assert path is not None
    if "'" in str(path) and '"' in str(path):  # MLflow writes the folder of its artifacts into SQL by repr()
        rule = "a path without both kinds of quotation marks, which MLflow cannot store"
        raise BadInput(
            FIELD, uri, rule, "Rename the folder, or give another file, e.g. tracking.uri=sqlite:////tmp/mlflow.db."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):  # SQLite writes its journal beside the file
            pass
        if path.exists():
            with contextlib.closing(sqlite3.connect(path, timeout=timeout_s, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.execute("CREATE TABLE bft_probe (x)")  # rolled back: a read-only file fails here
                database.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        remedy = f"{first_line(error)}. Choose a path that can be written, e.g. tracking.uri=sqlite:///mlflow.db."
        raise BadInput(FIELD, uri, "an SQLite file that can be written", remedy) from None


def _check_http(uri: str, timeout_s: float) -> None:
    import requests

    address = uri.rstrip("/") + "/api/2.0/mlflow/experiments/search"
    (auth, headers), verify = _credentials(uri), _authorities()
    try:
        answer = requests.post(
            address, json={"max_results": 1}, auth=auth, headers=headers, verify=verify, timeout=timeout_s
        )
    except requests.exceptions.SSLError:
        remedy = f"Its certificate is not trusted: set {_AUTHORITY} to the file of its authority's certificate."
        raise BadInput(FIELD, redact(uri), RULE, remedy) from None
    except (requests.exceptions.RequestException, ValueError) as error:
        remedy = (
            f"{type(error).__name__}: start it (one with a login: `python -m cluster.local up` has one), mend the address, "
            "or use sqlite:///mlflow.db, which `bft-ray ui` shows."
        )
        raise BadInput(FIELD, redact(uri), RULE, remedy) from None
    if answer.ok:
        if _is_mlflow(answer):
            return
        remedy = "A page answers there that is not MLflow, as of a login or a proxy: check host, port and path."
        raise BadInput(FIELD, redact(uri), RULE, remedy)
    given = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if auth else _TOKEN if headers else ""
    remedies = {
        401: f"It does not accept {given}: set the right ones."
        if given
        else f"Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or ~/.mlflow/credentials), or {_TOKEN}.",
        403: f"It refuses: check {given or 'the credentials'}, or start it with --allowed-hosts naming this host.",
        404: "Something else listens there: check host, port and path.",
    }
    remedy = remedies.get(answer.status_code, "Look at its log.")
    raise BadInput(FIELD, redact(uri), RULE, f"It answers {answer.status_code}. {remedy}")


def _is_mlflow(answer: requests.Response) -> bool:
    """Whether this is an answer to `experiments/search`; it has neither field where a user may see no experiment."""
    try:
        found = answer.json()
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() <= {"experiments", "next_page_token"}


def _authorities() -> str | bool:
    """What MLflow's client gives to requests as `verify`: a file of certificates, or whether to check at all.

    Raises:
        BadInput: a variable of the environment names a file that holds no certificates.
    """
    given = os.environ.get(_AUTHORITY)
    is_checked = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in ("true", "1")
    if not given and not is_checked:
        return False
    # requests reads the others where it is given True
    for name in (_AUTHORITY,) if given else ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        path = os.environ.get(name)
        if not path:
            continue
        if not os.path.isdir(path):
            try:
                ssl.create_default_context(cafile=path)
            except OSError as error:  # that of the file, and ssl.SSLError
                rule = f"a file of certificates in PEM ({type(error).__name__})"
                remedy = "Name the file with the certificate of the tracking server's authority, or unset it."
                raise BadInput(name, path, rule, remedy) from None
        break
    return given or True


def _credentials(uri: str) -> tuple[tuple[str, str] | None, dict[str, str]]:
    """Those that MLflow's client would use; user and password in the URI are taken by requests itself.

    Raises:
        BadInput: a token that no header can hold.
    """
    from mlflow.utils.credentials import read_mlflow_creds

    user, password = read_mlflow_creds()  # of the environment, else of ~/.mlflow/credentials
    token = os.environ.get(_TOKEN)
    if user and password:
        return (user, password), {}
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        remedy = "Set it anew: a file that was read into it may end in a new line."
        raise BadInput(_TOKEN, "***", "one word of ASCII, without spaces or line ends", remedy)
    return None, {"Authorization": f"Bearer {token}"} if token else {}


def _check_database(uri: str, timeout_s: float) -> None:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri)
        with engine.connect():
            pass
        engine.dispose()
    except ImportError as error:
        remedy = f"Install it: pip install {driver_package(error)}."
        raise BadInput(FIELD, redact(uri), "a database whose Python driver is installed", remedy) from None
    except sqlalchemy.exc.SQLAlchemyError as error:
        cause = redact(first_line(getattr(error, "orig", None) or error))
        remedy = f"{cause}. Check address, user and password, and that the database exists."
        raise BadInput(FIELD, redact(uri), "a database that answers", remedy) from None
