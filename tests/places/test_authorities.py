"""`s3://` and a hub at addresses of the site, with its own authority: the variable that cluster/README.md names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.tls_site import tls_site

ASK = """
from pyarrow.fs import FileSystem
store, path = FileSystem.from_uri("s3://bucket/x")
try:
    store.get_file_info(path)
except OSError as error:
    print(error)
"""

ASK_HUB = """
from huggingface_hub import HfApi
try:
    HfApi().model_info("a/b")
except Exception as error:
    print(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("SSL_CERT_FILE", "ACCESS_DENIED"),
        pytest.param("AWS_CA_BUNDLE", "SSL peer certificate", marks=pytest.mark.long),  # Arrow tries again for 6 s
        pytest.param(None, "SSL peer certificate", marks=pytest.mark.long),
    ],
)
def test_the_authority_of_an_s3_endpoint(tmp_path, name, answer):
    """The door answers 403 to whom it does not know: who gets that has trusted its certificate."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SSL_CERT"))}
    env |= {"AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_REGION": "eu-central-1"}
    env |= {"AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    with tls_site(tmp_path, "token", None) as site:
        env["AWS_ENDPOINT_URL"] = site.uri
        if name:
            env[name] = str(site.authority)
        done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=180)
    assert answer in done.stdout, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "answer"), [("SSL_CERT_FILE", "RepositoryNotFoundError"), ("REQUESTS_CA_BUNDLE", "ConnectError")]
)
def test_the_authority_of_a_hub(tmp_path, name, answer):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "SSL_CERT", "REQUESTS_"))}
    with tls_site(tmp_path, "token", None) as site:
        env |= {"HF_ENDPOINT": site.uri, "HF_HOME": str(tmp_path / "hub"), name: str(site.authority)}
        done = subprocess.run([sys.executable, "-c", ASK_HUB], env=env, capture_output=True, text=True, timeout=360)
    assert done.stdout.strip() == answer, done.stdout + done.stderr
