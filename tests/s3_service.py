"""A real S3 API over HTTP, started once per run, and a bucket for each test.

A test module that needs it says `pytest_plugins = ["s3_service"]`.
"""

import os
import uuid
from collections.abc import Iterator

import httpx
import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 service that listens on a free port of 127.0.0.1 and keeps everything in memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a process that uses that service; its URL."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3_endpoint


@pytest.fixture
def s3_root(s3_environment: str) -> str:
    """`s3://bucket/prefix` in a bucket that this test alone uses."""
    bucket = f"test-{uuid.uuid4().hex[:12]}"
    httpx.put(f"{s3_environment}/{bucket}").raise_for_status()
    return f"s3://{bucket}/some/prefix"
