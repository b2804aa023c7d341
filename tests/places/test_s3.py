"""`s3://` at an endpoint of the site, with its own authority: the variables that cluster/kuberay/README.md names."""

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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("SSL_CERT_FILE", "ACCESS_DENIED"),
        pytest.param("AWS_CA_BUNDLE", "SSL peer certificate", marks=pytest.mark.long),  # Arrow tries again for 6 s
        pytest.param(None, "SSL peer certificate", marks=pytest.mark.long),
    ],
)
def test_the_authority_of_an_endpoint(tmp_path, name, answer):
    """The door answers 403 to whom it does not know: who gets that has trusted its certificate."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SSL_CERT"))}
    env |= {"AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up", "AWS_REGION": "eu-central-1"}
    env |= {"AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    with tls_site(tmp_path, "token", None) as site:
        env["AWS_ENDPOINT_URL"] = site.uri
        if name:
            env[name] = str(site.authority)
        done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, timeout=60)
    assert answer in done.stdout, done.stdout + done.stderr
