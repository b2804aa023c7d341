"""An S3 server on loopback, as long as a context lasts, and what tests do to the objects in it."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest

KEY, SECRET = "AKIAMADEUPMADEUPMADE", "made/up+secret0madeup/secret0madeup+sec"


@dataclass
class S3:
    """A server, and a bucket in it; `environment` is what a process needs to reach it."""

    url: str
    bucket: str = field(default_factory=lambda: f"bucket-{uuid.uuid4().hex[:8]}")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])

    def keys(self, prefix: str = "") -> list[str]:
        """Of the objects that hold something; a folder may be an empty one."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return sorted(one["Key"] for page in pages for one in page.get("Contents", []) if one["Size"])

    def read(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def truncate(self, key: str) -> None:
        """Cut an object to its first half."""
        content = self.read(key)
        self.put(key, content[: len(content) // 2])


@contextmanager
def s3_server() -> Iterator[S3]:
    """A server of moto with one bucket; this process and those that it starts reach it by their environment."""
    ThreadedMotoServer = pytest.importorskip("moto.server", reason="needs the extra `clouds`").ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        store = S3(f"http://{host}:{port}")
        store.client.create_bucket(Bucket=store.bucket)
        with mock.patch.dict(os.environ, store.environment):
            yield store
    finally:
        server.stop()
