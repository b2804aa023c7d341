"""A site's MLflow: HTTPS with the certificate of the site's own authority, a token, and artifacts apart from runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bft_ray.config import TrackingConfig
from bft_ray.errors import BadInput
from bft_ray.tracking.artifacts import check_artifacts
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server, connect
from tests.support.servers import mlflow_server
from tests.support.tls_site import Site, tls_site

TOKEN = "made-up-token-of-a-site"
AUTHORITY = "MLFLOW_TRACKING_SERVER_CERT_PATH"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in ("USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH", "INSECURE_TLS"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials of this user


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with tls_site(tmp_path_factory.mktemp("site"), TOKEN, None) as site:
        yield site


def refusal(site: Site) -> BadInput:
    with pytest.raises(BadInput) as caught:
        check_server(TrackingConfig(uri=site.uri, timeout_s=10.0))
    assert TOKEN not in str(caught.value) + repr(caught.value.args)
    return caught.value


@pytest.mark.parametrize("name", [AUTHORITY, "REQUESTS_CA_BUNDLE"])
def test_the_right_authority_and_token_get_in(site, monkeypatch, name):
    monkeypatch.setenv(name, str(site.authority))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    site.asked.clear()
    check_server(TrackingConfig(uri=site.uri, timeout_s=10.0))
    assert site.asked == ["/api/2.0/mlflow/experiments/search"]


def test_no_authority(site, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    site.asked.clear()
    error = refusal(site)
    assert (error.field, error.value, error.rule) == ("tracking.uri", site.uri, "a tracking server that answers")
    assert (
        error.remedy == f"Its certificate is not trusted: set {AUTHORITY} to the file of its authority's certificate."
    )
    assert site.asked == []  # the token was not sent to a server that is not trusted


@pytest.mark.parametrize("name", [AUTHORITY, "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize(("content", "reason"), [(None, "FileNotFoundError"), ("no certificate", "SSLError")])
def test_a_file_of_no_certificates(site, monkeypatch, tmp_path, name, content, reason):
    path = tmp_path / "ca.pem"
    if content:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    error = refusal(site)
    assert (error.field, error.value) == (name, str(path)) and error.rule == f"a file of certificates in PEM ({reason})"
    assert error.remedy.startswith("Name the file with the certificate of the tracking server's authority")


@pytest.mark.parametrize(
    ("token", "field", "text"),
    [
        (None, "tracking.uri", "It answers 401. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("another", "tracking.uri", "It answers 403. It refuses: check MLFLOW_TRACKING_TOKEN"),
        (f"{TOKEN}\n", "MLFLOW_TRACKING_TOKEN", "Set it anew: a file that was read into it may end in a new line."),
        (f"{TOKEN} x", "MLFLOW_TRACKING_TOKEN", "Set it anew"),
    ],
)
def test_no_token_or_a_wrong_one(site, monkeypatch, token, field, text):
    monkeypatch.setenv(AUTHORITY, str(site.authority))
    if token:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    error = refusal(site)
    assert error.field == field and error.remedy.startswith(text)


def test_a_wrong_password_is_named(site, monkeypatch):
    monkeypatch.setenv(AUTHORITY, str(site.authority))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wr0ng-word")
    error = refusal(site)
    assert "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in error.remedy
    assert "wr0ng-word" not in str(error)


@pytest.mark.long
def test_a_run_and_its_files_through_tls_and_token(tmp_path, monkeypatch, capfd, caplog):
    """A real MLflow behind the door: runs in its database, files in a store of their own, the token in neither."""
    runs, spool, made = tmp_path / "runs", tmp_path / "spool", tmp_path / "made"
    for folder in (runs, made):
        folder.mkdir()
    (made / "report.txt").write_text("made-up report")
    with mlflow_server(tmp_path, f"sqlite:///{runs}/mlflow.db") as behind:  # artifacts: tmp_path/artifacts
        with tls_site(tmp_path, TOKEN, int(behind.rpartition(":")[2])) as site:
            monkeypatch.setenv(AUTHORITY, str(site.authority))
            monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
            tracking = TrackingConfig(uri=site.uri, timeout_s=30.0)
            check_server(tracking)
            assert check_artifacts(tracking, "bft/test").startswith("mlflow-artifacts:")
            tracker = Tracker.start(tracking, "bft/test", "site", {"loss.method": "bft"}, {}, spool=spool)
            tracker.log_metrics({"train/loss": 0.25}, 1)
            assert tracker.log_artifacts(made, "reports") and tracker.finish("FINISHED")
            run = connect(site.uri).get_run(tracker.run_id)
        with pytest.raises(BadInput, match="ConnectionError: start it"):
            check_server(tracking)
    assert run.info.status == "FINISHED" and run.data.metrics == {"train/loss": 0.25}
    (stored,) = [path for path in (tmp_path / "artifacts").rglob("*") if path.name == "report.txt"]
    assert stored.read_text() == "made-up report" and not list(runs.rglob("report.txt"))
    assert TOKEN not in json.dumps(run.to_dictionary()) + caplog.text + "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3 and not [path for path in files if TOKEN.encode() in Path(path).read_bytes()]
